"""Readers of the annotation tools' own formats: boxes by hand, the format found out by content, what has no box said."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import format_of, read_annotations


def image(path: Path, width: int = 100, height: int = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (60, 60, 60)).save(path)
    return path


def dump(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def classes_of(table: Annotations) -> list[str]:
    return [table.classes[label] if label >= 0 else "-" for label in table.labels]


# --- labelme


def test_labelme(tmp_path: Path) -> None:
    shapes = [
        {"label": "car", "points": [[10, 20], [4, 8]], "shape_type": "rectangle"},
        {"label": "boat", "points": [[1, 1], [9, 2], [5, 7]], "shape_type": "polygon"},
        {"label": "car", "points": [[20, 20], [23, 24]], "shape_type": "circle"},  # a radius of 5
        {"label": "car", "points": [[1, 2]], "shape_type": "point"},
    ]
    for name in "ab":
        image(tmp_path / f"{name}.jpg")
        size = {"imageHeight": 50, "imageWidth": 100}
        content = {"version": "5", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg", **size}
        dump(tmp_path / f"{name}.json", content)
    assert format_of(tmp_path) == format_of(tmp_path / "a.json") == "labelme"
    table = read_annotations(tmp_path)
    assert_array_equal(table.boxes[:3], [[4, 8, 10, 20], [1, 1, 9, 7], [15, 15, 25, 25]])
    assert classes_of(table)[:3] == ["car", "boat", "car"]
    assert table.sizes.tolist() == [[50, 100]] * 2
    assert "2 shapes are a point without a box" in table.notes[0]
    assert len(read_annotations(tmp_path / "a.json")) == 1


# --- VIA

REGIONS = [
    {"shape_attributes": {"name": "rect", "x": 5, "y": 6, "width": 7, "height": 8}, "region_attributes": {"class": "car"}},
    {"shape_attributes": {"name": "circle", "cx": 20, "cy": 30, "r": 4}, "region_attributes": {"class": {"boat": True}}},
    {"shape_attributes": {"name": "polygon", "all_points_x": [1, 5, 3], "all_points_y": [2, 2, 9]},
     "region_attributes": {"class": "car"}},
    {"shape_attributes": {"name": "point", "cx": 1, "cy": 1}, "region_attributes": {"class": "car"}},
]  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("project", [True, False])
def test_via(tmp_path: Path, version: int, project: bool) -> None:
    image(tmp_path / "a.jpg")
    regions = dict(enumerate(REGIONS)) if version == 1 else REGIONS
    entries = {"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": regions, "file_attributes": {}}}
    path = dump(tmp_path / "via.json", {"_via_settings": {}, "_via_img_metadata": entries} if project else entries)
    assert format_of(path) == "via"
    table = read_annotations(path)
    assert_array_equal(table.boxes, [[5, 6, 12, 14], [16, 26, 24, 34], [1, 2, 5, 9]])
    assert classes_of(table) == ["car", "boat", "car"]
    assert table.sizes.tolist() == [[50, 100]]
    assert any("1 region of the kind point" in note for note in table.notes)


# --- CVAT

CVAT_IMAGES = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<meta><task><labels><label><name>person</name></label><label><name>car</name></label></labels></task></meta>
<image id="7" name="sub/a.jpg" width="100" height="50">
<box label="car" xtl="10.50" ytl="12.00" xbr="16.00" ybr="18.25" occluded="0"></box>
<box label="car" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90.0" occluded="0"></box>
<polygon label="person" points="1.0,2.0;5.0,2.0;3.0,9.0" occluded="0"></polygon>
<mask label="person" rle="1" left="40" top="30" width="5" height="6"></mask>
<points label="person" points="1.0,2.0"></points></image>
<image id="8" name="b.jpg" width="100" height="50"></image></annotations>"""


def test_cvat_for_images(tmp_path: Path) -> None:
    image(tmp_path / "images" / "sub" / "a.jpg")
    path = dump(tmp_path / "annotations.xml", CVAT_IMAGES)
    assert format_of(path) == "cvat"
    table = read_annotations(path)
    assert table.classes == ("person", "car")
    # 20 x 10 px about (20, 15), turned by a quarter: 10 x 20.
    assert_allclose(table.boxes, [[10.5, 12, 16, 18.25], [15, 5, 25, 25], [1, 2, 5, 9], [40, 30, 45, 36]], atol=1e-9)
    assert table.image_ids.tolist() == [7, 8]
    assert any("1 annotation of the kind points" in note for note in table.notes)


