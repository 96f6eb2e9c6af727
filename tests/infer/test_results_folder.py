from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flyspeck.errors import UserError
from flyspeck.infer.outputs import WRITERS, open_writers
from flyspeck.infer.reading import Result
from flyspeck.infer.results_folder import MARK, ResultsFolder, written_in
from flyspeck.infer.source import Item, find_items
from flyspeck.types import Detections


def wrote(folder: Path) -> Path:
    """A folder as a job leaves it."""
    results = ResultsFolder(folder)
    for name in (
        "detections.json",
        "labels/a.txt",
        "labels/old.txt",
        "drawn/a.png",
        "tiles/tiles-x-1.jsonl",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    results.record()
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_results_of_two_jobs_are_not_mixed(tmp_path: Path) -> None:
    folder = wrote(tmp_path / "out")
    (folder / "mine.txt").write_text("notes")
    before = files(folder)
    with pytest.raises(UserError, match=r"earlier prediction; --resume .*--overwrite"):
        ResultsFolder(folder)
    assert files(folder) == before
    results = ResultsFolder(folder, overwrite=True)
    assert files(folder) == before, "nothing goes before the job is known to run"
    results.clear(tiles=True)
    assert files(folder) == {MARK, "mine.txt"}


def test_what_comes_beside_a_job_is_not_its_own(tmp_path: Path) -> None:
    results = ResultsFolder(tmp_path)
    (tmp_path / "detections.json").write_text("x")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "photo.jpg").write_text("copied here while the job ran")
    results.record(["clip.tracked.mp4"])
    (tmp_path / "clip.tracked.mp4").write_text("x")
    ResultsFolder(tmp_path, overwrite=True).clear(tiles=True)
    assert files(tmp_path) == {MARK, "new/photo.jpg"}


def test_every_place_that_a_format_writes_is_listed(tmp_path: Path) -> None:
    results = ResultsFolder(tmp_path)
    one = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), (9, 9), ("a",))
    for writer in open_writers(tmp_path, list(WRITERS), classes=("a",)):
        writer.add(Result(Item("a.png", np.zeros((9, 9), np.uint8), 1, "a"), one))
        writer.close()
    results.clear(tiles=True)
    ResultsFolder(tmp_path, overwrite=True).clear(tiles=True)
    assert files(tmp_path) == {MARK}


def test_resuming_keeps_the_tiles_alone(tmp_path: Path) -> None:
    folder = wrote(tmp_path / "out")
    ResultsFolder(folder, resume=True).clear(tiles=False)
    assert files(folder) == {MARK, "tiles/tiles-x-1.jsonl"}
    with pytest.raises(UserError, match="give one"):
        ResultsFolder(folder, resume=True, overwrite=True)


def test_files_of_somebody_else_stay(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "truth.txt").write_text("0 .5 .5 .1 .1")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match="'labels' is there, and no prediction is known"):
            ResultsFolder(tmp_path, **options)
    assert files(tmp_path) == {"labels/truth.txt"}


def test_a_folder_with_other_things_takes_results(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("x")
    wrote(tmp_path)
    ResultsFolder(tmp_path, overwrite=True).clear(tiles=True)
    assert files(tmp_path) == {MARK, "images/a.png"}


def test_results_of_versions_without_a_list(tmp_path: Path) -> None:
    for name in ("tiles/tiles-x-1.jsonl", "pictures/a.png", "labels/a.txt", "other.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert set(written_in(tmp_path) or ()) == {"tiles", "pictures", "labels"}
    with pytest.raises(UserError, match="earlier prediction"):
        ResultsFolder(tmp_path)
    ResultsFolder(tmp_path, overwrite=True).clear(tiles=True)
    assert files(tmp_path) == {MARK, "other.txt"}


def test_a_list_cannot_name_what_lies_outside(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    out = tmp_path / "out"
    out.mkdir()
    (out / MARK).write_text(f"../precious\n{tmp_path / 'precious'}\n..\n")
    ResultsFolder(out, overwrite=True).clear(tiles=True)
    assert (tmp_path / "precious").is_file()


def test_results_are_no_images_of_the_next_job(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    wrote(tmp_path / "found")
    said: list[str] = []
    items, _ = find_items([tmp_path], say=said.append)
    assert [item.name for item in items] == ["a.png"]
    assert len(said) == 1
    assert "found holds results of an earlier prediction" in said[0]
    items, _ = find_items([tmp_path / "found" / "drawn"])
    assert [item.name for item in items] == ["a.png"], "asked for by name"


def test_results_beside_the_images_are_no_images_of_the_next_job(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    wrote(tmp_path)
    said: list[str] = []
    items, _ = find_items([tmp_path], say=said.append)
    assert [item.name for item in items] == ["a.png"]
    assert len(said) == 1
    assert "1 image of its own passed over" in said[0]
