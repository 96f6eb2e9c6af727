"""Small files: images of noise with bright boxes in them, text, COCO json."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels."""


def write_image(
    path: Path, width: int, height: int, boxes: Sequence[Sequence[float]] = (), *, grey: bool = False
) -> None:
    """An image of dark noise, other for each name, with a bright rectangle for each box (xywh)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    pixels = rng.integers(60, 120, (height, width) if grey else (height, width, 3), np.uint8)
    for x, y, w, h in boxes:
        pixels[max(0, int(y)) : int(y + h), max(0, int(x)) : int(x + w)] = 240
    Image.fromarray(pixels).save(path, quality=90)


def write_text(path: Path, content: str) -> None:
    """A text file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def write_pickle(path: Path, content: dict[Any, Any]) -> None:
    """A pickle as Python 2 wrote them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def coco_image(image_id: int, name: str, size: tuple[int, int], **more: Any) -> dict[str, Any]:
    """An entry of `images`; `size` is (width, height)."""
    return {"id": image_id, "file_name": name, "width": size[0], "height": size[1], **more}


def coco_box(box_id: int, image_id: int, category: int, box: Sequence[float], **more: Any) -> dict[str, Any]:
    """An entry of `annotations`."""
    area = float(box[2]) * float(box[3])
    entry = {"id": box_id, "image_id": image_id, "category_id": category, "bbox": list(box), "area": area}
    return {**entry, "iscrowd": 0, **more}


def write_coco(
    path: Path,
    images: list[dict[str, Any]],
    boxes: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    *,
    pixels: Path | None = None,
    grey: bool = False,
    **more: Any,
) -> None:
    """A COCO json, and below the folder `pixels` its images."""
    write_text(path, json.dumps({"images": images, "annotations": boxes, "categories": categories, **more}))
    for image in images if pixels is not None else ():
        assert pixels is not None
        mine = [box["bbox"] for box in boxes if box["image_id"] == image["id"]]
        write_image(pixels / image["file_name"], image["width"], image["height"], mine, grey=grey)
