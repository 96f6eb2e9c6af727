"""Boxes on images, and enlarged crops of what is too small to see there. NumPy and Pillow only.

Outlines are drawn *around* a box, never over it: a 4 px object under a 2 px line would be gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito (2008): told apart by colour-blind readers too; black and the greys are left out.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
_TOO_SMALL = 24  # px on the drawn image below which a box is worth a crop
_CROP, _GAP, _PAPER, _INK = 232, 8, (255, 255, 255), (20, 20, 20)
_CHUNK = 4096

Read = Callable[[int, int, int, int, tuple[int, int] | None], np.ndarray]
"""A window reader as `flyspeck.infer.source.Source.read`: (x1, y1, x2, y2, out (h, w)) to (h, w, C)."""


class DrawnBoxes(Protocol):
    """What drawing needs to know of `flyspeck.Detections`."""

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) xyxy pixels."""
        ...

    @property
    def scores(self) -> np.ndarray:
        """(N,) in [0, 1]."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """(N,) in 0..K-1."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """(K,) names, or none."""
        ...


@dataclass(frozen=True)
class Levels:
    """Which bands of an image are shown, and which of their values as black and white.

    Three bands are red, green and blue. Of more, those tagged as that are shown, or else the first three, each stretched from its
    1st to its 99th percentile; of fewer the first, in grey. One or three bands of 8 bits are shown as they are, those of
    other values stretched alike in all bands.
    """

    low: tuple[float, ...] = (0,)
    high: tuple[float, ...] = (255,)
    """One for all bands, or one for each of the three."""
    rows: tuple[int, int, int] = (0, 1, 2)
    """The bands shown of three or more."""

    @staticmethod
    def of(pixels: np.ndarray, colours: tuple[int, int, int] | None = None) -> Levels:
        """Those of `(H, W, C)` pixels of any type; `colours` are the bands that are red, green and blue, where that is known."""
        bands = pixels.shape[2]
        rows = colours or (0, 1, 2)
        if pixels.dtype == np.uint8 and bands <= 3:
            return Levels(rows=rows)
        shown = pixels[:, :, list(rows)] if bands >= 3 else pixels[:, :, :1]
        parts = np.moveaxis(shown, 2, 0) if bands > 3 else [shown]
        pairs = [_stretch(part) for part in parts]
        return Levels(tuple(low for low, _ in pairs), tuple(high for _, high in pairs), rows)

    def show(self, pixels: np.ndarray) -> Image.Image:
        """`(H, W, C)` pixels as an RGB image."""
        scaled = pixels[:, :, list(self.rows)] if pixels.shape[2] >= 3 else pixels[:, :, :1]
        if pixels.dtype != np.uint8 or (self.low, self.high) != ((0,), (255,)):
            low, high = np.array(self.low), np.array(self.high)
            share = (scaled.astype(np.float64) - low) / (high - low)
            scaled = (np.nan_to_num(share) * 255).clip(0, 255).astype(np.uint8)
        if scaled.shape[2] != 3:
            scaled = np.repeat(scaled, 3, axis=2)
        return Image.fromarray(np.ascontiguousarray(scaled))


def _stretch(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [1, 99])
    least = 1.0 if values.dtype.kind != "f" else max(float(finite.max() - low), 1e-6)
    return float(low), float(high if high > low and values.dtype.kind == "f" else max(high, low + least))


def as_shown(pixels: np.ndarray, colours: tuple[int, int, int] | None = None) -> np.ndarray:
    """`(H, W, 3)` uint8 of an image of any bands and values, by the rule of `Levels`."""
    return np.asarray(Levels.of(pixels, colours).show(pixels))


def draw_boxes(image: Image.Image, boxes: np.ndarray, labels: np.ndarray, *, width: int = 1) -> Image.Image:
    """`image` with outlines just outside `boxes` (N, 4) in its own pixels, coloured by label; changed in place."""
    draw = ImageDraw.Draw(image)
    for (x1, y1, x2, y2), label in zip(np.round(boxes).tolist(), labels.tolist(), strict=True):
        # Pillow's rectangles include their last pixel.
        frame = (x1 - width, y1 - width, max(x2, x1 + 1) + width - 1, max(y2, y1 + 1) + width - 1)
        draw.rectangle(frame, outline=COLOURS[label % len(COLOURS)], width=width)
    return image


def annotated(
    read: Read,
    found: DrawnBoxes,
    *,
    max_side: int = 1600,
    crops: int = 8,
    colours: tuple[int, int, int] | None = None,
) -> Image.Image:
    """The whole image, no longer than `max_side`, with its boxes, a legend, and up to `crops` enlarged places.

    `found.image_size` is the image's (H, W); `read` gives its windows, so that a giant raster is never held whole. `colours` are
    the bands that are red, green and blue, where that is known.
    """
    width = found.image_size[1]
    small = thumbnail(read, found.image_size, max_side)
    levels, ratio = Levels.of(small, colours), small.shape[1] / width
    overview = draw_boxes(levels.show(small), found.boxes * ratio, found.labels)
    places = places_to_enlarge(found, ratio, crops)
    draw, font = ImageDraw.Draw(overview), ImageFont.load_default(13)
    for number, place in enumerate(places, start=1):
        x1, y1, x2, y2 = (place * ratio).tolist()
        draw.rectangle((x1, y1, x2, y2), outline="white")
        draw.text((x1 + 2, y1), str(number), fill="white", font=font, stroke_width=2, stroke_fill="black")
    panels = [_enlarge(read, found, place, levels) for place in places]
    return _page(overview, panels, _legend(found))


def annotate(pixels: np.ndarray, found: DrawnBoxes, *, max_side: int = 1600, crops: int = 8) -> Image.Image:
    """`annotated` for an image in memory, `(H, W)` or `(H, W, C)`."""
    planes = pixels if pixels.ndim == 3 else pixels[:, :, None]
    if planes.shape[:2] != tuple(found.image_size):
        raise ValueError(f"an image of {planes.shape[:2]} for detections in one of {found.image_size}")

    def read(x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None) -> np.ndarray:
        return _resize(planes[y1:y2, x1:x2], out)

    return annotated(read, found, max_side=max_side, crops=crops)


def thumbnail(read: Read, size: tuple[int, int], max_side: int) -> np.ndarray:
    """The image of `size` (H, W) at most `max_side` long, `(h, w, C)`, put together from windows of a few thousand pixels."""
    height, width = size
    ratio = min(1.0, max_side / max(size))
    return np.concatenate([_strip(read, y1, min(height, y1 + _CHUNK), width, ratio) for y1 in range(0, height, _CHUNK)])


def _strip(read: Read, y1: int, y2: int, width: int, ratio: float) -> np.ndarray:
    """One strip of the thumbnail; the places of its parts are rounded, so that they tile without gaps."""
    parts = []
    high = max(1, round(y2 * ratio) - round(y1 * ratio))
    for x1 in range(0, width, _CHUNK):
        x2 = min(width, x1 + _CHUNK)
        parts.append(read(x1, y1, x2, y2, (high, max(1, round(x2 * ratio) - round(x1 * ratio)))))
    return np.concatenate(parts, axis=1)


def _resize(pixels: np.ndarray, out: tuple[int, int] | None) -> np.ndarray:
    if out is None or out == pixels.shape[:2]:
        return pixels
    planes = []
    for plane in np.moveaxis(pixels, 2, 0):
        image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
        planes.append(np.asarray(image.resize((out[1], out[0]), Image.Resampling.BILINEAR)))
    whole = np.stack(planes, axis=2)
    return whole if pixels.dtype.kind == "f" else whole.round().astype(pixels.dtype)


def places_to_enlarge(found: DrawnBoxes, ratio: float, count: int) -> np.ndarray:
    """Square windows `(n, 4)` of the image, n <= `count`, around the best of what is drawn smaller than 24 px.

    The window with the highest sum of scores first, then the next among the boxes that are in none yet.
    """
    height, width = found.image_size
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).max(axis=1, initial=0)
    small = np.flatnonzero(sides * ratio < _TOO_SMALL)
    side = min(float(np.clip(5 * np.median(sides[small]), 32, 128)) if len(small) else 32, height, width)
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    places = []
    while len(small) and len(places) < count:
        cells, cell = np.unique((centres[small] // (side / 2)).astype(np.int64), axis=0, return_inverse=True)
        best = np.argmax(np.bincount(cell.ravel(), found.scores[small], len(cells)))
        middle = centres[small[cell.ravel() == best]].mean(axis=0)
        corner = np.round((middle - side / 2).clip(0, (width - side, height - side)))
        place = np.concatenate([corner, corner + side])
        places.append(place)
        inside = ((centres[small] >= place[:2]) & (centres[small] < place[2:])).all(axis=1)
        inside |= cell.ravel() == best  # always some progress
        small = small[~inside]
    return np.array(places).reshape(-1, 4)


def _enlarge(read: Read, found: DrawnBoxes, place: np.ndarray, levels: Levels) -> Image.Image:
    height, width = found.image_size
    x1, y1 = (int(v) for v in place[:2])
    x2, y2 = min(width, int(np.ceil(place[2]))), min(height, int(np.ceil(place[3])))
    zoom = _CROP / max(x2 - x1, y2 - y1)
    crop = levels.show(read(x1, y1, x2, y2, None))
    crop = crop.resize((max(1, round(crop.width * zoom)), max(1, round(crop.height * zoom))), Image.Resampling.NEAREST)
    near = (found.boxes[:, 2:] > (x1, y1)).all(axis=1) & (found.boxes[:, :2] < (x2, y2)).all(axis=1)
    boxes = (found.boxes[near] - np.array([x1, y1, x1, y1])) * zoom
    draw_boxes(crop, boxes, found.labels[near])
    draw, font = ImageDraw.Draw(crop), ImageFont.load_default(11)
    for (left, top, _, _), score in zip(boxes.tolist(), found.scores[near].tolist(), strict=True):
        draw.text((left, top - 14), f"{score:.2f}", fill="white", font=font, stroke_width=1, stroke_fill="black")
    return crop


def _legend(found: DrawnBoxes) -> list[tuple[str, str]]:
    """(colour, text) for every class that was found, most frequent first."""
    labels, counts = np.unique(found.labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    names = [found.classes[k] if k < len(found.classes) else f"class {k}" for k in labels[order].tolist()]
    colours = [COLOURS[k % len(COLOURS)] for k in labels[order].tolist()]
    return [(c, f"{name} {n}") for c, name, n in zip(colours, names, counts[order].tolist(), strict=True)]


def _page(overview: Image.Image, panels: Sequence[Image.Image], legend: Sequence[tuple[str, str]]) -> Image.Image:
    """The overview, the crops in columns to its right, and the legend below."""
    per_column = max(1, (overview.height + _GAP) // (_CROP + 20 + _GAP))
    columns = -(-len(panels) // per_column)
    width = overview.width + columns * (_CROP + _GAP)
    height = max(overview.height, min(per_column, len(panels)) * (_CROP + 20 + _GAP)) + 28
    page = Image.new("RGB", (max(width, 160), height), _PAPER)
    page.paste(overview, (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for k, panel in enumerate(panels):
        x = overview.width + _GAP + (k // per_column) * (_CROP + _GAP)
        y = (k % per_column) * (_CROP + 20 + _GAP)
        draw.text((x, y + 2), str(k + 1), fill=_INK, font=font)
        page.paste(panel, (x, y + 20))
    x = 4.0
    for colour, text in legend or [("#FFFFFF", "no box to draw")]:
        draw.rectangle((x, height - 20, x + 10, height - 10), fill=colour)
        draw.text((x + 16, height - 24), text, fill=_INK, font=font)
        x += 30 + draw.textlength(text, font=font)
    return page
