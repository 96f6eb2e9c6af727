"""Large annotated images out of small ones: `python benchmarks/mosaics.py ANNOTATIONS OUT [--sides 2000x2000] [--scale 0.5]`.

Real images with boxes are rarely larger than a tile. To measure what tiling, merging and counting do on large images, those of a
set (its validation images) are laid side by side in rows, none twice, nothing drawn over anything; what stays free is grey. An
object near the rim of its image is cut there as the annotation says, so that a mosaic is no harder than its images but for what
their seams look like. Writes `OUT/images/*.png` and `OUT/mosaics.json` (COCO).
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

    def __init__(self, sides: tuple[int, int]) -> None:
        self.pixels = np.full((*sides, 3), FREE, np.uint8)
        self.x = self.y = self.row_height = 0

    def place(self, pixels: np.ndarray) -> tuple[int, int] | None:
        """Where its upper left corner went, (x, y) in pixels of the mosaic; None where there is no room left."""
        height, width = pixels.shape[:2]
        if self.x + width > self.pixels.shape[1]:
            self.x, self.y, self.row_height = 0, self.y + self.row_height, 0
        if self.x + width > self.pixels.shape[1] or self.y + height > self.pixels.shape[0]:
            return None
        at = (self.x, self.y)
        self.pixels[at[1] : at[1] + height, at[0] : at[0] + width] = pixels
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
    parser.add_argument("--count", type=int, default=4, help="mosaics to make, at most")
    asked = parser.parse_args()
    table = read_annotations(asked.annotations)
    sides = parse_size(asked.sides, where="--sides")
    (asked.out / "images").mkdir(parents=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    canvas = Canvas(sides)

    def finish() -> None:
        name = f"mosaic_{len(images):02d}.png"
        Image.fromarray(canvas.pixels).save(asked.out / "images" / name)
        images.append({"id": len(images), "file_name": name, "height": sides[0], "width": sides[1]})

    for row in range(len(table)):
        pixels = read_image(table.path(row))
        if asked.scale != 1:
            height, width = (max(1, round(side * asked.scale)) for side in pixels.shape[:2])
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
        at = canvas.place(pixels)
        if at is None:
            finish()
            canvas = Canvas(sides)
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
