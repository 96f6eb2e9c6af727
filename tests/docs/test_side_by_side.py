"""The comparison of face detectors: every class counts as a face, boxes in one place as one, and perfect is perfect."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from flyspeck.data.readers import read_annotations
from flyspeck.types import Detections

FOLDER = Path(__file__).parents[2] / "benchmarks" / "faces"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("side_by_side")


def write_set(folder: Path) -> Path:
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    boxes = [[4, 4, 6, 6], [20, 20, 10, 10], [40, 10, 16, 16]]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 3 + i, "bbox": box} for i, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 4, "name": "x"}, {"id": 5, "name": "y"}, {"id": 6, "name": "z"}],
    }
    (folder / "gt.json").write_text(json.dumps(content))
    return folder / "gt.json"


def test_a_perfect_detector_of_any_classes_is_perfect(benchmark: ModuleType, tmp_path: Path) -> None:
    table = benchmark.as_faces(read_annotations(write_set(tmp_path)))
    assert table.classes == ("face",)

    def perfect(images: list[np.ndarray]) -> list[Detections]:
        # Of each face two boxes, as of two classes.
        boxes, size = np.concatenate([table.boxes, table.boxes]), images[0].shape[:2]
        scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
        return [Detections(boxes, scores, np.repeat([0, 1], 3), size, ("x", "y"))]

    metrics, found = benchmark.measure(perfect, table, 1.0)
    assert [len(one) for one in found] == [3]
    assert [metrics[f"ap50_{area}"] for area in ("all", "tiny1", "tiny2", "tiny3")] == pytest.approx([1] * 4)
    benchmark.draw(table, {"perfect": found}, [0], tmp_path / "side.png", 0.5)
    with Image.open(tmp_path / "side.png") as image:
        assert image.width == 2 * 424
