"""The papers' sets from small files of their layout: what is checked, what is written, and that it can be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.classification import read_labelled_pictures
from flyspeck.data.prepare import SETS, check_set, known_set, prepare_set
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError


def picture(path: Path, width: int = 64, height: int = 48) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 120, np.uint8)).save(path)
    return path


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def coco(path: Path, names: list[str], size: tuple[int, int] = (64, 48)) -> None:
    images = [{"id": i, "file_name": n, "width": size[0], "height": size[1]} for i, n in enumerate(names, 1)]
    box = {"category_id": 1, "bbox": [8, 8, 8, 12], "area": 96, "iscrowd": 0}
    boxes = [box | {"id": i, "image_id": i} for i in range(1, len(names) + 1)]
    text(path, json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}))


def make_tinyperson(root: Path) -> None:
    picture(root / "erase_with_uncertain_dataset/train/labeled/a.jpg", 1000, 700)
    picture(root / "test/labeled/b.jpg", 640, 512)
    train = "erase_with_uncertain_dataset/annotations/task/tiny_set_train_all.json"
    coco(root / train, ["labeled/a.jpg"], (1000, 700))
    coco(root / "annotations/task/tiny_set_test_all.json", ["labeled/b.jpg"], (640, 512))


def make_citypersons(root: Path) -> None:
    for split, city in (("train", "aachen"), ("val", "lindau")):
        stem = f"{city}_000000_000019"
        picture(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", 128, 64)
        objects = [{"label": "pedestrian", "bbox": [8, 8, 8, 20], "bboxVis": [8, 8, 8, 20], "instanceId": 24000}]
        content = {"imgWidth": 128, "imgHeight": 64, "objects": objects}
        text(root / f"gtBboxCityPersons/{split}/{city}/{stem}_gtBboxCityPersons.json", json.dumps(content))


def make_coco(root: Path) -> None:
    for split in ("train2017", "val2017"):
        picture(root / split / "000000000009.jpg", 300, 200)
        coco(root / f"annotations/instances_{split}.json", ["000000000009.jpg"], (300, 200))


def make_voc(root: Path) -> None:
    def entry(year: int, name: str) -> None:
        folder = root / f"VOCdevkit/VOC{year}"
        picture(folder / f"JPEGImages/{name}.jpg")
        box = "<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>16</xmax><ymax>20</ymax></bndbox>"
        thing = f"<object><name>dog</name><difficult>0</difficult>{box}</object>"
        size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
        text(
            folder / f"Annotations/{name}.xml", f"<annotation><filename>{name}.jpg</filename>{size}{thing}</annotation>"
        )

    entry(2007, "000001")
    entry(2007, "000005")
    entry(2012, "2008_000002")
    text(root / "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt", "000005\n")
    text(root / "VOCdevkit/VOC2007/ImageSets/Main/test.txt", "000001\n")
    text(root / "VOCdevkit/VOC2012/ImageSets/Main/trainval.txt", "2008_000002\n")


def make_widerface(root: Path) -> None:
    for split in ("train", "val"):
        picture(root / f"WIDER_{split}/images/0--Parade/0_Parade_1.jpg")
        line = "0--Parade/0_Parade_1.jpg\n1\n8 8 8 12 0 0 0 0 0 0\n"
        text(root / f"wider_face_split/wider_face_{split}_bbx_gt.txt", line)


def make_visdrone(root: Path) -> None:
    for split in ("train", "val"):
        folder = root / f"VisDrone2019-DET-{split}"
        picture(folder / "images/0000001_00000_d_0000001.jpg")
        text(folder / "annotations/0000001_00000_d_0000001.txt", "8,8,8,12,1,4,0,0\n")


def make_dota(root: Path) -> None:
    for split in ("train", "val"):
        picture(root / split / "images/P0001.png")
        lines = "imagesource:GoogleEarth\ngsd:0.1\n8 8 16 8 16 20 8 20 plane 0\n"
        text(root / split / "labelTxt/P0001.txt", lines)


MAKERS: dict[str, Callable[[Path], None]] = {
    "tinyperson": make_tinyperson,
    "citypersons": make_citypersons,
    "tiny_citypersons": make_citypersons,
    "coco": make_coco,
    "coco100": make_coco,
    "voc": make_voc,
    "visdrone": make_visdrone,
    "dota": make_dota,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_set_becomes_what_its_recipes_read(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    known = known_set(name)
    checks = check_set(known, tmp_path)
    assert checks
    assert not any(check.good for check in checks if "," in check.found)  # thousands of pictures are missing
    whole = replace(known, files=tuple(replace(f, count=len(list(tmp_path.glob(f.pattern)))) for f in known.files))
    assert all(f.count for f in whole.files), [f.pattern for f in whole.files]
    assert all(check.good for check in check_set(whole, tmp_path))
    written = dict(prepare_set(known, tmp_path, tmp_path / "prepared"))
    assert {path.name for path in written} == set(known.parts)
    for path in written:
        table = read_annotations(path)
        assert table.problems == ()
        assert all(table.path(row).is_file() for row in range(len(table)))
        assert table.num_boxes >= 1
        sides = (table.boxes[0, 2:] - table.boxes[0, :2]).tolist()
        expected = {"tiny_citypersons": [2, 5], "coco100": [4, 6], "citypersons": [8, 20]}.get(name, [8, 12])
        assert sides == pytest.approx(expected)


def test_tinyperson_is_cut_with_the_overlap_asked_for(tmp_path: Path) -> None:
    make_tinyperson(tmp_path)
    written = dict(prepare_set(known_set("tinyperson"), tmp_path, tmp_path / "out", overlap=100))
    tiles = written[tmp_path / "out" / "train.json"]
    # 1000 = 640 and one moved back to 360; 700 = 512 and one moved back to 188.
    assert len(tiles) == 4
    assert set(map(tuple, tiles.sizes.tolist())) == {(512, 640)}


def test_voc_takes_the_listed_pictures_of_both_years(tmp_path: Path) -> None:
    make_voc(tmp_path)
    written = dict(prepare_set(known_set("voc"), tmp_path, tmp_path / "out"))
    assert len(written[tmp_path / "out" / "train.json"]) == 2
    assert len(written[tmp_path / "out" / "test.json"]) == 1
    text(tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/test.txt", "000001\n000002\n")
    with pytest.raises(UserError, match="1 of 2 listed pictures"):
        list(prepare_set(known_set("voc"), tmp_path, tmp_path / "again"))


def test_wider_face_is_checked_and_read_as_it_is(tmp_path: Path) -> None:
    make_widerface(tmp_path)
    found = {check.what: check for check in check_set(known_set("widerface"), tmp_path)}
    assert found["wider_face_split/wider_face_*_bbx_gt.txt"].good
    assert found["WIDER_train/images/*/*.jpg"].found == "1 of 12,880"
    assert read_annotations(tmp_path / "wider_face_split/wider_face_val_bbx_gt.txt").num_boxes == 1
    text(tmp_path / "WIDER_val.zip", "cut off")
    assert not {c.what: c for c in check_set(known_set("widerface"), tmp_path)}["WIDER_val.zip"].good
    assert "WIDER_val.zip" not in {c.what for c in check_set(known_set("widerface"), tmp_path, hashes=False)}


def test_hashes_of_needed_files(tmp_path: Path) -> None:
    text(tmp_path / "train", "not CIFAR")
    found = {check.what: check for check in check_set(known_set("cifar100"), tmp_path)}
    assert found["train"].found == "MD5 c7296b8a6e6873824a898848dd5ece04"  # of "not CIFAR", by md5sum
    assert not found["train"].good
    assert found["test"].found == "missing"
    own = replace(known_set("cifar100"), md5={"train": found["train"].found.removeprefix("MD5 ")})
    assert [check.good for check in check_set(own, tmp_path)] == [True]


def test_imagenet_layout_is_what_pretraining_reads(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "n01440764" / "a.JPEG", 40, 50)
        picture(tmp_path / split / "n01443537" / "b.JPEG", 50, 40)
    assert [check.found for check in check_set(known_set("imagenet"), tmp_path)] == ["2 of 1,281,167", "2 of 50,000"]
    assert len(read_labelled_pictures(tmp_path, "train", size=32)) == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in SETS)
    assert main(["data", "prepare", "visdron"]) == 2
    assert "visdrone" in capsys.readouterr().err
    make_visdrone(tmp_path)
    assert main(["data", "prepare", "visdrone", "--root", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "BAD VisDrone2019-DET-train/images/*.jpg: 1 of 6,471" in captured.out
    assert "github.com/VisDrone" in captured.err
    assert main(["data", "prepare", "visdrone", "--root", str(tmp_path), "--anyway"]) == 0
    assert (tmp_path / "prepared" / "train.json").is_file()
    assert main(["data", "prepare", "visdrone", "--root", str(tmp_path / "nowhere")]) == 2
