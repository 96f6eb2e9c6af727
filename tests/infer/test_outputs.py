from __future__ import annotations

import errno
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from planted import SeesPlanted, plant

from flyspeck.errors import UserError, missing_extra
from flyspeck.infer import outputs
from flyspeck.infer.predictor import Journal, Predictor, Result
from flyspeck.infer.resume import TileJournal
from flyspeck.infer.source import Item
from flyspeck.infer.writer import close_all
from flyspeck.types import Detections


def result(number: int, boxes: int = 2) -> Result:
    found = Detections(np.tile([1, 2, 5, 8], (boxes, 1)), np.full(boxes, 0.5), np.zeros(boxes), (30, 40), ("a",))
    return Result(Item(f"d/{number}.png", np.zeros((30, 40), np.uint8), number, f"d/{number}"), found)


def test_json_is_whole_after_every_image(tmp_path: Path) -> None:
    writer = outputs.CocoWriter(tmp_path, classes=("a",), category_ids=[7])
    for count, number in enumerate((3, 1, 2)):
        read = json.loads((tmp_path / "detections.json").read_text())
        assert len(read) == 2 * count
        assert len(json.loads((tmp_path / "images.json").read_text())["images"]) == count
        writer.add(result(number))
    writer.add(result(9, boxes=0))
    writer.close()
    read = json.loads((tmp_path / "detections.json").read_text())
    assert [r["image_id"] for r in read] == [3, 3, 1, 1, 2, 2]
    assert read[0] == {"image_id": 3, "category_id": 7, "bbox": [1.0, 2.0, 4.0, 6.0], "score": 0.5}
    table = json.loads((tmp_path / "images.json").read_text())
    assert table["categories"] == [{"id": 7, "name": "a"}]
    assert table["images"][0] == {"id": 3, "file_name": "d/3.png", "height": 30, "width": 40}


class _FillsUp:
    """A file on a disk that takes some of a write and no more."""

    def __init__(self, file: object) -> None:
        self.file = file

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        self.file.write(data[:40])  # pyright: ignore[reportAttributeAccessIssue]
        self.file.flush()  # pyright: ignore[reportAttributeAccessIssue]
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_what_was_written_readable(tmp_path: Path) -> None:
    writer = outputs.CocoWriter(tmp_path, classes=("a",))
    writer.add(result(1))
    results = writer._results
    results._file = _FillsUp(results._file)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="No space left"):
        writer.add(result(2))
    writer.close()
    assert [r["image_id"] for r in json.loads((tmp_path / "detections.json").read_text())] == [1, 1]


