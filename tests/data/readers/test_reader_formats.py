"""The other formats: a small data set of each written, found out, read; and broken lines said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError


def image(path: Path, width: int, height: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_visdrone(tmp_path: Path) -> None:
    image(tmp_path / "images" / "0001.png", 60, 40)
    lines = [
        "1,2,3,4,1,4,0,1",  # car
        "10,10,20,20,0,0,0,0,",  # ignored region, with the comma that some files end in
        "30,5,4,4,1,11,0,0",  # others: no class of the benchmark
        "5,5,2,2,0,1,1,2",  # pedestrian with score 0: left out of the evaluation
        "5,5,2",
        "5,5,2,2,1,77,0,0",
        "",
    ]
    text(tmp_path / "annotations" / "0001.txt", "\n".join(lines))
    text(tmp_path / "annotations" / "0002.txt", "")
    table = read_annotations(tmp_path)
    assert table.source.startswith("visdrone")
    assert len(table.classes) == 10
    assert table.image_ids.tolist() == ["0001", "0002"]
    assert_array_equal(table.sizes, [[40, 60], [-1, -1]])
    assert table.path(0).is_file()
    assert_array_equal(table.boxes, [[1, 2, 4, 6], [10, 10, 30, 30], [30, 5, 34, 9], [5, 5, 7, 7]])
    assert [table.classes[k] if k >= 0 else "-" for k in table.labels] == ["car", "-", "-", "-"]
    assert_array_equal(table.ignore, [False, True, True, True])
    assert_array_equal(table.extra["category"], [3, -1, -1, 0])
    assert_array_equal(table.extra["occlusion"], [1, 0, 0, 2])
    assert table.problems[0] == "0001.txt, line 5: 3 fields where VisDrone has 8"
    assert table.problems[1].startswith("0001.txt, line 6: the entry names a category that is not listed")
    assert read_annotations(tmp_path / "annotations").num_boxes == 4


DOTA_LINES = (
    "10 20 30 20 30 40 10 40 plane 0\n50 10 60 20 50 30 40 20 ship 1\n1 2 3 4 plane 0\n1 2 3 x 5 6 7 8 ship 0\n"
)


@pytest.mark.parametrize("header", ["", "imagesource:GoogleEarth\ngsd:0.146\n", "'imagesource':null\n", "gsd:null\n"])
def test_dota(tmp_path: Path, header: str) -> None:
    text(tmp_path / "labelTxt-v1.0" / "P1.txt", header.replace("'", "") + DOTA_LINES)
    image(tmp_path / "images" / "P1.png", 100, 90)
    table = read_annotations(tmp_path)
    assert table.source.startswith("dota")
    assert_array_equal(table.boxes, [[10, 20, 30, 40], [40, 10, 60, 30]])  # the second is a square on its corner
    assert_array_equal(table.extra["polygon"][1], [50, 10, 60, 20, 50, 30, 40, 20])
    assert len(table.classes) == 15  # all of version 1.0, so that the numbers do not depend on the split
    assert_array_equal(table.labels, [table.classes.index("plane"), -1])  # difficult: an ignore region
    assert_array_equal(table.extra["category"], [table.classes.index(name) for name in ("plane", "ship")])
    assert_array_equal(table.sizes, [[90, 100]])
    assert len(table.problems) == 2
    easy = read_annotations(tmp_path, ignore_flags=())
    assert not easy.ignore.any()


def test_dota_versions_and_own_names(tmp_path: Path) -> None:
    line = "10 20 30 20 30 40 10 40 {} 0\n"
    path = text(tmp_path / "labelTxt" / "P1.txt", line.format("container-crane"))
    assert len(read_annotations(tmp_path).classes) == 16
    path.write_text(line.format("helipad"))
    assert len(read_annotations(tmp_path).classes) == 18
    path.write_text(line.format("tree") + line.format("hut"))
    assert read_annotations(tmp_path).classes == ("hut", "tree")


def voc(name: str, box: tuple[object, ...], **flags: int) -> str:
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    marks = "".join(f"<{key}>{value}</{key}>" for key, value in flags.items())
    return f"<object><name>{name}</name>{marks}<bndbox>{sides}</bndbox></object>"


def test_voc(tmp_path: Path) -> None:
    size = "<size><width>50</width><height>40</height></size>"
    objects = voc("dog", (1, 2, 4, 6), difficult=1) + voc("cat", (11, 12, 20, 30), difficult=0, truncated=1)
    broken = voc("cat", ("x", 1, 2, 3)) + voc("", (1, 1, 2, 2))
    content = f"<annotation><filename>1.jpg</filename>{size}{objects}{broken}</annotation>"
    text(tmp_path / "Annotations" / "1.xml", content)
    text(tmp_path / "Annotations" / "2.xml", "<annotation><object></annotation>")
    text(tmp_path / "Annotations" / "3.xml", "<annotation></annotation>")
    image(tmp_path / "JPEGImages" / "3.jpg", 30, 20)
    table = read_annotations(tmp_path)
    assert table.source.startswith("voc")
    # 1-based and inclusive: columns 1 to 4 are pixels 0 to 3, so half-open 0 to 4.
    assert_array_equal(table.boxes, [[0, 1, 4, 6], [10, 11, 20, 30]])
    assert table.classes == ("cat", "dog")
    assert_array_equal(table.labels, [-1, 0])
    assert_array_equal(table.extra["truncated"], [False, True])
    assert table.file_names == ("1.jpg", "3.jpg")
    assert_array_equal(table.sizes, [[40, 50], [20, 30]])  # the second from the image itself
    said = " | ".join(table.problems)
    for words in ("1.xml, object 3", "1.xml, object 4: no name", "2.xml, line 1: not valid xml"):
        assert words in said


def test_voc_that_counts_from_zero(tmp_path: Path) -> None:
    text(tmp_path / "1.xml", f"<annotation>{voc('a', (0, 0, 3, 4))}{voc('a', (5, 5, 6, 6))}</annotation>")
    table = read_annotations(tmp_path)
    assert_array_equal(table.boxes, [[0, 0, 4, 5], [5, 5, 7, 7]])
    assert "counted from 0" in table.source


def test_wider(tmp_path: Path) -> None:
    lines = [
        "0--Parade/a.jpg",
        "2",
        "10 20 5 6 0 0 0 0 2 0 ",
        "1 2 0 4 0 0 0 1 0 0",
        "1--Handshaking/b.jpg",
        "0",
        "0 0 0 0 0 0 0 0 0 0 ",
        "1--Handshaking/c.jpg",
        "1",
        "7 8 9 10 1 0 0 1 0 0",
    ]
    path = text(tmp_path / "wider_face_split" / "wider_face_val_bbx_gt.txt", "\n".join(lines) + "\n")
    image(tmp_path / "WIDER_val" / "images" / "0--Parade" / "a.jpg", 64, 48)
    for source in (path, tmp_path):
        table = read_annotations(source)
        assert table.source.startswith("wider face")
        assert table.file_names == ("0--Parade/a.jpg", "1--Handshaking/b.jpg", "1--Handshaking/c.jpg")
        assert_array_equal(table.sizes[0], [48, 64])
        assert_array_equal(table.boxes, [[10, 20, 15, 26], [7, 8, 16, 18]])
        assert_array_equal(table.labels, [0, -1])  # the second is marked invalid
        assert_array_equal(table.extra["occlusion"], [2, 0])
        assert table.problems == ()
        (note,) = table.notes
        assert note.startswith("1 boxes without a width and height above 0 left out")
        assert "line 4)" in note
    kept = read_annotations(path, for_evaluation=True)
    assert (kept.num_boxes, kept.notes) == (3, ())


def test_wider_faces_that_have_no_box_of_numbers_stay_broken(tmp_path: Path) -> None:
    faces = ["4 4 -2 3 0 0 0 0 0 0", "4 4 0 0 0 0 0 0 0 0", "nan 4 2 2 0 0 0 0 0 0", "4 4 2 2 0 0 0 0 0 0"]
    path = text(tmp_path / "wider_face_train_bbx_gt.txt", "a.jpg\n4\n" + "\n".join(faces) + "\n")
    table = read_annotations(path)
    assert table.num_boxes == 1
    assert len(table.problems) == 1
    assert "four finite numbers" in table.problems[0]
    assert table.notes[0].startswith("2 boxes without a width and height above 0 left out")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a.jpg\nb.jpg\n", "line 2: no number of faces after 'a.jpg'"),
        ("a.jpg\n2\n1 2 3 4\n", "line 4: 'a.jpg' has fewer faces than its 2"),
    ],
)
def test_wider_cut_off(tmp_path: Path, content: str, words: str) -> None:
    path = text(tmp_path / "x.txt", content)
    with pytest.raises(UserError) as caught:
        read_annotations(path)
    assert words in str(caught.value)


def test_wider_mat(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")

    def cell(*items: object) -> np.ndarray:
        column = np.empty((len(items), 1), dtype=object)
        for row, item in enumerate(items):
            column[row, 0] = item
        return column

    content = {
        "event_list": cell("0--Parade", "1--Handshaking"),
        "file_list": cell(cell("a", "b"), cell("c")),
        "face_bbx_list": cell(
            cell(np.array([[1, 2, 3, 4], [5, 6, 0, 8]], np.int32), np.zeros((0, 4))), cell(np.array([[9.0, 8, 7, 6]]))
        ),
    }
    path = tmp_path / "wider_face_val.mat"
    scipy_io.savemat(path, content)
    table = read_annotations(path, for_evaluation=True)
    assert table.image_ids.tolist() == ["0--Parade/a.jpg", "0--Parade/b.jpg", "1--Handshaking/c.jpg"]
    assert_array_equal(table.boxes, [[1, 2, 4, 6], [5, 6, 5, 14], [9, 8, 16, 14]])
    assert_array_equal(table.image_index, [0, 0, 2])
    assert "kept_easy" not in table.extra
    # The benchmark's other files: which faces count, numbered from 1 in each image.
    for name, first, last in (("easy", [2], []), ("medium", [1, 2], []), ("hard", [1, 2], [1])):
        listed = {"gt_list": cell(cell(np.array(first), np.zeros((0, 1))), cell(np.array(last)))}
        scipy_io.savemat(tmp_path / f"wider_{name}_val.mat", listed)
    table = read_annotations(path, for_evaluation=True)
    assert_array_equal(table.extra["kept_easy"], [False, True, False])
    assert_array_equal(table.extra["kept_hard"], [True, True, True])
    assert_array_equal(read_annotations(path).extra["kept_easy"], [False, False])  # without the face of no width
    scipy_io.savemat(tmp_path / "wider_hard_val.mat", {"gt_list": cell(cell(np.array([1])))})
    with pytest.raises(UserError, match=r"lists 1 images, wider_face_val\.mat has 3"):
        read_annotations(path)
    path.write_bytes(b"not a mat file at all, but long enough to have a header" * 10)
    with pytest.raises(UserError, match="not a MATLAB file"):
        read_annotations(path)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    image(tmp_path / "images" / "val" / "a.png", 100, 50)
    image(tmp_path / "images" / "val" / "b.png", 10, 10)
    lines = ["1 0.5 0.5 0.2 0.4", "0 0.1 0.1 0.3 0.1 0.2 0.5", "0 0.5 0.5", "7 0.5 0.5 0.1 0.1", "0 nan 0.5 0.1 0.1"]
    text(tmp_path / "labels" / "val" / "a.txt", "\n".join(lines))
    text(tmp_path / "data.yaml", "path: .\nval: images/val\nnames: {0: person, 1: car}\n")
    return tmp_path


def test_yolo(yolo: Path) -> None:
    for source in (yolo, yolo / "data.yaml", f"{yolo / 'data.yaml'}:val"):
        table = read_annotations(source)
        assert table.source == "yolo: data.yaml, split val"
        assert table.classes == ("person", "car")
        assert table.file_names == ("images/val/a.png", "images/val/b.png")
        assert_array_equal(table.sizes, [[50, 100], [10, 10]])
        # 0.5 +- 0.1 of 100 and 0.5 +- 0.2 of 50; then the box around a triangle.
        assert_allclose(table.boxes, [[40, 15, 60, 35], [10, 5, 30, 25]], atol=1e-9)
        assert_array_equal(table.labels, [1, 0])
        assert len(table.problems) == 3
    with pytest.raises(UserError, match="no split 'train'"):
        read_annotations(f"{yolo / 'data.yaml'}:train")


@pytest.mark.parametrize("listed", ["[images/val, images]", "[images/val, ./images/val]", "val.txt"])
def test_yolo_images_that_are_listed_twice(yolo: Path, listed: str) -> None:
    once = read_annotations(yolo)
    lines = [f"images/val/{Path(name).name}\n" for name in once.file_names]
    text(yolo / "val.txt", "".join([*lines, *lines]))
    text(yolo / "data.yaml", f"path: .\nval: {listed}\nnames: {{0: person, 1: car}}\n")
    twice = read_annotations(yolo)
    assert [Path(name).name for name in twice.file_names] == [Path(name).name for name in once.file_names]
    assert twice.boxes.tolist() == once.boxes.tolist()
    assert any(f"{len(once)} images are listed twice, and taken once" in note for note in twice.notes)


def test_yolo_folder_without_yaml(yolo: Path) -> None:
    (yolo / "data.yaml").unlink()
    table = read_annotations(yolo)
    assert table.classes == tuple(f"class {k}" for k in range(8))
    assert table.num_boxes == 3
    assert read_annotations(yolo / "images" / "val").num_boxes == 3


def test_yolo_list_of_files_and_a_missing_image(yolo: Path) -> None:
    text(yolo / "val.txt", "./images/val/a.png\n./images/val/gone.png\n")
    text(yolo / "data.yaml", "val: val.txt\nnames: [person, car]\n")
    table = read_annotations(yolo)
    assert len(table) == 1
    assert any(problem == "images/val/gone.png: listed, but there is no such image" for problem in table.problems)
    text(yolo / "data.yaml", "val: nowhere\nnames: [person, car]\n")
    with pytest.raises(UserError, match="'nowhere' of 'val' does not exist"):
        read_annotations(yolo)


@pytest.mark.parametrize("content", ["names: 3\nval: images/val", "- a\n", "a: [1", "names: {1: a}\nval: images/val"])
def test_yolo_broken_yaml(yolo: Path, content: str) -> None:
    text(yolo / "data.yaml", content)
    with pytest.raises(UserError, match=r"data\.yaml"):
        read_annotations(yolo)


def test_citypersons(tmp_path: Path) -> None:
    def item(label: str, box: list[float], shown: list[float]) -> dict[str, object]:
        return {"label": label, "bbox": box, "bboxVis": shown}

    objects = [
        item("pedestrian", [10, 20, 10, 40], [10, 20, 10, 10]),
        item("ignore", [100, 100, 50, 50], [100, 100, 50, 50]),
        item("rider", [200, 100, 20, 50], [200, 100, 20, 50]),
        item("unicorn", [1, 1, 2, 2], [1, 1, 2, 2]),
        {"label": "pedestrian"},
    ]
    content = {"imgHeight": 1024, "imgWidth": 2048, "objects": objects}
    file = tmp_path / "gtBboxCityPersons" / "val" / "ulm" / "ulm_000001_000019_gtBboxCityPersons.json"
    text(file, json.dumps(content))
    image(tmp_path / "leftImg8bit" / "val" / "ulm" / "ulm_000001_000019_leftImg8bit.png", 8, 4)
    table = read_annotations(tmp_path / "gtBboxCityPersons")
    assert table.source.startswith("citypersons")
    assert table.classes == ("pedestrian",)
    assert table.path(0).is_file()
    assert_array_equal(table.labels, [0, -1, -1])
    assert_array_equal(table.extra["height"], [40, 50, 50])
    assert_array_equal(table.extra["vis_ratio"], [0.25, 1, 1])
    assert len(table.problems) == 2
    riders = read_annotations(tmp_path / "gtBboxCityPersons", classes=["rider", "pedestrian"])
    assert_array_equal(riders.labels, [1, -1, 0])


def test_csv(tmp_path: Path) -> None:
    image(tmp_path / "a.tif", 40, 30)
    lines = [
        "image_path,xmin,ymin,xmax,ymax,label",
        "a.tif,1,2,3,4,Tree",
        "b.tif,,,,,",
        "a.tif,5,5,9,9,Bush",
        "a.tif,5",
    ]
    path = text(tmp_path / "boxes.csv", "\n".join(lines))
    table = read_annotations(path)
    assert table.file_names == ("a.tif", "b.tif")
    assert table.classes == ("Bush", "Tree")
    assert_array_equal(table.boxes, [[1, 2, 3, 4], [5, 5, 9, 9]])
    assert_array_equal(table.sizes, [[30, 40], [-1, -1]])
    assert table.problems == ("boxes.csv, line 5: 2 fields where the header has 6",)
    text(path, "a,b,c\n")
    with pytest.raises(UserError, match="no column 'image_path'"):
        read_annotations(path)


def test_sources_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read_annotations(tmp_path / "absent")
    with pytest.raises(UserError, match="the folder holds no images and no annotations; check the path") as told:
        read_annotations(tmp_path)
    assert "known:" not in str(told.value)
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="the folder holds 1 image and no annotations; give the file or folder of its"):
        read_annotations(tmp_path)
    text(tmp_path / "notes.md", "")
    with pytest.raises(UserError, match="no annotations of a known format"):
        read_annotations(tmp_path)
    text(tmp_path / "a.json", "{}")
    text(tmp_path / "b.json", "{}")
    with pytest.raises(UserError, match=r"2 files of annotations \(a.json, b.json\); give one of them"):
        read_annotations(tmp_path)
    with pytest.raises(UserError, match="unknown format 'cocoo'; did you mean 'coco'"):
        read_annotations(tmp_path, format="cocoo")
    with pytest.raises(UserError, match="no such folder of images"):
        read_annotations(tmp_path / "a.json", images=tmp_path / "absent")


def test_shared_golden_layouts(shared: Path) -> None:
    dota = read_annotations(shared / "golden/dota_hbb_a")
    files = (shared / "golden/dota_hbb_a/labelTxt").glob("*.txt")
    lines = [line for file in files for line in file.read_text().splitlines() if line.strip()]
    assert dota.num_boxes == len(lines)
    voc_a = read_annotations(shared / "golden/voc_a")
    objects = json.loads((shared / "golden/voc_a/gt.json").read_text())["objects"]
    assert voc_a.num_boxes == len(objects)
    assert (len(voc_a), len(voc_a.classes)) == (80, 6)
    wider = read_annotations(shared / "golden/wider_gt", for_evaluation=True)
    assert (len(wider), wider.num_boxes) == (3226, 39708)
    assert read_annotations(shared / "golden/wider_gt").notes[0].startswith("11 boxes without a width")
    assert read_annotations(shared / "data/geotiff").num_boxes == 61
