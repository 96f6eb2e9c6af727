"""What a border of missing pixels costs: `python benchmarks/collar.py MODEL ANNOTATIONS [--limit N] [--borders N]`.

Each image is cut by straight borders, some through or along an object and some anywhere, behind which nothing is there. What is
found is compared with what is found in the whole image (scores of at least 0.3, boxes within 24 px of the border, ended at it):
boxes that it has and that are lost, and boxes that it does not have. Each way to fill what is missing beside the others;
`mean` of all that is there, `nearest` in the row or column, `around`: what flyspeck does.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np

from flyspeck.boxes import iou
from flyspeck.data.images import read_image
from flyspeck.data.readers import read_annotations
from flyspeck.infer import missing
from flyspeck.infer.load import load_model
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.source import Held, Item
from flyspeck.infer.tiles import default_tiles
from flyspeck.infer.windows import ArraySource, OpenOptions
from flyspeck.types import Detections

SCORE, NEAR = 0.3, 24


def black(pixels: np.ndarray, lacking: np.ndarray) -> np.ndarray:
    """0 everywhere."""
    return np.where(lacking, 0, pixels).astype(pixels.dtype)


def mean(pixels: np.ndarray, lacking: np.ndarray) -> np.ndarray:
    """One value a band."""
    kept = pixels[~lacking[:, :, 0]]
    return np.where(lacking, kept.mean(0) if len(kept) else 0, pixels).astype(pixels.dtype)


def nearest(pixels: np.ndarray, lacking: np.ndarray) -> np.ndarray:
    """The nearest pixel of the row, or of the column."""
    gone = lacking[:, :, 0]
    if gone.all():
        return np.zeros_like(pixels)
    found, best = pixels.copy(), np.full(gone.shape, 1 << 40)
    for axis in (0, 1):
        places = np.arange(gone.shape[axis]).reshape(-1, 1) if axis == 0 else np.arange(gone.shape[axis])[None]
        before = np.maximum.accumulate(np.where(gone, -(1 << 30), places), axis)
        after = np.flip(np.minimum.accumulate(np.flip(np.where(gone, 1 << 30, places), axis), axis), axis)
        place = np.where(places - before <= after - places, before, after)
        apart = np.abs(place - places)
        seen = (apart < best) & (apart < 1 << 20)
        taken = np.take_along_axis(pixels, place.clip(0, gone.shape[axis] - 1)[:, :, None], axis)
        found, best = np.where(seen[:, :, None], taken, found), np.where(seen, apart, best)
    return found


FILLS = {"black": black, "mean": mean, "nearest": nearest, "around": missing.filled}


def borders(size: tuple[int, int], boxes: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Masks (H, W) bool of what is there, `count` of them."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    for number in range(count):
        angle = (number % 4) * np.pi / 2 if number % 2 else rng.uniform(0, 2 * np.pi)
        ux, uy = np.cos(angle), np.sin(angle)
        at = rng.uniform(0.3, 0.7) * width * ux + rng.uniform(0.3, 0.7) * height * uy
        if len(boxes) and number % 4 < 3:  # at most half of an object behind the border, or one that just touches it
            x1, y1, x2, y2 = boxes[rng.integers(len(boxes))]
            reach = (abs(ux) * (x2 - x1) + abs(uy) * (y2 - y1)) / 2
            at = (x1 + x2) / 2 * ux + (y1 + y2) / 2 * uy + reach * rng.choice([0.3, 0.7, 1.0])
        yield x * ux + y * uy < at


def near_border(found: Detections, there: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) of at least the score that reach within `NEAR` of what is missing and are no part of it."""
    boxes = found.boxes[found.scores >= SCORE]
    boxes = missing.trimmed(boxes[~missing.hidden(boxes, there)], there)
    kept = []
    for x1, y1, x2, y2 in boxes:
        part = there[max(0, int(y1) - NEAR) : int(y2) + NEAR, max(0, int(x1) - NEAR) : int(x2) + NEAR]
        kept.append(not part.all())
    return boxes[np.array(kept, bool)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--limit", type=int, default=14, help="images, evenly spread")
    parser.add_argument("--borders", type=int, default=4, help="of each image")
    parser.add_argument("--side", type=int, default=640, help="pixels of an image that are taken, from its middle")
    asked = parser.parse_args()
    table = read_annotations(asked.annotations)
    rows = np.unique(np.linspace(0, len(table) - 1, min(asked.limit, len(table))).round().astype(int)).tolist()
    network, told = load_model(asked.model, device="cpu")
    tile, overlap = default_tiles(None, None, told)
    options = OpenOptions().completed(told)
    predictor = Predictor(network, tile=tile, overlap=overlap, options=options)
    rng = np.random.default_rng(0)
    counts: dict[str, Counter[str]] = {name: Counter() for name in FILLS}
    for row in rows:
        pixels = read_image(table.path(row))
        top, left = (max(0, (side - asked.side) // 2) for side in pixels.shape[:2])
        pixels = np.ascontiguousarray(pixels[top : top + asked.side, left : left + asked.side])
        (whole,) = predictor.predict([pixels])
        strong = whole.boxes[whole.scores >= SCORE]
        for there in borders(pixels.shape[:2], strong, asked.borders, rng):
            expected = near_border(whole, there)
            for name, fill in FILLS.items():
                with patch.object(missing, "filled", fill):
                    held = Held(lambda _, name, there=there, pixels=pixels: ArraySource(pixels, name=name, there=there))
                    (result,) = predictor.stream([Item("image", held, 1)])
                seen = near_border(result.detections, there)
                overlap_of = iou(expected, seen)
                lost = int((overlap_of.max(1, initial=0) < 0.5).sum())
                counts[name] += Counter(
                    expected=len(expected), lost=lost, added=int((overlap_of.max(0, initial=0) < 0.5).sum())
                )
    print(f"{asked.model}: {len(rows)} images, {asked.borders} borders each")
    for name, count in counts.items():
        print(
            f"{name:<8} {count['lost']:>4} lost of {count['expected']}, {count['added']:>4} that the whole image has not"
        )


if __name__ == "__main__":
    main()