class _TextFillsUp(_FillsUp):
    def write(self, data: str) -> int:
        self.file.write(data[:20])  # pyright: ignore[reportAttributeAccessIssue]
        self.file.flush()  # pyright: ignore[reportAttributeAccessIssue]
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_no_half_line_in_the_csv(tmp_path: Path) -> None:
    writer = outputs.CsvWriter(tmp_path)
    writer.add(result(1))
    writer._lines._file = _TextFillsUp(writer._lines._file)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="No space left"):
        writer.add(result(2))
    writer.close()
    lines = (tmp_path / "detections.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["file_name", "d/1.png", "d/1.png"]


def test_every_format(tmp_path: Path) -> None:
    formats = [name for name in outputs.WRITERS if name != "geoparquet" or find_spec("pyarrow")]
    for writer in outputs.open_writers(tmp_path, formats, classes=("a",)):
        writer.add(result(4))
        writer.add(result(5, boxes=0))
        writer.close()
    assert (tmp_path / "labels" / "d" / "4.txt").read_text().count("\n") == 2
    assert (tmp_path / "labels" / "d" / "5.txt").read_text() == ""
    assert len(json.loads((tmp_path / "geojson" / "d" / "4.geojson").read_text())["features"]) == 2
    lines = (tmp_path / "detections.csv").read_text().splitlines()
    assert len(lines) == 3
    assert lines[1] == "d/4.png,4,1,2,5,8,0.5,0,a,0"
    with pytest.raises(UserError, match="did you mean 'coco'"):
        outputs.open_writers(tmp_path, ["cocoo"], classes=())


OBJECTS = np.array([[2, 2, 6, 6], [30, 25, 38, 33], [90, 60, 97, 70]])


class _StopsAfter(SeesPlanted):
    """Fails after some windows, as a killed process does."""

    left = 1_000_000

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        if self.left < len(windows):
            raise KeyboardInterrupt
        self.left -= len(windows)
        return super().__call__(windows)


@pytest.mark.parametrize("stop", [0, 1, 7, 12])
def test_a_stopped_job_goes_on_with_what_is_missing_and_nothing_else(tmp_path: Path, stop: int) -> None:
    np.save(tmp_path / "a.npy", plant((80, 100), OBJECTS))
    settings = {"tile": 32, "overlap": 12, "batch_size": 1}
    whole = SeesPlanted(OBJECTS)
    expected = Predictor(whole, **settings).predict(tmp_path / "a.npy")[0]
    first = _StopsAfter(OBJECTS)
    first.left = stop
    journal = TileJournal(tmp_path / "j", {"score": 0.05}, fresh=True)
    with pytest.raises(KeyboardInterrupt):
        list(Predictor(first, **settings).stream([tmp_path / "a.npy"], journal=journal))
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"name": "a.npy", "size": [80')  # the line that a kill cut off
    second = SeesPlanted(OBJECTS)
    again = TileJournal(tmp_path / "j", {"score": 0.05})
    assert again.num_kept == stop
    told: list[int] = []
    (resumed,) = Predictor(second, **settings).stream([tmp_path / "a.npy"], journal=again, progress=told.append)
    again.close()
    assert sum(second.batches) == sum(whole.batches) - stop
    assert sum(told) == sum(whole.batches)
    for name in ("boxes", "scores", "labels"):
        assert_array_equal(getattr(resumed.detections, name), getattr(expected, name))
    third = SeesPlanted(OBJECTS)
    final = TileJournal(tmp_path / "j", {"score": 0.05})
    (done,) = Predictor(third, **settings).stream([tmp_path / "a.npy"], journal=final)
    final.close()
    assert third.batches == []
    assert_array_equal(done.detections.boxes, expected.boxes)


def test_a_journal_of_other_settings_is_refused(tmp_path: Path) -> None:
    TileJournal(tmp_path, {"score": 0.05, "bands": (1, 2)}).close()
    TileJournal(tmp_path, {"score": 0.05, "bands": (1, 2)}).close()
    with pytest.raises(UserError, match=r"--keep-score.* of 0\.05, this run has 0\.1"):
        TileJournal(tmp_path, {"score": 0.1, "bands": (1, 2)})
    TileJournal(tmp_path, {"score": 0.1}, fresh=True).close()


def test_a_changed_image_is_done_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((8, 8), np.uint8))
    journal = TileJournal(tmp_path / "j", {})
    item, tile = Item("a", path, 1), np.array([[0, 0, 8, 8]])
    journal.record(item, tile[0], Detections.empty((8, 8)))
    journal.close()
    later = TileJournal(tmp_path / "j", {})
    later.close()
    assert len(later.recall(item, (8, 8), tile)) == 1
    np.save(path, np.zeros((8, 8), np.uint16))
    assert later.recall(item, (8, 8), tile) == {}


def test_the_plain_journal_keeps_nothing() -> None:
    journal, item = Journal(), Item("a", np.zeros((2, 2), np.uint8), 1)
    journal.record(item, np.array([0, 0, 2, 2]), Detections.empty((2, 2)))
    assert journal.recall(item, (2, 2), np.array([[0, 0, 2, 2]])) == {}


def test_a_widerface_submission_comes_back_as_it_went(tmp_path: Path) -> None:
    from flyspeck.data.annotations import Annotations
    from flyspeck.evaluate.widerface import read_wider_submission

    boxes = np.array([[1, 2, 5, 8], [10.25, 3.125, 11.25, 4.5], [0, 0, 7, 9]], np.float32)
    found = Detections(boxes, np.array([0.25, 0.875, 1 / 3], np.float32), np.zeros(3), (30, 40), ("face",))
    writer = outputs.PerImageWriter(tmp_path, "widerface")
    for name, one in (("0--Parade/0_Parade_a.jpg", found), ("1--Shop/b.jpg", found[:0])):
        writer.add(Result(Item(f"images/{name}", np.zeros((30, 40), np.uint8), 1, f"images/{name[:-4]}"), one))
    path = tmp_path / "widerface" / "images" / "0--Parade" / "0_Parade_a.txt"
    assert path.read_text().splitlines()[:3] == ["0_Parade_a.jpg", "3", "10.25 3.125 1 1.375 0.875"]
    ids = np.array(["0--Parade/0_Parade_a", "1--Shop/b"], object)
    none = np.zeros(0)
    table = Annotations(
        image_ids=ids, file_names=("a.jpg", "b.jpg"), sizes=np.full((2, 2), -1), image_index=none.astype(int),
        boxes=np.zeros((0, 4)), labels=none.astype(int), area=none, ignore=none.astype(bool), crowd=none.astype(bool),
        box_ids=none.astype(int), classes=("face",), category_ids=(1,),
    )  # fmt: skip
    again = read_wider_submission(tmp_path / "widerface", table)
    assert again.notes == ()
    assert_array_equal(again.image_index, [0, 0, 0])
    assert_array_equal(again.boxes, boxes[[1, 2, 0]])
    assert_array_equal(again.scores.astype(np.float32), found.scores[[1, 2, 0]])


def _open_below(folder: Path) -> list[str]:
    """Files there that this process holds open."""
    found = [os.readlink(f"/proc/self/fd/{number}") for number in _numbers()]
    return [path for path in found if path.startswith(str(folder))]


def _numbers() -> list[str]:
    return [number for number in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{number}")]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted on Linux alone")
@pytest.mark.parametrize("how", ["opening", "writing"])
def test_writers_that_cannot_all_be_opened_leave_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whichever file is the one that fails: the exception is held, so that nothing is closed by chance."""
    plain, left = Path.open, 0

    def opened(self: Path, *args: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if how == "opening" and left == 0:
            raise OSError(errno.EMFILE, "Too many open files")
        file = plain(self, *args, **more)
        if how == "writing" and left == 0:
            return _TextFillsUp(file) if "b" not in (args[0] if args else "r") else _FillsUp(file)
        return file

    monkeypatch.setattr(Path, "open", opened)
    errors: list[Exception] = []
    for number in range(1, 30):
        left, folder = number, tmp_path / str(number)
        try:
            writers = outputs.open_writers(folder, ["coco", "cvat", "csv", "label-studio"], classes=("a",))
        except (UserError, OSError) as error:
            errors.append(error)
            assert not _open_below(folder)
            continue
        assert left > 0
        for writer in writers:
            writer.close()
        break
    assert len(errors) == 5
    monkeypatch.setattr("flyspeck.infer.geopackage._BASE", "CREATE TABLE")
    with pytest.raises(UserError, match="could not be written"):
        outputs.open_writers(tmp_path / "map", ["csv", "gpkg"], classes=("a",))
    assert not _open_below(tmp_path / "map")


def test_a_writer_that_is_not_there_closes_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an extra is missing."""

    def missing(*_: object, **__: object) -> outputs.Writer:
        raise missing_extra("pyarrow", "geoparquet")

    closed = []
    monkeypatch.setitem(outputs.WRITERS, "geoparquet", missing)
    monkeypatch.setattr(outputs.CvatWriter, "close", lambda self: closed.append(self._file.close()))
    with pytest.raises(UserError, match="pyarrow"):
        outputs.open_writers(tmp_path, ["cvat", "geoparquet"], classes=("a",))
    assert len(closed) == 1


def test_all_are_closed_though_one_fails() -> None:
    closed = []

    class One:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)
            if self.name == "b":
                raise OSError("full")

    with pytest.raises(OSError, match="full"):
        close_all([One(name) for name in "abc"])
    assert closed == ["a", "b", "c"]
