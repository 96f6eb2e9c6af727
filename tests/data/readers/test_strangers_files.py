"""Annotation files as the tools of the field write them: the right value of each, or one line that says what to do.

Every case is a kind that people reported about CVAT, Label Studio, LabelImg, Roboflow, VIA, VisDrone and others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from flyspeck.data.readers import read_annotations
from flyspeck.data.readers.masks import mask_box
from flyspeck.data.writers import write_coco, write_yolo
from flyspeck.errors import UserError
from flyspeck.train.config import DataConfig
from flyspeck.train.inputs import read_sets


def image(path: Path, width: int = 64, height: int = 48) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (60, 60, 60)).save(path)
    return path


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def coco(path: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "person"}],
    }
    return text(path, json.dumps({**content, **changes}))


# --- COCO


def test_paths_of_windows(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg")
    path = coco(tmp_path / "result.json", images=[{"id": 0, "file_name": "images\\a.jpg"}],
                annotations=[{"id": 1, "image_id": 0, "category_id": 1, "bbox": [5, 6, 7, 8]}])  # fmt: skip
    table = read_annotations(path)
    assert table.path(0) == tmp_path / "images" / "a.jpg"
    assert table.sizes.tolist() == [[48, 64]]  # from the file, as the json does not say


def test_paths_of_another_machine(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg")
    table = read_annotations(coco(tmp_path / "x.json", images=[{"id": 1, "file_name": "C:\\data\\set\\images\\a.jpg"}]))
    assert table.path(0).is_file()
    assert "C:/data/set" in table.notes[0]


@pytest.mark.parametrize(
    ("image_id", "in_box", "category", "of_box"),
    [(1.0, 1.0, 1, 1.0), ("1", 1, "1", 1), (1, "1", 1, "1"), (2**70, 2**70, 2**65, float(2**65)), ("a", "a", 1, 1)],
)
def test_ids_in_other_spellings(tmp_path: Path, image_id: Any, in_box: Any, category: Any, of_box: Any) -> None:
    path = coco(
        tmp_path / "x.json",
        images=[{"id": image_id, "file_name": "a.jpg", "width": 64, "height": 48}],
        annotations=[{"id": "7", "image_id": in_box, "category_id": of_box, "bbox": [5, 6, 7, 8], "iscrowd": "0"}],
        categories=[{"id": category, "name": " person "}],
    )
    for evaluating in (False, True):
        table = read_annotations(path, for_evaluation=evaluating)
        assert_array_equal(table.boxes, [[5, 6, 12, 14]])
        assert table.labels.tolist() == [0]
        assert table.classes == ("person",)
        assert not table.problems


def test_two_categories_of_one_name_stay_two(tmp_path: Path) -> None:
    box = {"image_id": 1, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0}
    path = coco(
        tmp_path / "x.json",
        annotations=[{**box, "id": 1, "category_id": 1}, {**box, "id": 2, "category_id": 2}],
        categories=[{"id": 1, "name": "wheel"}, {"id": 2, "name": "wheel"}],
    )
    table = read_annotations(path)
    assert table.labels.tolist() == [0, 1]
    assert table.classes == ("wheel", "wheel (id 2)")
    assert table.category_ids == (1, 2)
    assert "two categories are called 'wheel'" in table.notes[0]
    write_coco(table, tmp_path / "y.json")
    again = read_annotations(tmp_path / "y.json")
    assert (again.labels.tolist(), again.category_ids) == ([0, 1], (1, 2))


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_marks_and_line_ends(tmp_path: Path, mark: bytes, ends: str) -> None:
    path = coco(tmp_path / "x.json")
    path.write_bytes(mark + path.read_text().replace("}, ", "}," + ends).encode())
    assert read_annotations(path).num_boxes == 1


def test_utf_16_says_itself_what_it_is(tmp_path: Path) -> None:
    path = coco(tmp_path / "x.json")
    path.write_bytes(path.read_text().encode("utf-16"))
    assert read_annotations(path).num_boxes == 1


@pytest.mark.parametrize("bbox", [None, []])
def test_a_mask_alone_gives_its_box(tmp_path: Path, bbox: Any) -> None:
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": bbox, "segmentation": [[5, 6, 12, 6, 12, 14, 5, 14]]}
    table = read_annotations(coco(tmp_path / "x.json", annotations=[entry]))
    assert_array_equal(table.boxes, [[5, 6, 12, 14]])
    assert "segmentation and no bbox" in table.notes[0]


@given(st.integers(0, 2**31), st.booleans())
def test_boxes_of_run_lengths_are_pycocotools(seed: int, sparse: bool) -> None:
    masks = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, 2))
    mask = np.asfortranarray(rng.random(shape) < (0.1 if sparse else 0.7), dtype=np.uint8)
    encoded = masks.encode(mask)
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    runs = [0, *runs] if flat[0] else runs
    size = [int(side) for side in shape]
    for counts in (encoded["counts"].decode(), runs):
        found = mask_box({"size": size, "counts": counts})
        if mask.any():
            assert_allclose(found, masks.toBbox(encoded))
        else:
            assert np.isnan(found).all()


def test_a_set_of_crowds_is_pointed_out(tmp_path: Path) -> None:
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 7, 8], "iscrowd": 1}
    assert "every annotation has iscrowd 1" in read_annotations(coco(tmp_path / "x.json", annotations=[entry])).notes[0]


@pytest.mark.parametrize(
    ("content", "tool"),
    [
        ({"version": "5", "flags": {}, "shapes": [], "imagePath": "a.jpg"}, "labelme"),
        ([{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}], "Label Studio"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "VIA"),
        ({"size": {"height": 4, "width": 4}, "tags": [], "objects": []}, "Supervisely"),
    ],
)
def test_the_tool_of_a_foreign_file_is_named(tmp_path: Path, content: Any, tool: str) -> None:
    with pytest.raises(UserError, match=tool):
        read_annotations(text(tmp_path / "x.json", json.dumps(content)), format="coco")


# --- YOLO


def yolo(folder: Path, line: str = "0 0.5 0.5 0.125 0.25\n") -> Path:
    image(folder / "images" / "a.jpg")
    text(folder / "labels" / "a.txt", line)
    return folder


def test_notes_beside_labels_are_no_annotations(tmp_path: Path) -> None:
    text(yolo(tmp_path) / "notes.json", '{"categories": [], "info": {}}')
    text(tmp_path / "classes.txt", "car \r\nperson\r\n\r\n")
    table = read_annotations(tmp_path)
    assert table.source.startswith("yolo")
    assert table.classes == ("car", "person")
    assert_array_equal(table.boxes, [[28, 18, 36, 30]])


def test_key_points_are_no_polygon(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.50 0.50 0.10 0.20 0.46 0.42 0.54 0.42 0.54 0.58 0.46 0.58\n")
    image(tmp_path / "images" / "a.jpg", 100, 100)
    text(tmp_path / "data.yaml", "path: .\ntrain: images\nkpt_shape: [4, 2]\nnames: [plate]\n")
    assert_allclose(read_annotations(tmp_path).boxes, [[45, 40, 55, 60]])
    text(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.1 0.2\n")
    assert "5 fields where a box and its key points" in read_annotations(tmp_path).problems[0]


def test_words_that_yaml_takes_for_truths_are_names(tmp_path: Path) -> None:
    yolo(tmp_path)
    text(tmp_path / "data.yaml", "path: .\ntrain: images\nnames: [no, yes, 1_0]\n")
    assert read_annotations(tmp_path).classes == ("no", "yes", "1_0")


def test_darknet_folders_of_cvat(tmp_path: Path) -> None:
    for name in "ab":
        image(tmp_path / "obj_train_data" / f"{name}.jpg")
        text(tmp_path / "obj_train_data" / f"{name}.txt", "1 0.5 0.5 0.1 0.1\n")
    text(tmp_path / "obj.names", "car\nperson\n")
    text(tmp_path / "train.txt", "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    text(tmp_path / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    for source in (tmp_path, tmp_path / "train.txt", tmp_path / "obj.data"):
        table = read_annotations(source)
        assert (len(table), table.classes, table.labels.tolist()) == (2, ("car", "person"), [1, 1])
    (tmp_path / "obj.data").unlink()
    assert read_annotations(tmp_path / "train.txt").classes == ("car", "person")


def test_labels_without_image_and_images_without_label_are_said(tmp_path: Path) -> None:
    yolo(tmp_path)
    image(tmp_path / "images" / "b.jpg")
    for name in "xyz":
        text(tmp_path / "labels" / f"{name}.txt", "0 0.5 0.5 0.1 0.1\n")
    text(tmp_path / "images" / "raw.dng", "x")
    notes = " ".join(read_annotations(tmp_path).notes)
    assert "3 label files have no image, and their objects are lost (x.txt, y.txt, z.txt)" in notes
    assert "1 of 2 images have no label file" in notes
    assert "1 image is a .dng file" in notes


def test_two_images_of_one_stem_keep_ids_of_their_own(tmp_path: Path) -> None:
    image(yolo(tmp_path) / "images" / "a.png")
    table = read_annotations(tmp_path)
    assert table.image_ids.tolist() == ["a.jpg", "a.png"]
    assert any("1 label file belongs to several images, and is read for each" in note for note in table.notes)


@pytest.mark.parametrize("layout", ["train/images", "images/train", "images", "set/images/deep/images", ""])
def test_what_is_written_as_yolo_is_read_back(tmp_path: Path, layout: str) -> None:
    folder = f"{layout}/" if layout else ""
    for name in ("a", "é b"):
        image(tmp_path / "src" / f"{folder}{name}.jpg")
    path = coco(
        tmp_path / "src" / "all.json",
        images=[{"id": 1, "file_name": f"{folder}a.jpg", "width": 64, "height": 48},
                {"id": 2, "file_name": f"{folder}é b.jpg", "width": 64, "height": 48}],
        annotations=[{"id": i, "image_id": i, "category_id": 1, "bbox": [5, 6, 7, 8]} for i in (1, 2)],
    )  # fmt: skip
    table = read_annotations(path)
    write_yolo(table, tmp_path / "out")
    again = read_annotations(tmp_path / "out")
    assert_allclose(again.boxes, table.boxes, atol=1e-6)
    assert not again.notes


# --- many formats: empty files first, encodings


@pytest.mark.parametrize(
    ("kind", "line"),
    [("yolo", "0 0.5 0.5 0.1 0.1"), ("dota", "1 1 9 1 9 9 1 9 car 0"), ("visdrone", "5,6,7,8,1,4,0,0")],
)
def test_folders_that_begin_with_empty_files(tmp_path: Path, kind: str, line: str) -> None:
    labels = {"yolo": tmp_path, "dota": tmp_path / "labelTxt", "visdrone": tmp_path / "annotations"}[kind]
    for number in range(25):
        image((tmp_path if kind == "yolo" else tmp_path / "images") / f"{number:03d}.jpg", 16, 16)
        text(labels / f"{number:03d}.txt", f"{line}\n" if number > 21 else "")
    table = read_annotations(tmp_path)
    assert table.source.startswith(kind)
    assert table.num_boxes == 3


def test_visdrones_videos_are_not_its_images(tmp_path: Path) -> None:
    image(tmp_path / "images" / "uav1.jpg")
    text(tmp_path / "annotations" / "uav1.txt", "1,3,50,60,20,9,1,4,0,0\n")
    with pytest.raises(UserError, match="10 columns are a file of VisDrone's videos"):
        read_annotations(tmp_path, format="visdrone")


HEAD = "image_path,xmin,ymin,xmax,ymax,label\n"
TABLES = {
    "semicolons": (HEAD.replace(",", ";") + "a.jpg;5;6;12;14;car\n", "utf-8"),
    "decimal commas": (HEAD.replace(",", ";") + "a.jpg;5,0;6,0;12,0;14,0;car\n", "utf-8"),
    "tabs": (HEAD.replace(",", "\t") + "a.jpg\t5\t6\t12\t14\tcar\n", "utf-8"),
    "utf-16": (HEAD + "a.jpg,5,6,12,14,car\n", "utf-16"),
    "crlf": ((HEAD + "a.jpg,5,6,12,14,car\n").replace("\n", "\r\n"), "utf-8-sig"),
    "shares": (HEAD + "a.jpg,0.078125,0.125,0.1875,0.2916666666666667,car\n", "utf-8"),
    "tensorflow": ("filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,64,48,car,5,6,12,14\n", "utf-8"),
}


@pytest.mark.parametrize("name", TABLES)
def test_dialects_of_csv(tmp_path: Path, name: str) -> None:
    image(tmp_path / "a.jpg")
    table = read_annotations(text(tmp_path / "t.csv", *TABLES[name]))
    assert_allclose(table.boxes, [[5, 6, 12, 14]], atol=1e-9)
    assert table.classes == ("car",)


def test_csv_without_header_or_of_another_code(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the first line is a box, not a header"):
        read_annotations(text(tmp_path / "n.csv", "a.jpg,5,6,12,14,car\n"))
    path = text(tmp_path / "c.csv", HEAD + "a.jpg,5,6,12,14,vélo\n", "cp1252")
    with pytest.raises(UserError, match=r"line 2: not UTF-8 \(byte 0xE9\).*--encoding cp1252"):
        read_annotations(path)
    assert read_annotations(path, encoding="cp1252").classes == ("vélo",)


# --- VOC


def voc(path: Path, corners: str = "10 12 16 18", source: str = "", head: str = "", name: str = "car") -> Path:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners.split(), strict=True))
    return text(
        path,
        f"{head}<annotation>{source}<filename>a.png</filename><size><width>64</width><height>48</height></size>"
        f"<object><name>{name}</name><difficult>0</difficult><bndbox>{sides}</bndbox></object></annotation>",
    )


LABELIMG = "<path>C:\\a.png</path><source><database>Unknown</database></source>"
ROBOFLOW = "<source><database>roboflow.com</database></source>"
CVAT = "<source><database>Unknown</database><annotation>Unknown</annotation><image>Unknown</image></source>"
PASCAL = "<source><database>The VOC2007 Database</database><annotation>PASCAL VOC2007</annotation></source>"


@pytest.mark.parametrize(
    ("source", "corners", "box"),
    [
        (LABELIMG, "10 12 16 18", [10, 12, 16, 18]),
        (LABELIMG, "0 0 4 4", [0, 0, 4, 4]),
        (CVAT, "10.00 12.00 16.00 18.00", [10, 12, 16, 18]),
        (ROBOFLOW, "10 12 16 18", [10, 12, 16, 18]),
        (PASCAL, "10 12 16 18", [9, 11, 16, 18]),
        ("", "10 12 16 18", [9, 11, 16, 18]),
        ("", "0 12 16 18", [0, 12, 17, 19]),
        ("", "10.5 12 16 18", [10.5, 12, 16, 18]),
    ],
)
def test_corners_mean_what_their_tool_means(tmp_path: Path, source: str, corners: str, box: list[float]) -> None:
    path = voc(tmp_path / "a.xml", corners, source)
    table = read_annotations(path)
    assert_array_equal(table.boxes, [box])
    assert "--pixels" in table.notes[0]
    asked = read_annotations(path, pixels="half-open")
    assert_array_equal(asked.boxes, [[float(side) for side in corners.split()]])
    assert not asked.notes


def test_one_meaning_for_both_sets_of_a_run(tmp_path: Path) -> None:
    for split, corners in (("train", "10 12 16 18"), ("val", "0 12 16 18")):
        voc(tmp_path / split / "a.xml", corners)
        image(tmp_path / split / "a.png")
    train, val = read_sets(DataConfig(train=str(tmp_path / "train"), val=str(tmp_path / "val")))
    assert train.pixels == val.pixels == "from-1"
    voc(tmp_path / "val" / "a.xml", "20 12 26 18", LABELIMG)
    train, val = read_sets(DataConfig(train=str(tmp_path / "train"), val=str(tmp_path / "val")))
    assert train.pixels == val.pixels == "half-open"


@pytest.mark.parametrize("code", ["gbk", "shift_jis", "cp1252", "utf-16"])
def test_xml_in_the_code_that_it_declares(tmp_path: Path, code: str) -> None:
    name = {"gbk": "汽车", "shift_jis": "車", "cp1252": "vélo", "utf-16": "車"}[code]
    path = voc(tmp_path / "a.xml", head=f'<?xml version="1.0" encoding="{code}"?>', name=name)
    path.write_bytes(path.read_text(encoding="utf-8").encode(code))
    assert read_annotations(path).classes == (name,)


def test_latin_without_declaration(tmp_path: Path) -> None:
    path = voc(tmp_path / "a.xml", name="vélo")
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    with pytest.raises(UserError, match=r"nothing in it can be read.*not UTF-8 \(byte 0xE9\); declare it"):
        read_annotations(path)
    voc(tmp_path / "b.xml", name="car")
    table = read_annotations(tmp_path)
    assert len(table) == 1
    assert "not UTF-8 (byte 0xE9); declare it" in table.problems[0]
    assert read_annotations(path, encoding="latin-1").classes == ("vélo",)


@pytest.mark.parametrize(("word", "ignored"), [("false", False), ("Unspecified", False), ("True", True), ("1", True)])
def test_words_for_difficult(tmp_path: Path, word: str, ignored: bool) -> None:
    path = voc(tmp_path / "a.xml")
    path.write_text(path.read_text().replace("<difficult>0", f"<difficult>{word}"))
    assert read_annotations(path).ignore.tolist() == [ignored]


# --- sets of a run


def run_sets(folder: Path, *, train: list[str], val: list[str], classes: list[str] | None = None) -> tuple[Any, Any]:
    for split, names in (("train", train), ("val", val)):
        rows = "".join(f"a.jpg,5,6,12,{14 + i},{name}\n" for i, name in enumerate(names))
        image(folder / split / "a.jpg")
        text(folder / split / "t.csv", HEAD + rows)
    data = DataConfig(train=str(folder / "train/t.csv"), val=str(folder / "val/t.csv"), classes=classes)
    return read_sets(data)


def test_a_class_that_only_training_has(tmp_path: Path) -> None:
    for classes in (None, ["bus", "car"]):
        train, val = run_sets(tmp_path, train=["bus", "car"], val=["car"], classes=classes)
        assert train.classes == val.classes == ("bus", "car")
        assert val.labels.tolist() == [1]
        assert len(set(val.category_ids)) == 2


def test_a_class_that_no_set_has_is_a_slip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="class 'buss' is in neither set; did you mean 'bus'"):
        run_sets(tmp_path, train=["bus", "car"], val=["car"], classes=["buss", "car"])


def test_a_training_set_without_objects_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    path = coco(tmp_path / "x.json", annotations=[])
    with pytest.raises(UserError, match="no objects to learn"):
        read_sets(DataConfig(train=str(path), val=str(path)))


def test_what_the_table_does_not_hold_is_named(tmp_path: Path) -> None:
    entry = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [5, 6, 7, 8],
        "segmentation": [[1, 1, 2, 2]],
        "keypoints": [],
    }
    table = read_annotations(coco(tmp_path / "x.json", annotations=[entry], licenses=[{"id": 1}]))
    assert table.unkept == ("licenses", "segmentation of 1 annotation")