def test_cvat_for_video(tmp_path: Path) -> None:
    for frame in range(3):
        image(tmp_path / "images" / f"frame_{frame:06d}.PNG")
    box = '<box frame="{}" outside="{}" xtl="{}" ytl="2" xbr="{}" ybr="6"></box>'
    shapes = box.format(0, 0, 1, 5) + box.format(1, 0, 2, 6) + box.format(2, 1, 3, 7)
    meta = "<meta><task><size>3</size><labels><label><name>car</name></label></labels></task></meta>"
    path = dump(tmp_path / "a.xml", f'<annotations>{meta}<track id="0" label="car">{shapes}</track></annotations>')
    table = read_annotations(path)
    assert_array_equal(table.boxes, [[1, 2, 5, 6], [2, 2, 6, 6]])
    assert len(table) == 3
    assert table.image_index.tolist() == [0, 1]


# --- Label Studio


def result(value: dict[str, Any], kind: str = "rectanglelabels", label: str = "car") -> dict[str, Any]:
    return {"type": kind, "original_width": 100, "original_height": 50, "value": {**value, kind: [label]}}


def test_label_studio(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    first = [result({"x": 1, "y": 1, "width": 1, "height": 1, "rotation": 0})]
    results = [
        result({"x": 10, "y": 20, "width": 5, "height": 10, "rotation": 0}),
        # 20 x 5 px at (50, 10), turned by a quarter clockwise about that corner: 5 px to the left, 20 px down.
        result({"x": 50, "y": 20, "width": 20, "height": 10, "rotation": 90}),
        result({"points": [[1, 2], [5, 2], [3, 8]]}, "polygonlabels", "boat"),
        result({"x": 50, "y": 50, "radiusX": 2, "radiusY": 4}, "ellipselabels"),
        {"type": "choices", "value": {"choices": ["day"]}},
    ]
    annotations = [{"result": first}, {"result": results}, {"result": [], "was_cancelled": True}]
    tasks = [{"id": 3, "data": {"image": "/data/upload/1/1a2b3c4d-a.jpg"}, "annotations": annotations}]
    path = dump(tmp_path / "export.json", tasks)
    assert format_of(path) == "label-studio"
    table = read_annotations(path)
    assert_allclose(table.boxes, [[10, 10, 15, 15], [45, 10, 50, 30], [1, 1, 5, 4], [48, 23, 52, 27]], atol=1e-9)
    assert classes_of(table) == ["car", "car", "boat", "car"]
    assert table.path(0) == tmp_path / "a.jpg"
    assert "1 tasks have several annotations" in table.notes[0]


@pytest.mark.parametrize(
    "address", ["/data/local-files/?d=sub%2Fa.jpg", "s3://bucket/sub/a.jpg", "http://x/y/sub/a.jpg"]
)
def test_label_studio_minimal(tmp_path: Path, address: str) -> None:
    image(tmp_path / "sub" / "a.jpg")
    shape = {"x": 10, "y": 20, "width": 5, "height": 10, "rotation": 0, "rectanglelabels": ["car"]}
    entry = {"image": address, "id": 1, "label": [{**shape, "original_width": 100, "original_height": 50}]}
    path = dump(tmp_path / "min.json", [entry])
    assert format_of(path) == "label-studio"
    table = read_annotations(path)
    assert_allclose(table.boxes, [[10, 10, 15, 15]])
    assert table.path(0).is_file()


# --- Supervisely


def test_supervisely(tmp_path: Path) -> None:
    mask = np.zeros((6, 9), dtype=np.uint8)
    mask[1:5, 2:8] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).convert("1").save(buffer, "PNG")
    packed = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    objects = [
        {"classTitle": "car", "geometryType": "rectangle", "points": {"exterior": [[4, 8], [9, 19]], "interior": []}},
        {"classTitle": "boat", "geometryType": "polygon", "points": {"exterior": [[1, 1], [9, 2], [5, 7]]}},
        {"classTitle": "boat", "geometryType": "bitmap", "bitmap": {"origin": [30, 20], "data": packed}},
        {"classTitle": "boat", "geometryType": "point", "points": {"exterior": [[1, 1]]}},
    ]
    content = {"description": "", "tags": [], "size": {"height": 50, "width": 100}, "objects": objects}
    for part in ("ds0", "ds1"):
        image(tmp_path / part / "img" / "a.jpg")
        dump(tmp_path / part / "ann" / "a.jpg.json", content)
    dump(tmp_path / "meta.json", {"classes": [{"title": "boat", "shape": "any"}, {"title": "car", "shape": "any"}]})
    assert format_of(tmp_path) == format_of(tmp_path / "ds0") == "supervisely"
    table = read_annotations(tmp_path)
    assert table.classes == ("boat", "car")
    assert_array_equal(table.boxes[:3], [[4, 8, 10, 20], [1, 1, 9, 7], [32, 21, 38, 25]])
    assert table.image_ids.tolist() == ["ds0/a.jpg", "ds1/a.jpg"]
    assert all(table.path(row).is_file() for row in range(2))
    assert "--pixels half-open" in table.notes[0]
    assert_array_equal(read_annotations(tmp_path / "ds0", pixels="half-open").boxes[0], [4, 8, 9, 19])


