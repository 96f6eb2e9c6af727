"""Damage that a campaign, or a look, found to end in a traceback: each is one line now."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from flyspeck.data.bands import KEY as PIXELS
from flyspeck.data.bands import rule_of
from flyspeck.data.classification import read_labelled_images
from flyspeck.data.enlarge import described_enlargement
from flyspeck.errors import UserError
from flyspeck.evaluate.score_curve import KEY as CURVE
from flyspeck.evaluate.score_curve import ScoreCurve
from flyspeck.files import read_json, read_records
from flyspeck.infer.resume import TileJournal
from flyspeck.infer.source import Item
from flyspeck.infer.video.journal import restored

TILE = {
    "name": "a.png",
    "stamp": [1, 2],
    "size": [48, 64],
    "tile": [0, 0, 64, 48],
    "boxes": [[1, 2, 3, 4]],
    "scores": [0.5],
}
TILE |= {"labels": [0], "cut": [False], "classes": ["a"]}
EPOCH = {"kind": "epoch", "epoch": 1, "step": 2, "losses": {"a": 1.0}, "metrics": {"b": 0.5}}


def packed(folder: Path, **changes: bytes) -> Path:
    """`train.npz` whose members are those of a sound one, or other bytes."""
    with zipfile.ZipFile(folder / "train.npz", "w") as archive:
        for name in ("data", "offsets", "labels", "classes"):
            stream = io.BytesIO()
            np.save(stream, np.array([0, 1]) if name != "classes" else np.array(["a", "b"]))
            archive.writestr(f"{name}.npy", changes.get(name, stream.getvalue()))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', ((" + b" " * 90},
        {"labels": b"no array"},
        {"offsets": b""},
        {},
    ],
)
def test_packed_images_that_are_damaged(changes: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        read_labelled_images(packed(tmp_path, **changes), "train")


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": [[1, 2, 3]]},
        {"boxes": [[1, 2, 3, None]]},
        {"scores": [0.5, 0.5]},
        {"labels": [7]},
        {"labels": ["x"]},
        {"size": 5},
        {"tile": None},
        {"classes": None},
        {"cut": []},
        {"stamp": ...},
    ],
)
def test_a_tile_that_is_damaged(change: dict[str, object], tmp_path: Path) -> None:
    entry = {key: value for key, value in {**TILE, **change}.items() if value is not ...}
    (tmp_path / "tiles-a-1.jsonl").write_text(json.dumps({"made_with": {}}) + "\n" + json.dumps(entry) + "\n")
    with pytest.raises(UserError, match=r"line 2: is no finished tile; begin anew with --overwrite"):
        TileJournal(tmp_path, {})


def test_a_journal_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "tiles-a-1.jsonl").write_text(json.dumps({"made_with": [1]}) + "\n")
    with pytest.raises(UserError, match="not a journal"):
        TileJournal(tmp_path, {})


@pytest.mark.parametrize("entry", [{}, {"size": [48]}, {**TILE, "tiles": "x"}, {**TILE, "tiles": 1, "scores": []}])
def test_a_frame_that_is_damaged(entry: dict[str, object]) -> None:
    with pytest.raises(UserError, match="entry in the journal is broken"):
        restored(Item("v", np.zeros((48, 64, 3), np.uint8), 1), entry)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "x"},
        {"epoch": "1"},
        {"losses": []},
        {"losses": {"a": "1"}},
        {"metrics": {"b": None}},
        {"epoch": 10**400},
        {"kind": "step", "losses": ...},
        {"images_per_second": "x"},
    ],
)
def test_a_record_that_is_damaged(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    entry = {key: value for key, value in {**EPOCH, **change}.items() if value is not ...}
    path.write_text(json.dumps(EPOCH) + "\n" + json.dumps(entry) + "\n")
    with pytest.raises(UserError, match=r"record 2: is no record of a run"):
        read_records(path)
    path.write_text(json.dumps({**EPOCH, "losses": {"a": float("nan")}, "metrics": {"b": -1}}) + "\n")
    assert len(read_records(path)) == 1


@pytest.mark.parametrize(
    "change",
    [{"precision": []}, {"score": ["x"]}, {"recall": None}, {"images": "x"}, {"false_positives": ...}, {"score": 5}],
)
def test_a_curve_of_scores_that_is_damaged(change: dict[str, object]) -> None:
    sound = {"score": [0.5], "precision": [1.0], "recall": [0.5], "false_positives": [0.1], "images": 3, "objects": 4}
    assert ScoreCurve.of({CURVE: sound}) is not None
    told = {key: value for key, value in {**sound, **change}.items() if value is not ...}
    with pytest.raises(UserError, match="scores cannot be read"):
        ScoreCurve.of({CURVE: told})


@pytest.mark.parametrize(
    "said",
    [
        {PIXELS: 5},
        {PIXELS: {}},
        {PIXELS: {"channels": "x"}},
        {PIXELS: {"channels": 3, "bands": 3}},
        {PIXELS: {"channels": 3, "bands": [1e400]}},
        {PIXELS: {"channels": 3, "value_range": [[0]]}},
        {"mean": 3},
        {},
    ],
)
def test_a_rule_of_pixels_that_is_damaged(said: dict[str, object]) -> None:
    assert rule_of({PIXELS: {"channels": 3, "bands": [1, 2, 3], "value_range": [[0, 255]]}}).bands == (1, 2, 3)
    with pytest.raises(UserError, match="says of its pixels cannot be read"):
        rule_of(said)


@pytest.mark.parametrize(
    "said",
    [5, {"factor": -1}, {"factor": "x"}, {"size": 2.0}, {"squeeze": [64]}, {"squeeze": [64, 1e400]}, {"factor": 1e10}],
)
def test_an_enlargement_that_is_damaged(said: object) -> None:
    assert described_enlargement({"enlarge": {"squeeze": [64, 48]}}, scale=None).squeeze == (64, 48)
    with pytest.raises(UserError, match="says that images are enlarged by"):
        described_enlargement({"enlarge": said}, scale=None)


@pytest.mark.parametrize("text", ["{", "[]", "1", "\xff", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_a_file_of_ours_that_is_damaged(text: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="JSON") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
