"""Links that lie where results go: what is written lies in `--out`, and nothing that a link leads to is touched or made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.files import own_place, write_text
from flyspeck.infer.outputs import WRITERS, open_writers
from flyspeck.infer.reading import Result
from flyspeck.infer.results_folder import MARK, ResultsFolder
from flyspeck.infer.resume import TileJournal
from flyspeck.infer.source import Item
from flyspeck.train.curves import Curves
from flyspeck.train.progress import RunFiles
from flyspeck.types import Detections
from small_training import write_squares
from watched_effects import effects


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    return write_squares(tmp_path) / "data" / "squares" / "train.json"


def run(*words: object) -> int:
    return main([str(word) for word in words])


def predicted(out: Path, squares: Path) -> None:
    """A job of every writer, without a model."""
    results = ResultsFolder(out)
    results.clear(tiles=True)
    found = Detections(np.array([[1, 2, 5, 8]]), np.array([0.5]), np.array([0]), (48, 64), ("a",))
    for writer in open_writers(out, list(WRITERS), classes=("a",)):
        writer.add(Result(Item("a.png", np.zeros((48, 64), np.uint8), 1, "a"), found))
        writer.close()
    TileJournal(out / "tiles", {}, fresh=True).close()
    results.record()


def trained(out: Path, squares: Path) -> None:
    """What a run writes as it goes."""
    out.mkdir(exist_ok=True)
    record = {"epoch": 1, "step": 1, "losses": {"a": 1.0}, "lr": 0.1, "images_per_second": 1.0, "seconds": 1.0}
    for reporter in (RunFiles(out), Curves(out, name="a", epochs=1, best="a")):
        reporter.start(total_steps=1, done_steps=0)
        reporter.step(record)
        reporter.epoch(record)
        reporter.close()


VERBS: dict[str, Callable[[Path, Path], object]] = {
    "predict": predicted,
    "train": trained,
    "inspect": lambda out, squares: run("data", "inspect", squares, "--out", out, "--workers", 1),
    "fix": lambda out, squares: run("data", "inspect", squares, "--fix", out, "--workers", 1),
    "split": lambda out, squares: run("data", "split", squares, "--cut", "--out", out, "--workers", 1),
    "shrink": lambda out, squares: run("data", "shrink", squares, "--by", 2, "--out", out, "--workers", 1),
    "tile": lambda out, squares: run(
        "data", "tile", squares, "--tile", "32x32", "--overlap", 4, "--out", out, "--workers", 1
    ),
    "scenes": lambda out, squares: run("data", "scenes", "--out", out, "--num-images", 1, "--size", "64x64"),
    "convert to voc": lambda out, squares: run("data", "convert", squares, "--to", "voc", "--out", out),
    "convert to coco": lambda out, squares: run("data", "convert", squares, "--to", "coco", "--out", out / "a.json"),
    "init": lambda out, squares: run(
        "init", squares, "--val", squares.with_name("val.json"), "--out", out / "recipe.yaml"
    ),
    "schema": lambda out, squares: (out.mkdir(exist_ok=True), run("schema", "--out", out / "schema.json")),
}


@pytest.mark.parametrize("dangling", [True, False], ids=["to nothing", "to a file"])
@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=pytest.mark.slow if verb == "init" else ()) for verb in VERBS]
)
def test_no_result_goes_through_a_link(verb: str, dangling: bool, tmp_path: Path, squares: Path) -> None:
    """Whatever the verb writes in an empty folder, a link lies in its place the next time."""
    VERBS[verb](tmp_path / "first", squares)
    names = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file()]
    assert names, "the verb wrote nothing"
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    for number, name in enumerate(names):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if not dangling:
            (outside / str(number)).write_text("mine")
        if name.name != MARK:
            (out / name).symlink_to(outside / str(number))
    with effects(out, tmp_path / "data", Path("/tmp/flyspeck-none")) as seen, contextlib.suppress(UserError):
        VERBS[verb](out, squares)
    assert not [line for line in seen.found if str(outside) in line], seen.found
    if dangling:
        assert not list(outside.iterdir())
    else:
        assert {path.read_text() for path in outside.iterdir()} == {"mine"}


def test_folders_that_are_links_take_no_result(tmp_path: Path, squares: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    for name in ("labels", "voc", "tiles", "drawn"):
        (out / name).symlink_to(outside)
    with pytest.raises(UserError, match="no prediction is known"):
        predicted(out, squares)
    (out / MARK).write_text("# Results\nlabels\nvoc\ntiles\ndrawn\n")
    with pytest.raises(UserError, match="'tiles' is a link"):
        ResultsFolder(out, resume=True)
    with pytest.raises(UserError, match="earlier prediction"):
        ResultsFolder(out)
    (outside / "mine").write_text("mine")
    ResultsFolder(out, overwrite=True).clear(tiles=True)
    assert sorted(os.listdir(out)) == [MARK]
    assert (outside / "mine").read_text() == "mine"


def test_a_folder_for_results_may_itself_be_a_link(tmp_path: Path, squares: Path) -> None:
    """The user named it: another disk, say."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    predicted(tmp_path / "out", squares)
    assert (tmp_path / "disk" / "detections.json").is_file()


def test_a_link_laid_for_the_temporary_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".a.{os.getpid()}.part.txt").symlink_to(victim)
    write_text(tmp_path / "out" / "a.txt", "text")
    assert not victim.exists()
    assert (tmp_path / "out" / "a.txt").read_text() == "text"


def test_own_place(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "mine.png")
    (tmp_path / "a.png").symlink_to(tmp_path / "mine.png")
    assert own_place(tmp_path / "a.png") == tmp_path / "a.png"
    assert not (tmp_path / "a.png").exists()
    assert (tmp_path / "mine.png").exists()
    assert own_place(tmp_path / "mine.png").exists()


@pytest.fixture(autouse=True)
def quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()
