"""Large annotated images out of small ones: `python benchmarks/mosaics.py ANNOTATIONS OUT [--sides 2000x2000] [--jitter 32]`.

Real images with boxes are rarely larger than a tile. To measure what tiling, merging and counting do on large images, those of a
set (its validation images) are laid side by side in rows, none twice, nothing drawn over anything; what stays free is grey. An
object near the rim of its image is cut there as the annotation says, so that a mosaic is no harder than its images but for what
their seams look like. `--jitter` moves each image right and down by up to so many pixels, so that seams form no lines that a
grid of tiles could lie along. Writes `OUT/images/*.png` and `OUT/mosaics.json` (COCO; `parts` of an image are the frames, xyxy,
of the images in it).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from flyspeck.cli.values import parse_size
from flyspeck.data.annotations import Annotations
from flyspeck.data.images import read_image
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError

FREE = 114  # grey of what no image covers


class Canvas:
    """One mosaic: images are put into rows from the left until it is full."""

    def __init__(self, sides: tuple[int, int], jitter: int = 0, seed: int = 0) -> None:
        self.pixels = np.full((*sides, 3), FREE, np.uint8)
        self.x = self.y = self.row_height = 0
        self.parts: list[list[int]] = []
        self._jitter, self._random = jitter, np.random.default_rng(seed)

    def place(self, pixels: np.ndarray) -> tuple[int, int] | None:
        """Where its upper left corner went, (x, y) in pixels of the mosaic; None where there is no room left."""
        right, down = self._random.integers(0, self._jitter + 1, 2).tolist()
        height, width = pixels.shape[0] + down, pixels.shape[1] + right
        if self.x + width > self.pixels.shape[1]:
            self.x, self.y, self.row_height = 0, self.y + self.row_height, 0
        if self.x + width > self.pixels.shape[1] or self.y + height > self.pixels.shape[0]:
            return None
        at = (self.x + right, self.y + down)
        self.parts.append([*at, self.x + width, self.y + height])
        self.pixels[at[1] : self.y + height, at[0] : self.x + width] = pixels
        self.x, self.row_height = self.x + width, max(self.row_height, height)
        return at


def boxes_of(table: Annotations, row: int, at: tuple[int, int], scale: float, image_id: int) -> list[dict[str, object]]:
    """COCO's annotations of image `row`, in the frame of its mosaic."""
    found = []
    for k in np.flatnonzero(table.image_index == row):
        x1, y1, x2, y2 = (float(v) * scale for v in table.boxes[k])
        ignored = bool(table.ignore[k]) or table.labels[k] < 0
        label = max(int(table.labels[k]), 0)
        found.append(
            {
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x1 + at[0], y1 + at[1], x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "ignore": int(ignored),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sides", default="2000x2000", help="HxW of a mosaic, pixels")
    parser.add_argument("--scale", type=float, default=1.0, help="images are resized by this first")
    parser.add_argument("--jitter", type=int, default=0, help="pixels by which an image is moved at most")
    parser.add_argument("--count", type=int, default=4, help="mosaics to make, at most")
    asked = parser.parse_args()
    table = read_annotations(asked.annotations)
    sides = parse_size(asked.sides, where="--sides")
    (asked.out / "images").mkdir(parents=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    canvas = Canvas(sides, asked.jitter)

    def finish() -> None:
        name = f"mosaic_{len(images):02d}.png"
        Image.fromarray(canvas.pixels).save(asked.out / "images" / name)
        told = {"id": len(images), "file_name": name, "height": sides[0], "width": sides[1], "parts": canvas.parts}
        images.append(told)

    for row in range(len(table)):
        pixels = read_image(table.path(row))
        if asked.scale != 1:
            height, width = (max(1, round(side * asked.scale)) for side in pixels.shape[:2])
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
        at = canvas.place(pixels)
        if at is None:
            finish()
            canvas = Canvas(sides, asked.jitter, seed=len(images))
            if len(images) == asked.count:
                break
            at = canvas.place(pixels)
            if at is None:
                raise UserError(
                    f"an image of {pixels.shape[1]}x{pixels.shape[0]} is larger than a mosaic",
                    where=str(table.path(row)),
                    fix="give larger --sides or a smaller --scale",
                )
        annotations.extend(boxes_of(table, row, at, asked.scale, len(images)))
    else:
        if canvas.x or canvas.y:
            finish()
    kept = {image["id"] for image in images}
    coco = {
        "images": images,
        "annotations": [{"id": k, **a} for k, a in enumerate(annotations) if a["image_id"] in kept],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(table.classes)],
    }
    (asked.out / "mosaics.json").write_text(json.dumps(coco))
    print(f"{len(images)} mosaics, {len(coco['annotations'])} boxes in {asked.out}")


if __name__ == "__main__":
    main()
