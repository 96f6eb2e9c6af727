"""Sets that are had as COCO json beside `images/`: HIT-UAV, Face Mask Detection, images of cars from the air, small COCO.

Real in them: HIT-UAV is grey and has `DontCare` regions (crowd and ignore); aerial cars have classes that hardly occur and one
that only training has; small COCO has gaps in its ids, grey images and crowds; images without an object in all but the faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes.coco import categories
from fakes.drawing import coco_box, coco_image, write_coco


def write_hituav(root: Path) -> None:
    """`train_blk.json` and `val_blk.json`, grey images."""
    names = ["Person", "Car", "Bicycle", "OtherVehicle", "DontCare"]
    sizes = ((8, 16), (20, 14), (10, 12), (24, 24))
    for split, number in (("train_blk", 6), ("val_blk", 4)):
        images = [coco_image(9 - i, f"images/{i}_60_30_0_{split}.webp", (256, 208)) for i in range(number)]
        boxes: list[dict[str, Any]] = []
        for row, image in enumerate(images[1:]):  # the first has none
            for place, (w, h) in enumerate(sizes):
                box = (10 + 60 * place, 20 + 30 * row, w, h)
                boxes.append(coco_box(len(boxes) + 1, image["id"], place + 1, box))
        boxes.append(coco_box(57, images[1]["id"], 5, (180, 150, 50, 47), iscrowd=1, ignore=1))
        _write(root / f"{split}.json", images, boxes, names, grey=True)


def write_facemask(root: Path) -> None:
    """`train.json` and `val.json`."""
    names = ["mask_worn_incorrectly", "with_mask", "without_mask"]
    for split in ("train", "val"):
        images = [coco_image(i + 1, f"images/maksssksksss{i}{split}.webp", (200, 113 + i)) for i in range(4)]
        boxes = [
            coco_box(i * 2 + k + 1, i + 1, 1 + (i + k) % 3, (20 + 90 * k, 30, 26 + k, 22))
            for i in range(4)
            for k in (0, 1)
        ]
        _write(root / f"{split}.json", images, boxes, names)


def write_aerialcars(root: Path) -> None:
    """`train.json` and `val.json`; fractions of pixels."""
    names = ["car", "truck", "bus", "minibus", "cyclist"]
    for split, classes in (("train", (1, 1, 4, 3, 2, 5)), ("val", (1, 3, 4, 1))):
        images = [coco_image(i + 1, f"images/DJI-00760-{split}{i}.webp", (240, 135)) for i in range(4)]
        boxes = [
            coco_box(row + 1, row % 3 + 1, label, (20.5 + 50 * (row // 3), 31.0 + 20 * (row % 3), 14.0, 26.5))
            for row, label in enumerate(classes)
        ]
        _write(root / f"{split}.json", images, boxes, names)


def write_coco453(root: Path) -> None:
    """`train2017.json` and `val2017.json`: a shorter side of 100 px."""
    for split in ("train2017", "val2017"):
        images = [coco_image(i + 1, f"images/{790 - i:012d}{split}.jpg", (152 - 10 * i, 100)) for i in range(5)]
        labels = (18, 64, 1, 1, 44, 90, 1)
        boxes = [
            coco_box(row + 1, row % 4 + 1, label, (11.04 + 30 * (row // 4), 20.5, 9.25 + row, 17.14), area=90.5)
            for row, label in enumerate(labels)
        ]
        boxes.append(coco_box(222, 2, 1, (0.21, 60.58, 100.58, 21.04), iscrowd=1))
        write_coco(root / f"{split}.json", images, boxes, categories(), pixels=root)


def _write(
    path: Path, images: list[dict[str, Any]], boxes: list[dict[str, Any]], names: Sequence[str], *, grey: bool = False
) -> None:
    listed = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    write_coco(path, images, boxes, listed, pixels=path.parent, grey=grey)
