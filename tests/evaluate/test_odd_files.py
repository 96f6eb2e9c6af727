"""Agreement with pycocotools, to 1e-12, on files with categories of one name, odd ids and missing fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pycocotools_oracle import AREAS, mean, reference

from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import DetectionTable, evaluate

IDS: dict[str, Any] = {
    "whole": lambda n: n + 1,
    "beyond 32 bits": lambda n: 2**40 + 7 * n,
    "beyond 64 bits": lambda n: 2**70 + n,
    "floats": lambda n: float(n + 1),
    "texts of numbers": lambda n: str(n + 1),
    "texts": lambda n: f"img_{n:03d}/a",
    "leading zeros": lambda n: f"{n:06d}",
}
ABSENT = ("nothing", "iscrowd", "sizes", "ids", "names")


def random_files(seed: int, ids: str, absent: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and detections that share half of their boxes, with ties; categories 3, 5, 9, two of them of one name."""
    rng = np.random.default_rng(seed)
    spelt = IDS[ids]
    images = [{"id": spelt(n), "file_name": f"{n}.jpg", "width": 640, "height": 512} for n in range(6)]
    names = {3: "wheel", 5: "wheel", 9: "car"}
    truth, found = [], []
    for number in range(60):
        where, kind = int(rng.integers(6)), int(rng.choice([3, 5, 9]))
        side = float(rng.choice([4, 20, 50, 120]))
        box = [*np.round(rng.uniform(0, 400, 2), 1).tolist(), side, round(side * float(rng.choice([0.5, 1, 1.5])), 1)]
        crowd = int(rng.random() < 0.1)
        area = round(box[2] * box[3] * float(rng.uniform(0.5, 1)), 2)
        entry = {
            "id": number + 1,
            "image_id": spelt(where),
            "category_id": kind,
            "bbox": box,
            "area": area,
            "iscrowd": crowd,
        }
        truth.append(entry)
        for _ in range(int(rng.integers(0, 3))):
            moved = [round(v + float(rng.choice([0, 0, 1, 3])), 1) for v in box]
            seen = int(rng.choice([kind, kind, 3, 5, 9]))
            score = float(rng.choice([0.2, 0.5, 0.5, 0.9]))
            found.append({"image_id": spelt(where), "category_id": seen, "bbox": moved, "score": score})
    for entry in truth:
        if absent == "iscrowd":
            entry.pop("iscrowd")
        if absent == "ids":
            entry.pop("id")
    for image in images:
        if absent == "sizes":
            del image["width"], image["height"]
        if absent == "names":
            del image["file_name"]
    categories = [{"id": number, "name": name, "supercategory": "x"} for number, name in names.items()]
    return {"images": images, "annotations": truth, "categories": categories}, found


def completed(truth: dict[str, Any]) -> dict[str, Any]:
    """What pycocotools needs: it takes no file without `id` and `iscrowd`."""
    entries = [{"id": n, "iscrowd": 0, **entry} for n, entry in enumerate(truth["annotations"], 1)]
    return {**truth, "annotations": entries}


@pytest.mark.parametrize("ids", sorted(IDS))
@pytest.mark.parametrize("absent", ABSENT)
def test_twelve_numbers_and_every_class(ids: str, absent: str, tmp_path: Path) -> None:
    truth, found = random_files(sum(map(ord, ids + absent)), ids, absent)
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(json.dumps(found))
    annotations = read_annotations(tmp_path / "gt.json", for_evaluation=True)
    assert not annotations.problems
    assert len(annotations.classes) == 3
    result = evaluate(annotations, DetectionTable.from_coco(tmp_path / "dt.json", annotations), "coco_bbox")
    precision, recall = reference(completed(truth), found, AREAS, (1, 10, 100))
    wanted = {"AP": precision[:, :, :, 0, 2], "AP50": precision[0, :, :, 0, 2], "AP75": precision[5, :, :, 0, 2]}
    wanted |= {f"AP{letter}": precision[:, :, :, a, 2] for a, letter in enumerate("sml", 1)}
    wanted |= {f"AR{letter}": recall[:, :, a, 2] for a, letter in enumerate("sml", 1)}
    wanted |= {f"AR{limit}": recall[:, :, 0, d] for d, limit in enumerate((1, 10, 100))}
    assert mean(wanted["AP50"]) > 0.05  # a set on which nothing is found would show nothing
    for name, values in wanted.items():
        assert_allclose(result.value(metric=name), mean(values), rtol=0, atol=1e-12, err_msg=name)
    for column, category in enumerate((3, 5, 9)):
        value = result.value(metric="AP_per_class", category_id=category)
        assert_allclose(value, mean(precision[:, :, column, 0, 2]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("inside", "outside"), [(str, int), (int, str), (float, int), (int, float), (str, float)])
def test_one_id_in_two_spellings(inside: Any, outside: Any, tmp_path: Path) -> None:
    """The detector writes ids as another type than the ground truth: the same metrics as with one type."""
    truth, found = random_files(5, "whole", "nothing")
    precision, _ = reference(truth, found, AREAS, (1, 10, 100))
    for entry in found:
        entry["image_id"], entry["category_id"] = outside(entry["image_id"]), outside(entry["category_id"])
    for entry in truth["annotations"]:
        entry["image_id"], entry["category_id"] = inside(entry["image_id"]), inside(entry["category_id"])
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(json.dumps(found))
    annotations = read_annotations(tmp_path / "gt.json", for_evaluation=True)
    result = evaluate(annotations, DetectionTable.from_coco(tmp_path / "dt.json", annotations), "coco_bbox")
    assert_allclose(result.value(metric="AP"), mean(precision[:, :, :, 0, 2]), rtol=0, atol=1e-12)


def test_without_areas_the_box_s_counts(tmp_path: Path) -> None:
    """pycocotools takes no ground truth without `area`; ours is that of a file that states w*h."""
    truth, found = random_files(9, "whole", "nothing")
    for entry in truth["annotations"]:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    precision, _ = reference(truth, found, AREAS, (1, 10, 100))
    for entry in truth["annotations"]:
        del entry["area"]
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(json.dumps(found))
    annotations = read_annotations(tmp_path / "gt.json", for_evaluation=True)
    result = evaluate(annotations, DetectionTable.from_coco(tmp_path / "dt.json", annotations), "coco_bbox")
    for name, area in (("AP", 0), ("APs", 1), ("APm", 2), ("APl", 3)):
        assert_allclose(result.value(metric=name), mean(precision[:, :, :, area, 2]), rtol=0, atol=1e-12)