# --- KITTI and videos


def test_kitti(tmp_path: Path) -> None:
    image(tmp_path / "image_2" / "000000.png")
    tail = "1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"
    lines = f"Car 0.25 1 -1.58 10.5 20.0 30.0 40.0 {tail}\nDontCare -1 -1 -10 1 2 9 8 -1 -1 -1 -1000 -1000 -1000 -10\n"
    dump(tmp_path / "label_2" / "000000.txt", lines)
    assert format_of(tmp_path) == "kitti"
    table = read_annotations(tmp_path)
    assert_array_equal(table.boxes, [[10.5, 20, 30, 40], [1, 2, 9, 8]])
    assert table.ignore.tolist() == [False, True]
    assert table.classes[0] == "Car"
    assert table.extra["truncation"][0] == 0.25


def test_visdrones_videos(tmp_path: Path) -> None:
    for frame in (1, 2):
        image(tmp_path / "sequences" / "uav1" / f"{frame:07d}.jpg")
    lines = "1,3,50,20,20,9,1,4,0,0\n2,3,52,21,20,10,1,4,0,1\n2,0,0,0,9,9,0,0,0,0\n"
    dump(tmp_path / "annotations" / "uav1.txt", lines)
    assert format_of(tmp_path) == "visdrone-vid"
    table = read_annotations(tmp_path)
    assert_array_equal(table.boxes, [[50, 20, 70, 29], [52, 21, 72, 31], [0, 0, 9, 9]])
    assert table.image_index.tolist() == [0, 1, 1]
    assert classes_of(table) == ["car", "car", "-"]
    assert table.extra["track"].tolist() == [3, 3, 0]


def test_uavdt(tmp_path: Path) -> None:
    for frame in (1, 2):
        image(tmp_path / "UAV-benchmark-M" / "M0101" / f"img{frame:06d}.jpg")
    dump(tmp_path / "GT" / "M0101_gt_whole.txt", "1,1,10,12,6,8,1,1,1\n2,1,11,12,6,8,1,1,3\n")
    dump(tmp_path / "GT" / "M0101_gt_ignore.txt", "1,1,0,0,20,5,-1,-1,-1\n")
    assert format_of(tmp_path) == format_of(tmp_path / "GT") == "uavdt"
    table = read_annotations(tmp_path / "GT")
    assert_array_equal(table.boxes, [[10, 12, 16, 20], [0, 0, 20, 5], [11, 12, 17, 20]])
    assert classes_of(table) == ["car", "-", "bus"]
    assert all(table.path(row).is_file() for row in range(2))


def test_sodas_turned_boxes(tmp_path: Path) -> None:
    content = {
        "images": {"id": 1, "file_name": "a.jpg", "width": 100, "height": 50},
        "annotations": [{"id": 0, "image_id": 1, "category_id": 0, "poly": [5, 2, 9, 6, 5, 10, 1, 6]}],
        "categories": [{"id": 0, "name": "airplane"}, {"id": 9, "name": "ignore"}],
    }
    table = read_annotations(dump(tmp_path / "a.json", content))
    assert_array_equal(table.boxes, [[1, 2, 9, 10]])
    assert table.classes == ("airplane",)
