"""What tells one kind of annotation file from another, and what stands in it beside boxes: nothing is taken or dropped unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from numpy.testing import assert_allclose
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.parts import read_parts
from flyspeck.data.readers import format_of, read_annotations
from flyspeck.errors import UserError

BOX = [10, 12, 16, 20]
YOLO = "0 0.203125 0.333333333 0.09375 0.166666667"
VOC = (
    "<annotation{}><filename>a.jpg</filename><source><database>Unknown</database></source><object><name>car</name>{}</object>"
    "</annotation>"
)
BNDBOX = "<bndbox><xmin>10</xmin><ymin>12</ymin><xmax>16</xmax><ymax>20</ymax></bndbox>"


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (60, 60, 60)).save(path)
    return path


def text(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def coco(name: str = "a.jpg", **image_keys: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": name, "width": 64, "height": 48, **image_keys}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 12, 6, 8]}],
        "categories": [{"id": 1, "name": "car"}],
    }


def noted(table: Annotations) -> str:
    return "\n".join(table.notes)


# --- which tool wrote a folder `labels`


@pytest.mark.parametrize("folder", ["labels", "annotations", "xmls"])
def test_xml_files_beside_images_are_no_yolo(tmp_path: Path, folder: str) -> None:
    image(tmp_path / "images" / "a.jpg")
    text(tmp_path / folder / "a.xml", VOC.format("", BNDBOX))
    assert format_of(tmp_path) == "voc"
    table = read_annotations(tmp_path)
    assert_allclose(table.boxes, [BOX])
    assert table.path(0) == tmp_path / "images" / "a.jpg"


def test_labelme_files_in_labels_are_no_yolo(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg")
    shape = {"label": "car", "shape_type": "rectangle", "points": [[10, 12], [16, 20]]}
    text(tmp_path / "labels" / "a.json", {"version": "5", "shapes": [shape], "imagePath": "../images/a.jpg"})
    assert format_of(tmp_path) == "labelme"
    assert_allclose(read_annotations(tmp_path).boxes, [BOX])


def test_empty_labels_stay_yolo(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    assert format_of(tmp_path) == "yolo"


def test_roboflow_folders_of_coco_are_named_and_inspected_as_parts(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        image(tmp_path / split / "a.jpg")
        text(tmp_path / split / "_annotations.coco.json", coco())
    with pytest.raises(UserError, match="2 files of annotations"):
        read_annotations(tmp_path)
    parts = read_parts(tmp_path)
    assert [part.name for part in parts] == ["train", "valid"]


@pytest.mark.parametrize(
    ("content", "tool"),
    [
        ({"info": {}, "categories": {"label": {}}, "items": []}, "Datumaro"),
        ([{"image": "a.jpg", "annotations": []}], "CreateML"),
        ([{"name": "a.jpg", "labels": []}], "BDD100K"),
        ({"samples": [{"filepath": "a.jpg"}]}, "FiftyOne"),
    ],
)
def test_other_tools_are_named(tmp_path: Path, content: Any, tool: str) -> None:
    with pytest.raises(UserError, match=f"a file of .*{tool}.*export it as COCO"):
        read_annotations(text(tmp_path / "a.json", content))


def test_names_of_xml_may_have_a_namespace(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    text(tmp_path / "a.xml", VOC.format(' xmlns="http://host/voc"', BNDBOX))
    assert_allclose(read_annotations(tmp_path).boxes, [BOX])


def test_voc_objects_of_two_boxes_or_of_none(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    path = text(tmp_path / "a.xml", VOC.format("", BNDBOX + BNDBOX.replace("10", "11")))
    table = read_annotations(path)
    assert_allclose(table.boxes, [BOX])
    assert "2 <bndbox>, of which the first is taken" in noted(table)
    text(path, VOC.format("", "<polygon><x1>10</x1><y1>12</y1></polygon>"))
    assert read_annotations(path).problems == ("a.xml, object 1: a <polygon> and no <bndbox>",)


# --- names of images


@pytest.mark.parametrize("given", ["a%20b.jpg", "a b.JPG", "A B.jpg"])
def test_an_image_of_another_spelling_is_taken_and_named(tmp_path: Path, given: str) -> None:
    here = image(tmp_path / "images" / "a b.jpg")
    table = read_annotations(text(tmp_path / "train.json", coco(given)))
    assert table.path(0) == here
    assert f"a b.jpg for {given}" in noted(table)


def test_two_files_that_differ_in_case_are_not_guessed_between(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    image(tmp_path / "A.jpg")
    image(tmp_path / "b.jpg")
    content = coco("a.JPG")
    content["images"].append({"id": 2, "file_name": "b.jpg"})
    table = read_annotations(text(tmp_path / "train.json", content))
    if len(list(tmp_path.glob("*.jpg"))) == 3:  # a file system that tells them apart
        assert table.file_names == ("a.JPG", "b.jpg")


def test_lvis_names_its_images_by_address(tmp_path: Path) -> None:
    here = image(tmp_path / "train2017" / "a b.jpg")
    content = coco(coco_url="http://host/train2017/a%20b.jpg")
    del content["images"][0]["file_name"]
    assert read_annotations(text(tmp_path / "lvis.json", content)).path(0) == here


def test_cvat_subsets_part_images_of_one_name(tmp_path: Path) -> None:
    box = '<box label="car" xtl="10" ytl="12" xbr="16" ybr="20"/>'
    images = "".join(
        f'<image id="{row}" name="a.jpg" subset="{subset}" width="64" height="48">{box}</image>'
        for row, subset in enumerate(("Train", "Validation"))
    )
    for subset in ("Train", "Validation"):
        image(tmp_path / "images" / subset / "a.jpg")
    table = read_annotations(text(tmp_path / "annotations.xml", f"<annotations><meta/>{images}</annotations>"))
    assert table.file_names == ("Train/a.jpg", "Validation/a.jpg")
    assert table.root == tmp_path / "images"


def test_cvat_tracks_with_frames_left_out_are_told(tmp_path: Path) -> None:
    box = '<box frame="{}" outside="{}" xtl="10" ytl="12" xbr="16" ybr="20"/>'
    track = '<track id="0" label="car">' + "".join(box.format(*at) for at in ((0, 0), (4, 1), (9, 0))) + "</track>"
    path = text(tmp_path / "annotations.xml", f"<annotations><meta/>{track}</annotations>")
    assert "3 frames lie between two boxes of a track" in noted(read_annotations(path))


# --- what stands beside boxes


@pytest.mark.parametrize(
    ("line", "boxes", "said"),
    [
        (f"{YOLO} 0.87 3", [BOX], "the number of a track"),
        ("0 0.15625 0.25 0.25 0.25 0.25 0.416666667 0.15625 0.416666667 0.9", [BOX], "a score behind four corners"),
        ("0 0.15625 0.25 0.25 0.25 0.25 0.416666667 0.15625 0.416666667 0.9 7", [BOX], "a score behind four corners"),
        ("0 0.15625 0.25 0.25 0.25 0.25 0.416666667", [BOX], "three corners"),
        (f"{YOLO} 0.1 0.2 0.3", [], "8 fields are neither a box"),
    ],
)
def test_yolo_lines_with_more_than_a_box(tmp_path: Path, line: str, boxes: list[Any], said: str) -> None:
    image(tmp_path / "images" / "a.jpg")
    text(tmp_path / "labels" / "a.txt", line + "\n")
    text(tmp_path / "classes.txt", "car\n")
    table = read_annotations(tmp_path)
    assert_allclose(table.boxes.tolist(), boxes, atol=1e-6)
    assert said in noted(table) + "".join(table.problems)


def test_yolo_polygons_are_not_kept_and_named(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg")
    text(tmp_path / "labels" / "a.txt", f"{YOLO}\n0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n")
    assert read_annotations(tmp_path).unkept == ("segmentation of 1 annotation",)


def test_scores_of_ground_truth_are_told_in_every_format(tmp_path: Path) -> None:
    image(tmp_path / "csv" / "a.jpg")
    table = text(tmp_path / "csv" / "a.csv", "filename,xmin,ymin,xmax,ymax,class,score\na.jpg,10,12,16,20,car,0.3\n")
    image(tmp_path / "visdrone" / "images" / "a.jpg")
    text(tmp_path / "visdrone" / "annotations" / "a.txt", "10,12,6,8,0.9,4,-1,-1\n")
    image(tmp_path / "kitti" / "image_2" / "a.png")
    text(tmp_path / "kitti" / "label_2" / "a.txt", "Car 0.00 0 -1.58 10 12 16 20 1.5 1.6 3.7 1 1 1 0 0.9\n")
    image(tmp_path / "a.jpg")
    scored = coco()
    scored["annotations"][0]["score"] = 0.4
    for source in (table, tmp_path / "visdrone", tmp_path / "kitti", text(tmp_path / "a.json", scored)):
        read = read_annotations(source)
        assert_allclose(read.boxes, [BOX])
        assert "1 box has a score" in noted(read)


def test_label_studio_says_what_was_not_done(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/1/a.jpg"}, "annotations": [{"result": [], "was_cancelled": True}]},
        {"id": 2, "data": {"image": "/data/upload/1/b.jpg"}, "annotations": [{"result": []}]},
    ]
    notes = noted(read_annotations(text(tmp_path / "project.json", tasks)))
    assert "1 annotation was cancelled or skipped: left out" in notes
    assert "1 tasks are not annotated: their images are read as images without objects" in notes


@pytest.mark.parametrize("label", [None, "", "  ", ["car"], {"a": 1}, True])
def test_a_shape_without_class_is_broken(tmp_path: Path, label: Any) -> None:
    image(tmp_path / "a.jpg")
    shapes = [{"label": name, "shape_type": "rectangle", "points": [[10, 12], [16, 20]]} for name in (label, "car")]
    table = read_annotations(text(tmp_path / "a.json", {"version": "5", "shapes": shapes, "imagePath": "a.jpg"}))
    assert table.classes == ("car",)
    assert table.problems == ("a.json, shape 1: the entry has no class",)


def test_a_region_of_via_without_the_class_is_broken(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    rect = {"name": "rect", "x": 10, "y": 12, "width": 6, "height": 8}
    regions = [{"shape_attributes": rect, "region_attributes": found} for found in ({"type": "car"}, {})]
    content = {"_via_img_metadata": {"a.jpg1": {"filename": "a.jpg", "size": 1, "regions": regions}}}
    table = read_annotations(text(tmp_path / "via.json", content))
    assert table.classes == ("car",)
    assert table.problems == ("via.json, a.jpg, region 2: the entry has no class",)


CORNERS = [[10, 12], [16, 12], [16, 20]]
REGION = {"name": "polygon", "all_points_x": [10, 16, 16], "all_points_y": [12, 12, 20]}
SHARES = [[15.625, 25], [25, 25], [25, 41.666666667]]
OUTLINES: dict[str, Any] = {
    "labelme.json": {
        "version": "5",
        "imagePath": "a.jpg",
        "shapes": [{"label": "car", "shape_type": "polygon", "points": CORNERS}],
    },
    "via.json": {
        "_via_img_metadata": {
            "a": {"filename": "a.jpg", "regions": [{"shape_attributes": REGION, "region_attributes": {"name": "car"}}]}
        }
    },
    "studio.json": [
        {
            "id": 1,
            "data": {"image": "a.jpg"},
            "annotations": [
                {
                    "result": [
                        {
                            "type": "polygonlabels",
                            "original_width": 64,
                            "original_height": 48,
                            "value": {"points": SHARES, "polygonlabels": ["car"]},
                        }
                    ]
                }
            ],
        }
    ],
    "cvat.xml": '<annotations><meta/><image id="0" name="a.jpg" width="64" height="48">'
    '<polygon label="car" points="10,12;16,12;16,20"/></image></annotations>',
    "super/ds/ann/a.jpg.json": {
        "size": {"height": 48, "width": 64},
        "tags": [],
        "objects": [{"classTitle": "car", "geometryType": "polygon", "points": {"exterior": CORNERS, "interior": []}}],
    },
}


@pytest.mark.parametrize("name", OUTLINES)
def test_polygons_become_boxes_and_are_named_as_not_kept(tmp_path: Path, name: str) -> None:
    path = text(tmp_path / name, OUTLINES[name])
    image(tmp_path / "a.jpg")
    table = read_annotations(path.parents[2] if "super" in name else path)
    assert_allclose(table.boxes, [BOX], atol=1e-6)
    assert "segmentation of 1 annotation" in table.unkept
