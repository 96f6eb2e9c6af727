"""Small files in the layouts of the papers' data sets: what a download looks like, one or two images of it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def image(path: Path, width: int = 64, height: int = 48) -> Path:
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
    image(root / "erase_with_uncertain_dataset/train/labeled/a.jpg", 1000, 700)
    image(root / "test/labeled/b.jpg", 640, 512)
    train = "erase_with_uncertain_dataset/annotations/task/tiny_set_train_all.json"
    coco(root / train, ["labeled/a.jpg"], (1000, 700))
    coco(root / "annotations/task/tiny_set_test_all.json", ["labeled/b.jpg"], (640, 512))


def make_citypersons(root: Path) -> None:
    for split, city in (("train", "aachen"), ("val", "lindau")):
        stem = f"{city}_000000_000019"
        image(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", 128, 64)
        objects = [{"label": "pedestrian", "bbox": [8, 8, 8, 20], "bboxVis": [8, 8, 8, 20], "instanceId": 24000}]
        content = {"imgWidth": 128, "imgHeight": 64, "objects": objects}
        text(root / f"gtBboxCityPersons/{split}/{city}/{stem}_gtBboxCityPersons.json", json.dumps(content))


def make_coco(root: Path) -> None:
    for split in ("train2017", "val2017"):
        image(root / split / "000000000009.jpg", 300, 200)
        coco(root / f"annotations/instances_{split}.json", ["000000000009.jpg"], (300, 200))


def make_voc(root: Path) -> None:
    def entry(year: int, name: str) -> None:
        folder = root / f"VOCdevkit/VOC{year}"
        image(folder / f"JPEGImages/{name}.jpg")
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
        image(root / f"WIDER_{split}/images/0--Parade/0_Parade_1.jpg")
        line = "0--Parade/0_Parade_1.jpg\n1\n8 8 8 12 0 0 0 0 0 0\n"
        text(root / f"wider_face_split/wider_face_{split}_bbx_gt.txt", line)
    from scipy.io import savemat

    def cell(item: object) -> np.ndarray:
        column = np.empty((1, 1), dtype=object)
        column[0, 0] = item
        return column

    head = {"event_list": cell("0--Parade"), "file_list": cell(cell("0_Parade_1"))}
    (root / "ground_truth").mkdir()
    savemat(
        root / "ground_truth" / "wider_face_val.mat", {**head, "face_bbx_list": cell(cell(np.array([[8.0, 8, 8, 12]])))}
    )
    for setting in ("easy", "medium", "hard"):
        savemat(root / "ground_truth" / f"wider_{setting}_val.mat", {**head, "gt_list": cell(cell(np.array([1])))})


def make_visdrone(root: Path) -> None:
    for split in ("train", "val"):
        folder = root / f"VisDrone2019-DET-{split}"
        image(folder / "images/0000001_00000_d_0000001.jpg")
        text(folder / "annotations/0000001_00000_d_0000001.txt", "8,8,8,12,1,4,0,0\n")


def make_dota(root: Path) -> None:
    for split in ("train", "val"):
        image(root / split / "images/P0001.png")
        lines = "imagesource:GoogleEarth\ngsd:0.1\n8 8 16 8 16 20 8 20 plane 0\n"
        text(root / split / "labelTxt/P0001.txt", lines)


def make_cifar100(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3072), dtype=np.uint8)
    for name in ("train", "test"):
        content = {b"data": pixels, b"fine_labels": [0, 1, 2, 3] * 2, b"coarse_labels": [0] * 8}
        pickled(root / name, content)
    pickled(root / "meta", {b"fine_label_names": [b"apple", b"bear", b"cup", b"dog"], b"coarse_label_names": [b"x"]})


def make_imagenet32(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    for name in (*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"):
        pickled(root / name, {"data": pixels, "labels": [1, 1000], "mean": np.zeros(3072)})


def make_imagenet(root: Path) -> None:
    for split in ("train", "val"):
        image(root / split / "n01440764" / "a.JPEG", 40, 50)
        image(root / split / "n01443537" / "b.JPEG", 50, 40)


def pickled(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


MAKERS: dict[str, Callable[[Path], None]] = {
    "tinyperson": make_tinyperson,
    "citypersons": make_citypersons,
    "tiny_citypersons": make_citypersons,
    "coco": make_coco,
    "coco100": make_coco,
    "voc": make_voc,
    "visdrone": make_visdrone,
    "dota": make_dota,
    "widerface": make_widerface,
    "cifar100": make_cifar100,
    "imagenet32": make_imagenet32,
    "imagenet": make_imagenet,
}
"""Name of a set to what writes its layout below a root."""
