"""TinyPerson: the folder `tiny_set` of TinyBenchmark (github.com/ucas-vg/TinyBenchmark).

Real in it: training images whose uncertain regions are erased, in a folder of their own; test boxes marked `uncertain`, `ignore`
and `logo`; images of the background alone; a crowd of people as one box; ids in another order than the files; and the
benchmark's own corner files (tiles of 640x512 that name their image and its corner in it) beside the whole images' files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes.drawing import coco_box, coco_image, write_coco

PERSON = [{"id": 1, "name": "person", "supercategory": "none"}]
MARKS = {"ignore": False, "uncertain": False, "logo": False, "in_dense_image": False}


def write(root: Path) -> None:
    """Writes the folder."""
    erased = root / "erase_with_uncertain_dataset"
    train = _images(("labeled_images/bb_V0014_I0000680.jpg", 700, 160), ("labeled_images/bb_V0005_I0006280.jpg", 256, 200),
                    ("labeled_images/baidu_P000_10.jpg", 160, 540), ("pure_bg_images/bg_V0001.jpg", 200, 160))  # fmt: skip
    boxes = [
        coco_box(7, 4, 1, (30.0, 40.0, 6.0, 12.0), **MARKS),
        coco_box(8, 4, 1, (632.5, 100.0, 12.0, 22.0), **MARKS),  # where tiles meet
        coco_box(3, 3, 1, (100.2, 60.1, 4.4, 7.9), **MARKS),
        coco_box(2, 3, 1, (10.0, 150.0, 30.0, 20.0), **{**MARKS, "ignore": True}),
        coco_box(1, 2, 1, (130.0, 506.0, 9.0, 9.0), **MARKS),
    ]
    _write(erased, "train", train, boxes, erased / "train")
    test = _images(("labeled_images/bb_V0032_I0001200.jpg", 680, 140), ("labeled_images/baidu_P012_3.jpg", 180, 530),
                   ("pure_bg_images/bg_V0101.jpg", 240, 200))  # fmt: skip
    boxes = [
        coco_box(11, 3, 1, (30.0, 40.0, 6.0, 12.0), **MARKS),
        coco_box(10, 3, 1, (630.0, 90.0, 14.0, 25.0), **MARKS),
        coco_box(12, 3, 1, (300.0, 60.0, 80.0, 40.0), iscrowd=1, **{**MARKS, "ignore": True}),
        coco_box(9, 2, 1, (100.0, 60.0, 5.0, 8.0), **{**MARKS, "uncertain": True}),
        coco_box(8, 2, 1, (50.0, 60.0, 8.0, 10.0), **MARKS),
        coco_box(5, 2, 1, (150.0, 508.0, 20.0, 16.0), **{**MARKS, "ignore": True, "logo": True}),
    ]
    _write(root, "test", test, boxes, root / "test")


def _images(*listed: tuple[str, int, int]) -> list[dict[str, Any]]:
    """Entries with falling ids: 3, 2, 1 for the first, second and third file."""
    return [coco_image(len(listed) - row, name, (w, h)) for row, (name, w, h) in enumerate(listed)]


def _write(root: Path, split: str, images: list[dict[str, Any]], boxes: list[dict[str, Any]], pixels: Path) -> None:
    """The file of whole images and the corner file of one split."""
    whole = root / f"annotations/task/tiny_set_{split}_all.json"
    write_coco(whole, images, boxes, PERSON, pixels=pixels, type="instance", info={})
    tiles, parts = [], []
    for image in images:
        for x in dict.fromkeys((0, max(0, image["width"] - 640))):
            for y in dict.fromkeys((0, max(0, image["height"] - 512))):
                corner = [x, y, min(x + 640, image["width"]), min(y + 512, image["height"])]
                size = (corner[2] - x, corner[3] - y)
                tiles.append(coco_image(len(tiles) + 1, image["file_name"], size, corner=corner))
                parts += [_shifted(box, tiles[-1]) for box in boxes if box["image_id"] == image["id"]]
    inside = [part | {"id": number} for number, part in enumerate(filter(None, parts), 1)]
    corners = root / f"annotations/corner/task/tiny_set_{split}_sw640_sh512_all.json"
    write_coco(corners, tiles, inside, PERSON, type="instance", info={}, old_images=images)


def _shifted(box: dict[str, Any], tile: dict[str, Any]) -> dict[str, Any] | None:
    x, y, w, h = box["bbox"]
    left, top, right, bottom = tile["corner"]
    if not (left <= x and x + w <= right and top <= y and y + h <= bottom):
        return None
    return box | {"image_id": tile["id"], "bbox": [x - left, y - top, w, h]}
