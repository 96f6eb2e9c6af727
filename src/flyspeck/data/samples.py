"""Sample images of a data set with its boxes drawn, enlarged so that tiny objects can be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from flyspeck import boxes as bx
from flyspeck.data.annotations import Annotations
from flyspeck.data.image_files import output_names, save_pixels
from flyspeck.data.images import read_image
from flyspeck.drawing import as_shown
from flyspeck.errors import UserError

COLORS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167), (255, 255, 255)),
)
"""Okabe and Ito's palette, which people with colour blindness tell apart; class k has colour k modulo 8."""
IGNORE_COLOR = (128, 128, 128)
_LONG_SIDE = 1600


def choose_samples(annotations: Annotations, count: int, seed: int = 0) -> list[int]:
    """Rows of up to `count` images: the fullest third, the third with the smallest objects, the rest by chance."""
    objects = ~annotations.ignore
    per_image = np.bincount(annotations.image_index[objects], minlength=len(annotations))
    smallest = np.full(len(annotations), np.inf)
    np.minimum.at(smallest, annotations.image_index[objects], bx.size(annotations.boxes[objects]))
    third = max(1, count // 3)
    by_chance = np.random.default_rng(seed).permutation(len(annotations))
    ranked = [*np.argsort(-per_image, kind="stable")[:third], *np.argsort(smallest, kind="stable")[:third], *by_chance]
    return list(dict.fromkeys(int(row) for row in ranked))[:count]


def draw_boxes(pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, ignore: np.ndarray) -> np.ndarray:
    """`(H', W', 3)` uint8: the image enlarged by a whole number, a line one pixel outside each box, ignore regions crossed.

    `pixels` is (H, W, C) of any bands and values (`flyspeck.drawing.Levels` says what is shown), `boxes` (N, 4) in its frame.
    """
    pixels = as_shown(pixels)
    height, width = pixels.shape[:2]
    zoom = max(1, _LONG_SIDE // max(height, width))
    image = Image.fromarray(pixels).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    for (x1, y1, x2, y2), label, ignored in zip(boxes * zoom, labels, ignore, strict=True):
        color = IGNORE_COLOR if ignored else COLORS[int(label) % len(COLORS)]
        pen.rectangle((x1 - 1, y1 - 1, x2, y2), outline=color)
        if ignored:
            pen.line((x1, y1, x2, y2), fill=color)
            pen.line((x1, y2, x2, y1), fill=color)
    return np.asarray(image)


def write_samples(annotations: Annotations, out: Path, count: int = 12, seed: int = 0) -> tuple[list[Path], list[str]]:
    """Draw samples into `out`; returns the files written, and a line for each image that could not be read."""
    rows = choose_samples(annotations, count, seed)
    names = output_names([annotations.file_names[row] for row in rows], ".png")
    written, faults = [], []
    for number, (row, name) in enumerate(zip(rows, names, strict=True), 1):
        here = annotations.of_image(row)
        try:
            pixels = read_image(annotations.path(row))
        except UserError as error:
            faults.append(str(error))
            continue
        drawn = draw_boxes(pixels, annotations.boxes[here], annotations.labels[here], annotations.ignore[here])
        target = Path(out) / f"sample_{number:02d}_{Path(name).name}"
        save_pixels(drawn, target)
        written.append(target)
    return written, faults
