"""What inspection counts, what it points out, and what it concludes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.implications import anchor_recall, fit_anchors, imply
from flyspeck.data.inspect import size_histogram, summarize, summarize_classification
from flyspeck.data.inspection import inspect
from flyspeck.data.join import join_annotations
from flyspeck.data.readers import read_annotations
from flyspeck.data.samples import choose_samples, draw_boxes, write_samples
from flyspeck.errors import UserError


def write(folder: Path, name: str, boxes: dict[str, list], size: tuple[int, int] = (100, 80)) -> Path:
    """A COCO file of images (made if absent) with the given xywh boxes; a box may have a fifth value, its flag `ignore`."""
    folder.mkdir(parents=True, exist_ok=True)
    images, entries = [], []
    for number, (image, rows) in enumerate(boxes.items(), 1):
        path = folder / image
        if not path.is_file() and not image.startswith("gone"):
            Image.new("L", size).save(path)
        images.append({"id": number, "file_name": image, "width": size[0], "height": size[1]})
        for x, y, w, h, *flag in rows:
            row = {"id": len(entries) + 1, "image_id": number, "category_id": 1, "bbox": [x, y, w, h]}
            entries.append({**row, "ignore": 1} if flag else row)
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "p"}, {"id": 2, "name": "q"}]}
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_bins_hold_their_lower_bound() -> None:
    sides = np.array([1, 1.99, 2, 7.99, 8, 11.99, 12, 19.99, 20, 31.99, 32, 500])
    boxes = np.stack([sides * 0, sides * 0, sides, sides], 1)
    assert list(size_histogram(boxes).values()) == [2, 2, 2, 2, 2, 2]


def test_counts_by_hand(tmp_path: Path) -> None:
    images = {
        "a.png": [[0, 0, 4, 4], [10, 10, 2, 8], [20, 20, 20, 20, 1]],
        "b.png": [[0, 0, 10, 10], [50, 50, 0, 3]],
        "c.png": [],
        "gone.png": [[0, 0, 24, 24]],
    }
    path = write(tmp_path, "gt.json", images)
    Image.new("L", (50, 50)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    facts = inspect(path).facts
    assert facts["images"] == 4
    assert facts["boxes"] == 5
    assert facts["sizes"] == {"[0,2)": 0, "[2,8)": 2, "[8,12)": 1, "[12,20)": 0, "[20,32)": 2, "[32,inf)": 0}
    assert facts["objects"]["count"] == 4
    # Sizes 4, 4, 10, 24: mean 10.5, deviations 6.5, 6.5, 0.5, 13.5 with squares summing to 267.
    assert facts["objects"]["size_mean"] == 10.5
    assert facts["objects"]["size_sd"] == round((267 / 4) ** 0.5, 3)
    assert facts["objects"]["share_to_20px"] == 0.75
    assert (facts["ignore_regions"], facts["ignore_share"]) == (1, 0.2)
    assert facts["boxes_per_image"] == {"mean": 1.25, "median": 1.0, "max": 3}
    assert facts["images_without_boxes"] == 1
    assert facts["classes"] == {"p": 4, "q": 0}
    assert facts["broken_entries"]["count"] == 1
    assert facts["missing_files"]["first"] == ["gone.png"]
    assert facts["unreadable_files"]["count"] == 1
    assert facts["wrong_sizes"]["first"] == ["b.png: 50x50 px, the annotations say 100x80"]
    assert len(facts["warnings"]) == 6  # few boxes; broken; missing; unreadable; wrong; an empty class
    json.dumps(facts, allow_nan=False)


def test_nothing_to_point_out(tmp_path: Path) -> None:
    rows = [[x, y, 6, 6] for x in range(0, 60, 10) for y in range(0, 40, 10)]
    path = write(tmp_path, "gt.json", {"a.png": rows})
    assert summarize(read_annotations(path, classes=["p"]))["warnings"] == []


def test_a_set_without_objects(tmp_path: Path) -> None:
    for images in ({}, {"a.png": []}, {"a.png": [[0, 0, 9, 9, 1]]}):
        facts = inspect(write(tmp_path, "gt.json", images)).facts
        assert facts["warnings"] == ["no objects to learn"]
        assert facts["implies"] is None
        json.dumps(facts, allow_nan=False)


def test_a_folder_of_splits_counts_each_image_once(tmp_path: Path) -> None:
    write(tmp_path, "train.json", {"a.png": [[0, 0, 4, 4]], "b.png": [[0, 0, 4, 4]]})
    write(tmp_path, "val.json", {"b.png": [[0, 0, 4, 4]], "c.png": [[1, 1, 9, 9], [1, 1, 3, 3]]})
    found = inspect(tmp_path)
    table, facts = found.annotations, found.facts
    assert (facts["images"], facts["boxes"]) == (3, 4)
    assert facts["files"] == {"train.json": {"images": 2, "boxes": 2}, "val.json": {"images": 2, "boxes": 3}}
    assert facts["overlaps"] == [{"files": ["train.json", "val.json"], "images": 1}]
    assert_array_equal(table.image_index, [0, 1, 2, 2])
    assert [Path(name).name for name in table.file_names] == ["a.png", "b.png", "c.png"]
    assert table.path(2).is_file()


def test_joining_matches_classes_by_name(tmp_path: Path) -> None:
    one = read_annotations(write(tmp_path / "x", "gt.json", {"a.png": [[0, 0, 4, 4]]}), classes=["q", "p"])
    two = read_annotations(write(tmp_path / "y", "gt.json", {"a.png": [[0, 0, 4, 4], [9, 9, 5, 5, 1]]}))
    one, two = (
        replace(one, notes=("guessed", "a"), unkept=("licenses",)),
        replace(two, notes=("guessed", "b"), pixels="from-1"),
    )
    both = join_annotations([one, two])
    assert both.notes == ("guessed", "a", "b")
    assert (both.unkept, both.pixels) == (("licenses",), None)
    assert both.classes == ("q", "p")
    assert_array_equal(both.labels, [1, 1, -1])
    assert_array_equal(both.extra["category"], [1, 1, 1])
    assert len(both) == 2  # two images of the same name in two folders
    assert join_annotations([one]) is one


def test_anchors_by_hand() -> None:
    # Squares of 8 px but for one of 4 x 16: sizes 8, ratios 1 and 4.
    boxes = np.array([[0, 0, 8, 8]] * 5 + [[0, 0, 4, 16.0]])
    base, ratios = fit_anchors(boxes, 4)
    assert (base, ratios) == (8.0, (1.0, 1.75))  # the 85th percentile lies a quarter of the way from 1 to 4
    # An 8 x 8 anchor shares 4 x 8 = 32 of 64 + 64 - 32 = 96 with the tall box: 1/3.
    assert anchor_recall(boxes, np.array([[8.0, 8.0]])) == 5 / 6
    assert anchor_recall(boxes, np.array([[8.0, 8.0]]), threshold=1 / 3) == 1
    assert fit_anchors(boxes / 8, 4)[0] == 4  # never below the stride
    assert fit_anchors(boxes * 8, 4)[0] == 12  # nor above three


def implied(tmp_path: Path, side: int, size: tuple[int, int]) -> object:
    table = read_annotations(write(tmp_path, "gt.json", {"a.png": [[n * side, 0, side, side] for n in range(4)]}, size))
    return imply(table)


@pytest.mark.parametrize(("side", "stride"), [(1, 2), (3, 2), (6, 4), (11, 4), (12, 8), (30, 16), (90, 16)])
def test_stride_follows_the_small_objects(tmp_path: Path, side: int, stride: int) -> None:
    found = implied(tmp_path, side, (800, 600))
    assert found.stride == stride
    assert found.tile is None
    assert all(found.reasons.values())


def test_big_images_want_tiles(tmp_path: Path) -> None:
    found = implied(tmp_path, 33, (2000, 1500))
    assert found.tile == (512, 640)
    assert found.overlap == 40


def test_classification_sets(tmp_path: Path) -> None:
    labels = np.array([0, 1, 1, 1])
    np.savez(tmp_path / "a.npz", data=np.zeros(4), offsets=np.arange(5), labels=labels, classes=np.array(["x", "y"]))
    facts = summarize_classification(tmp_path / "a.npz")
    assert (facts["images"], facts["boxes"]) == (4, 0)
    assert facts["classes"] == {"x": 1, "y": 3}
    np.savez(tmp_path / "b.npz", data=np.zeros(4))
    with pytest.raises(UserError, match="no arrays 'labels' and 'classes'"):
        summarize_classification(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="not an npz file"):
        summarize_classification(tmp_path / "c.npz")


def test_boxes_are_drawn_around_what_they_hold() -> None:
    pixels = np.zeros((100, 200, 1), np.uint8)
    boxes = np.array([[10, 20, 14, 23], [50, 50, 60, 60.0]])
    drawn = draw_boxes(pixels, boxes, np.array([0, -1]), np.array([False, True]))
    assert drawn.shape == (800, 1600, 3)  # 8 times
    assert not drawn[160:184, 80:112].any()  # the inside of the box is untouched
    assert drawn[159, 79:113].any(1).all()  # the line runs one pixel outside
    assert drawn[184, 79:113].any(1).all()
    assert drawn[440, 440].any()  # an ignore region is crossed
    deep = np.full((10, 10, 1), 300, np.uint16)
    deep[0, 0] = 1300
    assert draw_boxes(deep, np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool)).max() == 255


def test_samples(tmp_path: Path) -> None:
    images = {f"{n}.png": [[k, k, 5 + n, 5] for k in range(n)] for n in range(6)}
    table = read_annotations(write(tmp_path, "gt.json", {**images, "gone.png": []}))
    rows = choose_samples(table, 3)
    assert rows[0] == 5  # the fullest
    assert rows[1] == 1  # the smallest object: 6 x 5 px
    assert len(set(choose_samples(table, 20))) == 7
    written, faults = write_samples(table, tmp_path / "out", 20)
    assert len(written) == 6
    assert all(path.is_file() for path in written)
    assert len(faults) == 1
    assert "gone.png" in faults[0]


SETS = {
    # set: images, boxes, shares of 2-8, 8-12, 12-20, 20-32, >32 px in per cent, as the set's own description has them
    "hituav": (2898, 24899, (0.3, 9.8, 36.3, 23.5, 30.1)),
    "facemask": (848, 4021, (5.0, 10.1, 26.3, 26.4, 32.1)),
    "aerialcars": (122, 3597, (0.8, 1.1, 4.8, 80.5, 12.9)),
}


@pytest.mark.parametrize("name", SETS)
def test_shared_sets(shared: Path, name: str) -> None:
    found = inspect(shared / "data" / name, check_files=False, compare_images=False)
    table, facts = found.annotations, found.facts
    images, boxes, shares = SETS[name]
    assert (facts["images"], facts["boxes"]) == (images, boxes)
    assert sum(facts["sizes"].values()) == boxes
    assert_array_equal([round(100 * share, 1) for share in list(facts["size_shares"].values())[1:]], shares)
    assert facts["broken_entries"]["count"] == 0
    assert isinstance(table, Annotations)


def test_shared_images_are_where_they_should_be(shared: Path) -> None:
    for source in ("hituav/val_blk.json", "aerialcars", "geotiff", "coco453_100/val2017.json"):
        facts = inspect(shared / "data" / source, compare_images=False).facts
        for key in ("broken_entries", "missing_files", "unreadable_files", "wrong_sizes"):
            assert facts[key]["count"] == 0, (source, key)
