"""What is written reads back the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.data.writers import write_coco, write_voc, write_yolo
from flyspeck.errors import UserError
from flyspeck.files import write_text

SIZES = ((30, 40), (20, 50), (8, 8))


@pytest.fixture
def table(tmp_path: Path) -> Annotations:
    """Three images, one without boxes; an object, a crowd, an uncertain one, a region of no class, one made so by a cut."""
    names = ("images/a.png", "images/sub/a.png", "images/c.png")
    for name, (height, width) in zip(names, SIZES, strict=True):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height)).save(path)
    boxes = np.array([[1, 2, 5, 9], [10.25, 3, 12, 4.5], [-2, 1, 4, 6], [0, 0, 20, 20], [30, 2, 50, 12.0]])
    return Annotations(
        image_ids=np.array([5, 3, 9]),
        file_names=names,
        sizes=np.array(SIZES),
        image_index=np.array([0, 0, 0, 1, 1]),
        boxes=boxes,
        labels=np.array([1, -1, -1, -1, -1]),
        area=np.array([10.5, 2, 30, 400, 200]),
        ignore=np.array([False, True, True, True, True]),
        crowd=np.array([False, True, False, False, False]),
        box_ids=np.array([0, 7, 2, 3, 4]),
        classes=("person", "car"),
        category_ids=(4, 2),
        root=tmp_path / "set",
        extra={
            "category": np.array([1, 0, 0, -1, 0]),
            "uncertain": np.array([False, False, True, False, False]),
            "vis_ratio": np.array([0.5, np.nan, 1, np.nan, 1]),
        },
    )


def assert_same(one: Annotations, other: Annotations) -> None:
    for name in ("image_ids", "sizes", "image_index", "labels", "ignore", "box_ids"):
        assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert_allclose(one.boxes, other.boxes, atol=1e-6)
    assert_allclose(one.area, other.area, atol=1e-6)
    assert [one.path(i).resolve() for i in range(len(one))] == [other.path(i).resolve() for i in range(len(other))]


def test_coco_round_trip(table: Annotations, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "gt.json"
    write_coco(table, path)
    back = read_annotations(path)
    # Classes come back in the order of their ids: car 2, person 4.
    assert back.classes == ("car", "person")
    assert_same(replace(back, labels=np.where(back.labels < 0, -1, 1 - back.labels)), table)
    assert_array_equal(back.extra["category"], [0, 1, 1, -1, 1])
    assert_array_equal(back.crowd, [False, True, False, True, False])  # a region of no class is a crowd to COCO's tools
    assert_array_equal(back.extra["uncertain"], table.extra["uncertain"])
    assert_array_equal(back.extra["vis_ratio"], table.extra["vis_ratio"])
    # What only a cut has made an ignore region is flagged; what another flag explains is not.
    assert_array_equal(back.extra["ignore_flag"], [False, False, False, True, True])
    assert list(path.parent.iterdir()) == [path]  # no temporary file stays
    again = tmp_path / "again.json"
    write_coco(back, again)
    assert_same(read_annotations(again), back)
    content = json.loads(path.read_text())
    assert content["annotations"][0]["bbox"] == [1, 2, 4, 7]
    assert "vis_ratio" not in content["annotations"][1]


def test_golden_files_survive_a_round_trip(shared: Path, tmp_path: Path) -> None:
    for name in ("tiny_b", "merge_a", "ped_mr_a", "quirk_id0"):
        source = shared / "golden" / name / ("corner_gt.json" if name == "merge_a" else "gt.json")
        before = read_annotations(source, for_evaluation=True)
        write_coco(before, tmp_path / f"{name}.json", file_names=list(before.file_names))
        after = read_annotations(tmp_path / f"{name}.json", for_evaluation=True)
        assert_allclose(after.extra["xywh"], before.extra["xywh"], atol=1e-6, rtol=0)
        assert after.file_names == before.file_names
        assert set(before.extra) <= set(after.extra)
        for column in ("category", "ignore_flag", "uncertain", "height", "vis_ratio"):
            if column in before.extra:
                assert_array_equal(after.extra[column], before.extra[column])
        for column in before.image_extra:
            assert_array_equal(after.image_extra[column], before.image_extra[column])


@pytest.mark.parametrize("link", [False, True])
def test_yolo_round_trip(table: Annotations, tmp_path: Path, link: bool) -> None:
    lost = write_yolo(table, tmp_path / "yolo", split="val", link=link)
    assert lost == 4
    back = read_annotations(tmp_path / "yolo")
    assert back.source == "yolo: data.yaml, split val"
    assert back.classes == table.classes
    assert sorted(back.file_names) == ["images/val/a.png", "images/val/c.png", "images/val/sub/a.png"]
    assert_allclose(back.boxes, [[1, 2, 5, 9]], atol=1e-6)
    assert_array_equal(back.labels, [1])
    assert (tmp_path / "yolo/images/val/a.png").is_symlink() == link
    assert (tmp_path / "yolo/labels/val/c.txt").read_text() == ""


def test_yolo_clips_boxes_and_joins_splits(table: Annotations, tmp_path: Path) -> None:
    objects = replace(table, ignore=np.zeros(5, bool), labels=np.array([1, 0, 0, 1, 0]))
    write_yolo(objects, tmp_path / "yolo", split="train")
    write_yolo(objects, tmp_path / "yolo", split="val")
    back = read_annotations(f"{tmp_path / 'yolo/data.yaml'}:val")
    assert back.num_boxes == 5
    assert back.boxes.min() >= 0
    with pytest.raises(UserError, match="with other classes"):
        write_yolo(replace(objects, classes=("a", "b")), tmp_path / "yolo")


def test_yolo_does_not_join_another_set_in_silence(table: Annotations, tmp_path: Path) -> None:
    """Whoever reads a split takes every image of its folder, those of an earlier set too."""
    write_yolo(table, tmp_path / "yolo")
    write_yolo(table, tmp_path / "yolo")  # the same once more
    with pytest.raises(UserError, match=r"images/train: holds 2 images of another set already \(a.png, c.png\)"):
        write_yolo(table.select_images([1]), tmp_path / "yolo")
    assert len(read_annotations(tmp_path / "yolo")) == 3


def test_voc_files_of_images_in_folders_keep_apart(table: Annotations, tmp_path: Path) -> None:
    """VOC's files lie in one folder: `sub/a.png` and `sub_a.png` must not write over each other."""
    named = replace(table, file_names=("sub/a.png", "sub_a.png", "c.png"))
    write_voc(named, tmp_path / "voc")
    files = sorted((tmp_path / "voc" / "Annotations").iterdir())
    assert [file.name for file in files] == ["c.xml", "sub_a.xml", "sub_a_.xml"]
    assert [file.read_text().count("<object>") for file in files] == [0, 3, 2]


def test_yolo_needs_images_and_sizes(table: Annotations, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the size of the image is not known"):
        write_yolo(replace(table, sizes=np.full((3, 2), -1)), tmp_path / "yolo")
    with pytest.raises(UserError, match=r"no such image \(of 3, 3 are missing\)"):
        write_yolo(replace(table, root=tmp_path / "absent"), tmp_path / "yolo")
    assert not (tmp_path / "yolo").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \udc80")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
