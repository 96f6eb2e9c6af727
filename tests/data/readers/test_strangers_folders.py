"""Folders and fields as other people's machines and tools leave them: what is read as what, and said."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from numpy.testing import assert_allclose
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.infer.source import find_items

LINE = "0 0.5 0.5 0.2 0.2\n"
VOC = "<annotation><filename>{}</filename><object><name>car</name>{}</object></annotation>"
BOX = "<bndbox><xmin>10</xmin><ymin>10</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"


def make(folder: Path, files: dict[str, Any], *images: str) -> Path:
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (100, 50)).save(folder / name)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def said(table: Annotations, words: str) -> bool:
    return any(words in note for note in table.notes)


# --- folders


def test_what_macos_and_notebooks_leave_behind_is_no_file_of_the_set(tmp_path: Path) -> None:
    fork = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X"
    left = {"images/._a.jpg": fork, "labels/._a.txt": fork, "__MACOSX/images/._a.jpg": fork}
    make(tmp_path, {"labels/a.txt": LINE, "classes.txt": "car", **left}, "images/a.jpg")
    make(tmp_path, {}, "images/.ipynb_checkpoints/a-checkpoint.jpg")
    table = read_annotations(tmp_path)
    assert (len(table), table.num_boxes, table.problems, table.notes) == (1, 1, (), ())
    assert [item.name for item in find_items([tmp_path])[0]] == ["images/a.jpg"]
    voc = make(tmp_path / "voc", {"a.xml": VOC.format("a.jpg", BOX), "._a.xml": fork}, "a.jpg")
    assert not read_annotations(voc).problems


@pytest.mark.parametrize(("text", "image"), [("a.TXT", "a.jpg"), ("a.txt", "a.JPG")])
def test_endings_in_any_case(tmp_path: Path, text: str, image: str) -> None:
    make(tmp_path, {f"labels/{text}": LINE, "classes.txt": "car"}, f"images/{image}")
    assert read_annotations(tmp_path).num_boxes == 1
    voc = make(tmp_path / "voc", {"a.XML": VOC.format("a.jpg", BOX)}, "a.jpg")
    assert read_annotations(voc).num_boxes == 1


def test_folders_behind_links_are_looked_into_once(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", {"labels/train/a.txt": LINE}, "images/train/a.jpg")
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "labels").mkdir()
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind / "train").symlink_to(tmp_path / "elsewhere" / kind / "train")
    (tmp_path / "set" / "images" / "round").symlink_to(tmp_path / "set" / "images")
    table = read_annotations(make(tmp_path / "set", {"classes.txt": "car"}))
    assert table.file_names == ("train/a.jpg",)
    assert table.num_boxes == 1
    assert len(find_items([tmp_path / "set"])[0]) == 1


@pytest.mark.parametrize(("on_disk", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_in_either_form(tmp_path: Path, on_disk: str, written: str) -> None:
    """macOS writes é as e and an accent, others as one letter."""
    image, text = (unicodedata.normalize(form, "café") for form in (on_disk, written))
    make(tmp_path, {f"labels/{text}.txt": LINE, "classes.txt": "car"}, f"images/{image}.jpg")
    assert read_annotations(tmp_path).num_boxes == 1
    coco = {"images": [{"id": 1, "file_name": f"images/{text}.jpg"}], "annotations": [], "categories": []}
    table = read_annotations(make(tmp_path, {"a.json": coco}) / "a.json")
    assert table.path(0).is_file()


def test_images_under_the_name_of_their_xml_file(tmp_path: Path) -> None:
    make(tmp_path, {"a.xml": VOC.format("IMG_77.jpg", BOX), "b.xml": VOC.format("b", BOX)}, "a.jpg", "b.png")
    table = read_annotations(tmp_path)
    assert table.file_names == ("a.jpg", "b.png")
    assert said(table, "2 annotation files name an image that is not there: the image of their own name is taken")


def test_labelmes_images_beside_the_folder(tmp_path: Path) -> None:
    shape = {"label": "car", "points": [[1, 2], [9, 8]], "shape_type": "rectangle"}
    content = {"version": "5", "flags": {}, "shapes": [shape], "imagePath": "..\\images\\a.jpg"}
    make(tmp_path, {"json/a.json": content}, "images/a.jpg")
    assert read_annotations(tmp_path / "json").path(0) == tmp_path / "images" / "a.jpg"


def test_names_of_classes_above_a_folder_of_labels(tmp_path: Path) -> None:
    make(tmp_path, {"obj_train_data/a.txt": LINE, "obj.names": "car\n"}, "obj_train_data/a.jpg")
    assert read_annotations(tmp_path / "obj_train_data").classes == ("car",)
    (tmp_path / "obj.names").unlink()
    table = read_annotations(tmp_path / "obj_train_data")
    assert table.classes == ("class 0",)
    assert said(table, "classes have no names")


# --- fields


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4", "1 line holds more than a box, read as a polygon"),
        ("0 0.5 0.5 0.2 0.2 0.78", "1 line has a sixth field, which is taken for a score"),
        ("0 50 25 20 10", "1 line has shares above 2: are they pixels?"),
    ],
)
def test_guesses_about_lines_of_yolo_are_said(tmp_path: Path, line: str, words: str) -> None:
    make(tmp_path, {"labels/a.txt": line, "classes.txt": "car"}, "images/a.jpg")
    assert said(read_annotations(tmp_path), words)


def test_a_count_of_classes_that_is_not_theirs(tmp_path: Path) -> None:
    yaml = "train: images\nnc: 3\nnames: ['car, red', bus]\n"
    table = read_annotations(make(tmp_path, {"labels/a.txt": LINE, "data.yaml": yaml}, "images/a.jpg"))
    assert said(table, "'nc' is '3', and 'names' has 2 classes")
    assert table.classes == ("car, red", "bus")


def test_boxes_that_look_like_corners(tmp_path: Path) -> None:
    def content(*boxes: list[float]) -> dict[str, Any]:
        entries = [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
        image = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}
        return {"images": [image], "annotations": entries, "categories": [{"id": 1, "name": "car"}]}

    path = make(tmp_path, {"a.json": content([60, 30, 90, 45], [1, 1, 9, 9])}) / "a.json"
    assert said(read_annotations(path), "1 of 2 boxes reach out of their images, and all would be sound as corners")
    path = make(tmp_path, {"a.json": content([60, 30, 90, 45], [50, 20, 9, 9])}) / "a.json"  # the second is none
    assert not said(read_annotations(path), "corners")


def test_turned_boxes_of_rolabelimg(tmp_path: Path) -> None:
    turned = "<robndbox><cx>50</cx><cy>20</cy><w>20</w><h>10</h><angle>1.5707963268</angle></robndbox>"
    table = read_annotations(make(tmp_path, {"a.xml": VOC.format("a.jpg", turned)}, "a.jpg"))
    assert_allclose(table.boxes, [[45, 10, 55, 30]], atol=1e-6)
    assert said(table, "as roLabelImg writes them")


def test_what_a_label_studio_export_has_besides_annotations(tmp_path: Path) -> None:
    value = {"x": 50, "y": 20, "width": 20, "height": 10, "rectanglelabels": ["car", "bus"]}
    result = {"type": "rectanglelabels", "original_width": 100, "original_height": 50, "value": value}
    tasks = [
        {"id": n, "data": {"image": "a.jpg"}, key: [{"result": [result]}]}
        for n, key in ((1, "annotations"), (2, "predictions"))
    ]
    table = read_annotations(make(tmp_path, {"a.json": tasks}, "a.jpg") / "a.json")
    assert table.num_boxes == 1
    assert said(table, "1 tasks have predictions and no annotation")
    assert said(table, "1 shapes have several labels")


def test_csv_of_excel_and_of_people(tmp_path: Path) -> None:
    head, row = "image_path, xmin, ymin, xmax, ymax, label", 'a.jpg, 1, 2, 10, 12, "car, red"'
    assert read_annotations(make(tmp_path, {"a.csv": f"{head}\n{row}\n"}, "a.jpg") / "a.csv").classes == ("car, red",)
    path = make(tmp_path, {"b.csv": f"sep=,\n{head}\n{row}\na.jpg,x,2,3,4,car\n"}) / "b.csv"
    assert read_annotations(path).problems == ("b.csv, line 4: the entry has no box of four finite numbers",)


def test_a_set_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    path = make(tmp_path, {"a.json": {"images": [{"file_name": "a.jpg"}, {}], "annotations": [], "categories": []}})
    with pytest.raises(UserError, match=r"nothing in it can be read: a\.json: image 1 has the id None.*\(and 1 more\)"):
        read_annotations(path / "a.json")


def test_a_recipe_is_no_data_yaml(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\ndata: {train: sets/train.json}\nmodel: {name: fcos:resnet18}\n")
    with pytest.raises(UserError, match=r"recipe.yaml: a recipe, not annotations; .*'sets/train.json'"):
        read_annotations(recipe)
