"""Whatever a disk does at whichever operation, what was finished is there, what is begun again ends as if nothing had been."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_disk import KILLED, Mode, run

from flyspeck.errors import UserError
from small_training import base_recipe, write_squares

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked for every crash")
MODES: tuple[Mode, ...] = ("kill", "torn", "full", "io")


@dataclass(frozen=True)
class Job:
    """A verb, as it is begun and as it goes on."""

    begin: Callable[[Path], object]
    go_on: Callable[[Path], object]
    """In a folder in which it was broken off; ends it."""
    results: Callable[[Path], dict[str, object]]
    """What must be the same, whatever happened."""
    whole: Callable[[Path], object] = lambda folder: None
    """Checks that no result is half there, right after the crash."""


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("squares")) / "data" / "squares"


def plain_recipe(squares: Path, **train: Any) -> Any:
    from flyspeck.train.config import parse_recipe

    recipe = base_recipe()
    recipe["data"] |= {"train": str(squares / "train.json"), "val": str(squares / "val.json")}
    recipe["train"] |= {"epochs": 2, "eval_every": 1, "log_every": 1, "checkpoint_every": 1, "ema": 0.9, **train}
    recipe["name"] = "crash"
    return parse_recipe(recipe)


def parsed(folder: Path) -> None:
    """Every file that is not a log is whole: those of JSON are read, those of weights opened."""
    from flyspeck.train.checkpoint import load_state, load_weights

    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue  # temporary files of the process that was killed
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            load_weights(path)
        elif path.name == "state.pt":
            load_state(path)


def training(squares: Path) -> Job:
    from flyspeck.train.run import begun, train

    recipe = plain_recipe(squares)

    def results(folder: Path) -> dict[str, object]:
        from flyspeck.train.checkpoint import load_weights

        found: dict[str, object] = {
            name: (folder / name).read_bytes() for name in ("detections.json", "evaluation.json", "recipe.yaml")
        }
        for name in ("best.safetensors", "last.safetensors"):
            found |= {f"{name} {key}": tensor for key, tensor in load_weights(folder / name)[0].items()}
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found["log"] = [(one["kind"], one["epoch"], one.get("step"), one["losses"], one.get("metrics")) for one in log]
        return found

    return Job(
        lambda folder: bool(train(recipe, folder)),
        lambda folder: bool(train(recipe, folder, resume=begun(folder))),
        results,
        parsed,
    )


def converting(squares: Path, kind: str) -> Job:
    from flyspeck.cli.main import main

    def convert(folder: Path) -> int:
        out = folder / "set.json" if kind == "coco" else folder
        return main(["data", "convert", str(squares / "train.json"), "--to", kind, "--out", str(out)])

    def results(folder: Path) -> dict[str, object]:
        paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}

    return Job(convert, convert, results, parsed)


def silent(_: object) -> None:
    """Nobody listens."""


def predicting(squares: Path, resume: bool) -> Job:
    from spots import Spots

    from flyspeck.infer.job_images import DrawRule, ImageJob
    from flyspeck.infer.predictor import Predictor
    from flyspeck.infer.processes import Processes
    from flyspeck.infer.source import find_items

    def job(folder: Path, *, again: bool) -> int:
        items, _ = find_items([squares])
        predictor = Predictor(Spots(), tile=(32, 32), overlap=8, batch_size=2)
        done = {"resume": again and resume, "overwrite": again and not resume}
        ImageJob(
            items=items[:4], categories=None, truth=None, made_with={"a": 1}, drawing=DrawRule(images=1, score=0.5, heat=False),
            out=folder, formats=["coco", "csv", "yolo", "cvat"], classes=("spot",), say=silent, warn=silent, **done,
        ).run(predictor, Processes())  # fmt: skip
        return 0

    def results(folder: Path) -> dict[str, object]:
        names = ("detections.json", "images.json", "detections.csv", "cvat.xml")
        paths = [*(folder / name for name in names), *sorted((folder / "labels").rglob("*.txt"))]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    return Job(lambda folder: job(folder, again=False), lambda folder: job(folder, again=True), results)


def table(squares: Path) -> Job:
    from flyspeck.plan.state import FILE, open_state

    def begin(folder: Path, *, again: bool = False) -> int:
        state = open_state(folder, {"a": 1}, resume=again and (folder / FILE).is_file())
        for stage in ("one", "two", "three"):
            if stage not in state.done:
                state.keep(stage, {"value": stage})
        return 0

    def results(folder: Path) -> dict[str, object]:
        return {"done": json.loads((folder / FILE).read_text())["done"]}

    return Job(begin, lambda folder: begin(folder, again=True), results, parsed)


JOBS: dict[str, Callable[[Path], Job]] = {
    "train": training,
    "predict --resume": lambda squares: predicting(squares, True),
    "predict --overwrite": lambda squares: predicting(squares, False),
    "convert to coco": lambda squares: converting(squares, "coco"),
    "convert to yolo": lambda squares: converting(squares, "yolo"),
    "convert to voc": lambda squares: converting(squares, "voc"),
    "stages of auto": table,
}


def same(one: dict[str, object], other: dict[str, object], said: str) -> None:
    assert one.keys() == other.keys(), said
    for name, value in one.items():
        got = other[name]
        equal = torch.equal(value, got) if isinstance(value, torch.Tensor) else value == got  # type: ignore[arg-type]
        assert equal, f"{said}: {name}"


@dataclass
class Tally:
    """Of a job: operations, and crashes survived, by mode."""

    operations: int
    survived: dict[str, int]


def crash_everywhere(name: str, squares: Path, place: Path, *, every: bool, modes: tuple[Mode, ...] = MODES) -> Tally:
    """Crashes a job at every operation, or at few, by every mode; it goes on and must end as an undisturbed one."""
    job = JOBS[name](squares)
    code, count, said = run(lambda: job.begin(place / "whole"), place / "whole", mode="count")
    assert code == 0, said
    expected = job.results(place / "whole")
    assert count >= 3
    tally = Tally(count, dict.fromkeys(modes, 0))
    for mode in modes:
        for at in range(1, count + 1) if every else sorted({2, count // 2, count - 1}):
            folder = place / f"{mode}{at}"
            where = f"{name}, {mode} at operation {at} of {count}"
            code, _, said = run(lambda folder=folder: job.begin(folder), folder, mode=mode, at=at)
            assert code in ((KILLED,) if mode in ("kill", "torn") else (0, 2)), f"{where}: {code} {said}"
            job.whole(folder)
            if code == 0:  # what failed was not needed: all is there already
                same(expected, job.results(folder), where)
            code, _, said = run(lambda folder=folder: job.go_on(folder), folder)
            assert code == 0, f"{where}: going on gave {code} {said}"
            same(expected, job.results(folder), where)
            tally.survived[mode] += 1
    return tally


@pytest.mark.parametrize("name", ["predict --resume", "convert to coco", "stages of auto"])
def test_a_crash_here_and_there(name: str, squares: Path, tmp_path: Path) -> None:
    tally = crash_everywhere(name, squares, tmp_path, every=False, modes=("torn",))
    assert all(tally.survived.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_crash_at_every_operation(
    name: str, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    tally = crash_everywhere(name, squares, tmp_path, every=True)
    with capsys.disabled():
        print(f"\n{name}: {tally.operations} operations, survived {tally.survived}", end="")
    kept = request.config.getoption("--crash-json")
    if kept:
        path = Path(kept)
        found = json.loads(path.read_text()) if path.is_file() else {}
        found[name] = {"operations": tally.operations, "survived": tally.survived}
        path.write_text(json.dumps(found, indent=1) + "\n")
    assert all(count == tally.operations for count in tally.survived.values())


def test_the_disk_breaks_as_it_should(tmp_path: Path) -> None:
    """What the tests above rest on."""

    def work() -> int:
        (tmp_path / "out").mkdir(exist_ok=True)
        with (tmp_path / "out" / "a.txt").open("w") as file:
            file.write("0123456789")
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp_path / "out" / "a.txt", tmp_path / "out" / "b.txt")
        return 0

    folder = tmp_path / "out"
    code, count, _ = run(work, folder, mode="count")
    assert (code, count) == (0, 6)  # mkdir, open, write, flush, fsync, rename
    (folder / "b.txt").unlink()
    for at, left in ((2, None), (3, ""), (4, ""), (5, "0123456789"), (6, "0123456789")):
        (folder / "a.txt").unlink(missing_ok=True)
        assert run(work, folder, mode="kill", at=at)[0] == KILLED
        assert ((folder / "a.txt").read_text() if (folder / "a.txt").exists() else None) == left, at
    assert run(work, folder, mode="torn", at=3)[0] == KILLED
    assert (folder / "a.txt").read_text() == "01234"
    code, _, said = run(work, folder, mode="io", at=5)
    assert code == 2
    assert "Input/output error" in said
    assert run(lambda: 1 / 0, folder)[0] == 3
    code, _, said = run(work, folder, mode="full", at=4)
    assert "No space left" in said
    assert run(lambda: 7, folder)[0] == 7

    def refuse() -> None:
        raise UserError("no")

    assert run(refuse, folder) == (2, 0, "no")
    assert np.isfinite(count)
