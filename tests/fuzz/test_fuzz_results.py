"""Damaged files of detections: a table or one line, as for the files of annotations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fuzz_seeds import seeds, write
from mutations import mutated
from test_fuzz_readers import FEW, MANY, no_hang, printable

from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.evaluate import DetectionTable

FOUND = [
    {"image_id": image, "category_id": kind, "bbox": [4, 5, 6.5, 7], "score": score}
    for image, kind, score in ((1, 3, 0.9), (2, 4, 0.5), (2, 3, 1))
]


def fuzz(folder: Path, count: int) -> tuple[int, int]:
    """How many of `count` damaged files were read, and how many refused."""
    annotations = read_annotations(write(seeds()["coco"][0], folder))
    path, sound, read = folder / "dt.json", json.dumps(FOUND).encode(), 0
    for number in range(count):
        path.write_bytes(mutated(sound, np.random.default_rng([7, number])))
        try:
            with no_hang(60):
                table = DetectionTable.from_coco(path, annotations)
        except UserError as error:
            printable(str(error))
            continue
        read += 1
        assert np.isfinite(table.boxes).all()
        assert np.isfinite(table.scores).all()
        for note in table.notes:
            printable(note)
    return read, count - read


def test_damaged_detections(tmp_path: Path) -> None:
    assert min(fuzz(tmp_path, FEW)) > 0


@pytest.mark.slow
def test_two_thousand_damaged_files_of_detections(tmp_path: Path) -> None:
    assert min(fuzz(tmp_path, MANY)) > MANY // 50
