"""The journal of finished tiles: what it records it recalls, and what is none of its own it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from flyspeck.errors import UserError
from flyspeck.infer.resume import TileJournal, called
from flyspeck.infer.source import Item
from flyspeck.types import Detections

TILES = np.array([[0, 0, 64, 48], [32, 0, 96, 48]])
MADE = {"score": 0.3, "size": (64, 48)}


def found(count: int, cut: bool = False) -> Detections:
    boxes = np.arange(4 * count, dtype=np.float32).reshape(-1, 4) + np.array([0, 0, 4, 4], np.float32)
    cuts = {"cut": np.arange(count) % 2 == 0} if cut else {}
    return Detections(boxes, np.full(count, 0.5), np.arange(count) % 2, (48, 96), ("a", "b"), extra=cuts)


def recorded(folder: Path, item: Item) -> None:
    journal = TileJournal(folder, MADE)
    assert (journal.num_kept, journal.num_written) == (0, 0)
    journal.record(item, TILES[0], found(3, cut=True))
    journal.record(item, TILES[1], found(0), verdict="skipped")
    assert journal.num_written == 2
    journal.close()


def test_what_is_recorded_is_recalled(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"12345")
    item = Item("a.png", image, 7)
    recorded(tmp_path / "tiles", item)
    journal = TileJournal(tmp_path / "tiles", MADE)
    assert journal.num_kept == 2
    kept = journal.recall(item, (48, 96), TILES)
    assert sorted(kept) == [0, 1]
    assert (kept[0].verdict, kept[1].verdict) == ("run", "skipped")
    back, true = kept[0].found, found(3, cut=True)
    for a, b in ((back.boxes, true.boxes), (back.scores, true.scores), (back.labels, true.labels)):
        assert_array_equal(a, b)
    assert back.extra["cut"].tolist() == [True, False, True]
    assert (back.image_size, back.classes, back.image_id) == ((48, 96), ("a", "b"), 7)
    assert not journal.recall(Item("b.png", image, 7), (48, 96), TILES)
    assert not journal.recall(item, (48, 97), TILES)
    assert sorted(journal.recall(item, (48, 96), TILES[1:])) == [0]
    journal.close()
    image.write_bytes(b"123456")  # another image under the same name
    journal = TileJournal(tmp_path / "tiles", MADE)
    assert not journal.recall(item, (48, 96), TILES)
    journal.close()


def test_a_stamp_that_is_given_counts(tmp_path: Path) -> None:
    item = Item("a", np.zeros((48, 96)), 1)
    journal = TileJournal(tmp_path, MADE)
    journal.record(item, TILES[0], found(1), stamp=(5, 6))
    journal.close()
    journal = TileJournal(tmp_path, MADE)
    assert sorted(journal.recall(item, (48, 96), TILES, stamp=(5, 6))) == [0]
    assert not journal.recall(item, (48, 96), TILES, stamp=(5, 7))
    assert not journal.recall(item, (48, 96), TILES)
    journal.close()


def test_begun_anew_nothing_is_kept(tmp_path: Path) -> None:
    recorded(tmp_path, Item("a", np.zeros((48, 96)), 1))
    journal = TileJournal(tmp_path, {"score": 0.9}, fresh=True)
    assert journal.num_kept == 0
    journal.close()
    assert len(journal.path.read_text().splitlines()) == 1


def refused(folder: Path, match: str, made: dict[str, Any] | None = None) -> None:
    with pytest.raises(UserError, match=match):
        TileJournal(folder, MADE if made is None else made)


def test_made_otherwise(tmp_path: Path) -> None:
    recorded(tmp_path, Item("a", np.zeros((48, 96)), 1))
    refused(tmp_path, "was made with a least score .* of 0.3, this run has 0.4", {**MADE, "score": 0.4})
    refused(tmp_path, "was made with tile None, this run has 3", {**MADE, "tile": 3})
    assert called("tile") == "tile"


def lines(folder: Path, change: dict[str, Any]) -> Path:
    entry = {
        "name": "a",
        "stamp": [],
        "size": [48, 96],
        "tile": [0, 0, 64, 48],
        "boxes": [[1, 2, 3, 4]],
        "scores": [0.5],
    }
    entry |= {"labels": [1], "cut": [False], "classes": ["a", "b"]} | change
    entry = {key: value for key, value in entry.items() if value != "absent"}
    folder.mkdir(exist_ok=True)
    (folder / "tiles-x.jsonl").write_text(f"{json.dumps({'made_with': MADE})}\n{json.dumps(entry)}\n")
    return folder


@pytest.mark.parametrize(
    "change",
    [
        *({"labels": [2]}, {"labels": [-1]}, {"labels": [0, 1]}, {"boxes": [[1, 2, float("nan"), 4]]}, {"boxes": []}),
        *(
            {"cut": []},
            {"scores": ["x"]},
            {"stamp": "absent"},
            {"size": ["x"]},
            {"tile": "absent"},
            {"labels": [2**70]},
        ),
    ],
)
def test_what_is_no_finished_tile(tmp_path: Path, change: dict[str, Any]) -> None:
    refused(lines(tmp_path / "a", change), "is no finished tile")
    for sound in ({}, {"labels": [0]}, {"classes": [], "labels": [9]}, {"verdict": "empty"}):
        journal = TileJournal(lines(tmp_path / "b", sound), MADE)
        assert journal.num_kept == 1
        journal.close()
        journal.path.unlink()


def test_what_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "tiles-x.jsonl").write_text('{"name": "a"}\n')
    refused(tmp_path, "not a journal of finished tiles")
    (tmp_path / "tiles-x.jsonl").write_text('{"made_with": 3}\n')
    refused(tmp_path, "not a journal of finished tiles")
    lines(tmp_path, {})
    cut = (tmp_path / "tiles-x.jsonl").read_text()
    (tmp_path / "tiles-x.jsonl").write_text(cut[:-30])
    journal = TileJournal(tmp_path, MADE)
    assert journal.num_kept == 0  # a kill cut the line off
    journal.close()
