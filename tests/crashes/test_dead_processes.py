"""A process that a piece of work has started is killed, as a system does that has no memory left, wherever it may be.

The work ends with one line, waits for nobody, leaves nothing that is half there; and begun again it ends as if nothing had been.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dying_work
import pytest
from broken_disk import Mode, run
from jobs import Job, parsed, plain_recipe, training
from test_crashes import same

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked for every crash")
LINE = "a process that reads images was ended by the system (signal: Killed)"
IMAGES, EPOCHS = 8, 2
"""Of the training."""


def whole(job: Job, folder: Path) -> tuple[int, dict[str, object]]:
    """The operations of undisturbed work, and what it leaves."""
    code, count, said = run(lambda: job.begin(folder), folder, mode="count")
    assert code == 0, said
    return count, job.results(folder)


def struck(
    job: Job, folder: Path, expected: dict[str, object], begin: Callable[[], object], mode: Mode, at: int
) -> bool:
    """One death, and what must be so after it; whether there was anybody to kill."""
    code, _, said = run(begin, folder, mode=mode, at=at)
    assert code in (0, 2), f"{code} {said}"
    if code == 2:
        assert LINE in said
        assert "\n" not in said.strip()
    job.whole(folder)
    if code == 0:  # what it had read was enough
        same(expected, job.results(folder), "at once")
    again, _, told = run(lambda: job.go_on(folder), folder)
    assert again == 0, f"going on gave {again} {told}"
    same(expected, job.results(folder), "after going on")
    return code == 2 or not said.startswith("0")


def dying_at(job: Job, folder: Path, epoch: int, position: int, late: bool) -> object:
    """The work, whose worker that reads this image of the epoch dies before it, or with it read."""
    from torch.utils.data import get_worker_info

    from flyspeck.data.loading import DetectionDataset

    plain = DetectionDataset.draw

    def draw(self: DetectionDataset, draw: Any, attempt: int = 0) -> Any:
        found = plain(self, draw, attempt) if late else None
        if (draw.epoch, draw.position) == (epoch, position) and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return found or plain(self, draw, attempt)

    DetectionDataset.draw = draw  # type: ignore[method-assign] - in a process of its own
    return job.begin(folder)


def record(request: pytest.FixtureRequest, name: str, tried: int, survived: int) -> None:
    """For `docs/write_reliability.py --deaths`."""
    path = Path(request.config.getoption("--deaths-json") or os.devnull)
    if path != Path(os.devnull):
        found = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(found | {name: {"tried": tried, "survived": survived}}, indent=1) + "\n")


@dataclass
class Counted:
    """Deaths that were tried, and those that were not survived."""

    tried: int = 0
    failed: tuple[str, ...] = ()

    def one(self, what: str, work: Callable[[], bool]) -> None:
        """Tries one, which counts where somebody died."""
        try:
            self.tried += work()
        except AssertionError as error:
            self.tried += 1
            self.failed += (f"{what}: {error}",)

    def end(self, request: pytest.FixtureRequest, name: str) -> None:
        """All were survived."""
        record(request, name, self.tried, self.tried - len(self.failed))
        assert not self.failed, "\n".join(self.failed[:20])
        assert self.tried


def test_a_worker_dies_here_and_there(squares: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    job, counted = training(squares, workers=2), Counted()
    count, expected = whole(job, tmp_path / "whole")
    image, operation = tmp_path / "image", tmp_path / "operation"
    begin = partial(dying_at, job, image, 1, 5, True)
    counted.one("image", partial(struck, job, image, expected, begin, "none", 0))
    begin = partial(job.begin, operation)
    counted.one("operation", partial(struck, job, operation, expected, begin, "workers", count // 2))
    assert (counted.tried, counted.failed) == (2, ())


@pytest.mark.slow
def test_a_worker_dies_at_every_image(squares: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    job, counted = training(squares, workers=2), Counted()
    _, expected = whole(job, tmp_path / "whole")
    for epoch in range(EPOCHS):
        for position in range(IMAGES):
            for late in (False, True):
                place = tmp_path / f"{epoch}-{position}-{late}"
                begin = partial(dying_at, job, place, epoch, position, late)
                counted.one(place.name, partial(struck, job, place, expected, begin, "none", 0))
    counted.end(request, "train, a worker of two that read images: before and after each image")


@pytest.mark.slow
def test_the_workers_die_at_every_operation(squares: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    job, counted = training(squares, workers=2), Counted()
    count, expected = whole(job, tmp_path / "whole")
    for at in range(1, count + 1, request.config.getoption("--crash-every")):
        place = tmp_path / f"{at}"
        counted.one(f"operation {at}", partial(struck, job, place, expected, partial(job.begin, place), "workers", at))
    counted.end(request, "train, both workers that read images: at each operation on the disk")


def pooled(verb: str, squares: Path, folder: Path, dead: int | None) -> int:
    """Work of a pool of two, of which the one dies that has the image `dead`. Forked, so that it takes what is changed here."""
    from flyspeck.data import image_files, shrink, tile_files
    from flyspeck.data.readers import read_annotations
    from flyspeck.data.scenes import dataset
    from flyspeck.data.tiling import tile_annotations

    def due(number: object) -> None:
        if number == dead:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(plain: Callable[..., Any], number: Callable[..., object]) -> Callable[..., Any]:
        def called(*words: Any, **more: Any) -> Any:
            due(number(*words))
            return plain(*words, **more)

        return called

    fork = get_context("fork")
    if verb == "scenes":
        dataset.multiprocessing = type("_", (), {"get_context": staticmethod(lambda kind: fork)})  # type: ignore[assignment]
        seeds = [dataset.scene_seed(3, index) for index in range(IMAGES)]
        dataset.generate_scene = dying(dataset.generate_scene, lambda seed: seeds.index(seed) + 1)
        dataset.write_scenes(folder, num_images=IMAGES, seed=3, height=48, width=64, workers=2)
        return 0
    image_files.get_context = lambda kind: fork  # type: ignore[assignment]
    table = read_annotations(squares / "train.json")
    place = shrink if verb == "shrink" else tile_files
    place.read_true = dying(place.read_true, lambda path: int(path.stem.removeprefix("train")))  # type: ignore[attr-defined]
    if verb == "shrink":
        shrink.shrink(table, folder, name="small.json", short_side=24, workers=2)
    else:
        tiles = tile_annotations(table, size=(32, 32), overlap=8)
        tile_files.write_tiles(table, tiles, folder, name="tiles.json", workers=2)
    return 0


@pytest.mark.parametrize("verb", ["scenes", "shrink", "tile"])
@pytest.mark.parametrize(
    "numbers", [[IMAGES], pytest.param(range(1, IMAGES + 1), marks=pytest.mark.slow)], ids=["the last", "each"]
)
def test_a_process_of_a_pool_dies(
    verb: str, numbers: Sequence[int], squares: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}

    code, _, said = run(lambda: pooled(verb, squares, tmp_path / "whole", None), tmp_path / "whole")
    assert code == 0, said
    expected = files(tmp_path / "whole")
    for number in numbers:
        place = tmp_path / f"{number}"
        code, _, said = run(partial(pooled, verb, squares, place, number), place)
        assert code == 2, said
        assert said.startswith("a process that works on images could not start or was ended by the system")
        assert said.count("\n") == 0
        left = files(place)
        assert left == {name: expected[name] for name in left}  # nothing is half there
        code, _, said = run(partial(pooled, verb, squares, place, None), place)
        assert code == 0, said
        assert files(place) == expected
    if len(numbers) == IMAGES:
        record(request, f"{verb}, a process of a pool of two: at each image", IMAGES, IMAGES)


@pytest.fixture
def dying_processes(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr("flyspeck.train.launch._work", dying_work.work)
    return monkeypatch


@pytest.mark.slow
def test_a_process_that_shares_the_batches_dies_at_every_step(
    squares: Path, tmp_path: Path, dying_processes: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Two processes, either of which dies before each step or as it evaluates; both go on, or one goes on alone."""
    from flyspeck.train.config import dump_recipe
    from flyspeck.train.launch import train_together

    recipe, counted = plain_recipe(squares), Counted()
    job = training(squares)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    together = partial(train_together, tmp_path / "recipe.yaml", processes=2)
    assert together(tmp_path / "whole")
    expected = job.results(tmp_path / "whole")

    def death(rank: int, step: str, folder: Path) -> bool:
        dying_processes.setenv(dying_work.RANK, str(rank))
        dying_processes.setenv(dying_work.STEP, step)
        begun = time.monotonic()
        assert not together(folder)
        assert time.monotonic() - begun < 120
        dying_processes.delenv(dying_work.RANK)
        parsed(folder)
        with dying_processes.context() as going_on:
            going_on.setenv(dying_work.RESUME, "1")
            assert together(folder)
        same(expected, job.results(folder), "after going on")
        return True

    places = [(rank, step) for rank in (0, 1) for step in ("0", "1", "2", "3", "measure")]
    for rank, step in places[:: request.config.getoption("--crash-every")]:
        counted.one(f"{rank} {step}", partial(death, rank, step, tmp_path / f"{rank}-{step}"))
    counted.end(request, "train, one of two processes that share each batch: before each step, and as it evaluates")
