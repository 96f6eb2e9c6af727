"""CityPersons' .mat files and CrowdHuman's .odgt lines, each written as the official ones are laid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError


def image(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height)).save(path)


def cell(name: str, rows: Any) -> np.ndarray:
    kind = [("cityname", object), ("im_name", object), ("bbs", object)]
    value = np.zeros((1, 1), kind)
    value[0, 0] = (name.partition("_")[0], name, np.asarray(rows))
    return value


def write_mat(path: Path, cells: list[np.ndarray], variable: str = "anno_val_aligned") -> Path:
    io = pytest.importorskip("scipy.io")
    row = np.empty((1, len(cells)), object)
    row[0] = cells
    path.parent.mkdir(parents=True, exist_ok=True)
    io.savemat(path, {variable: row})
    return path


NAMES = ("ulm_000001_000019_leftImg8bit.png", "ulm_000002_000019_leftImg8bit.png")


def test_citypersons_mat(tmp_path: Path) -> None:
    rows = np.array(
        [
            [1, 10, 20, 10, 40, 24000, 10, 20, 10, 10],
            [0, 100, 100, 50, 50, 0, 100, 100, 50, 50],
            [2, 200, 100, 20, 50, 25000, 200, 100, 20, 50],
            [7, 1, 1, 2, 2, 0, 1, 1, 2, 2],
        ],
        np.uint16,
    )
    path = write_mat(
        tmp_path / "annotations" / "anno_val.mat", [cell(NAMES[0], rows), cell(NAMES[1], np.zeros((0, 0)))]
    )
    image(tmp_path / "leftImg8bit" / "val" / "ulm" / NAMES[0], 2048, 1024)
    for source in (path, path.parent):
        table = read_annotations(source)
        assert table.source == "citypersons: anno_val.mat"
        assert table.classes == ("pedestrian",)
        assert table.path(0).is_file()
        assert_array_equal(table.image_ids, ["ulm_000001_000019", "ulm_000002_000019"])
        assert_array_equal(table.sizes, [[1024, 2048], [-1, -1]])
        assert_array_equal(table.boxes, [[10, 20, 20, 60], [100, 100, 150, 150], [200, 100, 220, 150]])
        assert_array_equal(table.labels, [0, -1, -1])
        assert_array_equal(table.extra["height"], [40, 50, 50])
        assert_allclose(table.extra["vis_ratio"], [0.25, 1, 1])
        (problem,) = table.problems
        assert problem.startswith(f"anno_val.mat, {NAMES[0]}, row 4: the entry names a category that is not listed")
    assert_array_equal(read_annotations(path, classes=["rider", "pedestrian"]).labels, [1, -1, 0])


def test_citypersons_mat_agrees_with_json(tmp_path: Path) -> None:
    items = [("pedestrian", [10, 20, 10, 40], [10, 20, 10, 10]), ("person group", [5, 5, 9, 3], [5, 5, 9, 3])]
    objects = [{"label": label, "bbox": box, "bboxVis": shown} for label, box, shown in items]
    stem = NAMES[0].removesuffix("_leftImg8bit.png")
    file = tmp_path / "gtBboxCityPersons" / "val" / "ulm" / f"{stem}_gtBboxCityPersons.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"imgHeight": 1024, "imgWidth": 2048, "objects": objects}))
    rows = [[1, *items[0][1], 3, *items[0][2]], [5, *items[1][1], 4, *items[1][2]]]
    a = read_annotations(file)
    b = read_annotations(write_mat(tmp_path / "m" / "anno_val.mat", [cell(NAMES[0], rows)]))
    assert a.file_names == b.file_names
    assert a.classes == b.classes
    for column in ("image_ids", "boxes", "labels", "ignore", "category_ids"):
        assert_array_equal(getattr(a, column), getattr(b, column))
    assert_array_equal(a.extra["vis_bbox"], b.extra["vis_bbox"])


def test_citypersons_mat_broken(tmp_path: Path) -> None:
    good, narrow = cell(NAMES[0], [[1, 1, 1, 2, 4, 0, 1, 1, 2, 4]]), cell(NAMES[1], [[1, 2, 3]])
    table = read_annotations(write_mat(tmp_path / "anno_train.mat", [good, narrow], "anno_train_aligned"))
    assert len(table.boxes) == 1
    assert table.problems == (f"anno_train.mat, {NAMES[1]}: boxes of shape (1, 3), not of 10 columns",)
    odd = np.zeros((1, 1), [("name", object)])
    odd[0, 0] = ("x",)
    table = read_annotations(write_mat(tmp_path / "anno_train.mat", [odd, good], "anno_train_aligned"))
    assert table.problems == ("anno_train.mat, cell 1: no im_name and bbs",)
    with pytest.raises(UserError, match="no cells anno_train_aligned"):
        read_annotations(write_mat(tmp_path / "x.mat", [good], "something"))
    for name in ("anno_train.mat", "broken.mat"):
        (tmp_path / name).write_bytes(b"no mat file, but long enough to have a header of one" * 10)
        with pytest.raises(UserError, match="not a MATLAB file"):
            read_annotations(tmp_path / name)


def person(box: list[Any], shown: list[Any], head: list[Any], **extra: int) -> dict[str, Any]:
    return {"tag": "person", "fbox": box, "vbox": shown, "hbox": head, "extra": extra, "head_attr": {"ignore": 0}}


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_odgt(tmp_path: Path) -> None:
    first = [
        person([10, 20, 10, 40], [10, 20, 10, 10], [12, 20, 4, 4], box_id=0),
        person([-5, 0, 20, 40], [0, 0, 15, 40], [0, 0, 5, 5], box_id=1, ignore=1),
        {
            "tag": "mask",
            "fbox": [50, 0, 30, 30],
            "vbox": [50, 0, 30, 30],
            "hbox": [50, 0, 3, 3],
            "extra": {"ignore": 1},
        },
        person([1, 2, 3], [], []),
        "nonsense",
    ]
    lines = [{"ID": "273271,1a0d", "gtboxes": first}, "", {"ID": "empty", "gtboxes": []}, "{cut o", {"ID": 3}]
    path = write_lines(tmp_path / "annotation_val.odgt", lines)
    image(tmp_path / "Images" / "273271,1a0d.png", 100, 80)
    for source in (path, tmp_path):
        table = read_annotations(source)
        assert table.source == "odgt: annotation_val.odgt"
        assert table.classes == ("person",)
        assert table.file_names == ("273271,1a0d.png", "empty.jpg")
        assert table.path(0).is_file()
        assert_array_equal(table.sizes, [[80, 100], [-1, -1]])
        assert_array_equal(table.boxes, [[10, 20, 20, 60], [-5, 0, 15, 40], [50, 0, 80, 30]])
        assert_array_equal(table.labels, [0, -1, -1])
        assert_allclose(table.extra["vis_ratio"], [0.25, 0.75, 1])
        assert_array_equal(table.extra["vis_bbox"][0], [10, 20, 10, 10])
        assert [p.partition(":")[0] for p in table.problems] == [
            "annotation_val.odgt, line 4",
            "annotation_val.odgt, line 5",
            "annotation_val.odgt, line 1, box 4",
            "annotation_val.odgt, line 1, box 5",
        ]


def test_odgt_heads_on_request(tmp_path: Path) -> None:
    hidden = person([30, 20, 10, 40], [30, 20, 10, 10], [32, 20, 4, 4]) | {"head_attr": {"ignore": 1}}
    entries = [person([10, 20, 10, 40], [10, 20, 10, 10], [12, 20, 4, 5]), hidden]
    path = write_lines(tmp_path / "a.odgt", [{"ID": "a", "gtboxes": entries}])
    both = read_annotations(path, classes=["head", "person"])
    assert_array_equal(both.labels, [1, 0, 1, -1])
    assert_array_equal(both.boxes[1], [12, 20, 16, 25])
    assert_array_equal(read_annotations(path, classes=["head"]).labels, [0, -1])


def test_odgt_of_another_data_set(tmp_path: Path) -> None:
    """With the image's own path and size in the file, and one plain box an entry."""
    record = {
        "ID": "x",
        "fpath": "/ulm/x.png",
        "height": 60,
        "width": 90,
        "gtboxes": [{"tag": "car", "box": [1, 2, 3, 4]}],
    }
    image(tmp_path / "images" / "ulm" / "x.png", 90, 60)
    table = read_annotations(write_lines(tmp_path / "annotations" / "city.odgt", [record]))
    assert table.path(0).is_file()
    assert table.classes == ("car",)
    assert_array_equal(table.sizes, [[60, 90]])
    assert_array_equal(table.boxes, [[1, 2, 4, 6]])
    assert "vis_bbox" not in table.extra


def test_odgt_without_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no line is a json object"):
        read_annotations(write_lines(tmp_path / "a.odgt", ["[1, 2]"]))
    write_lines(tmp_path / "b.odgt", ["[1, 2]"])
    with pytest.raises(UserError, match="2 files of annotations"):
        read_annotations(tmp_path)
