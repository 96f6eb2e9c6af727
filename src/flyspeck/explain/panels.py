"""Heat maps over images, and the sheet of one case: a pair of rows a model, whole image and enlarged place. Pillow only.

Each heat map is scaled to its own highest values: panels show where, not how much. Sums and shares are numbers on the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flyspeck.explain.cases import Case, Window

# Lightness rises evenly from black by violet, red and orange to pale yellow: the order survives in grey and for colour-blind
# readers (the shape of matplotlib's "inferno", by nine of its colours).
_HEAT = np.array(
    [
        [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10],
        [249, 201, 50], [252, 255, 164],
    ],
    np.float32,
)  # fmt: skip
_TRUTH, _FOUND, _WEAK = (64, 200, 255), (90, 220, 90), (255, 120, 40)
_PAPER, _INK, _SOFT = (255, 255, 255), (20, 20, 20), (90, 90, 90)
_PANEL = 264  # px, the width of a panel
_GAP, _NAME, _HEAD, _TITLE = 6, 30, 24, 34


@dataclass(frozen=True)
class ModelView:
    """What one model's rows of a sheet show, in the frame of the file's image."""

    name: str
    found: np.ndarray
    """(N, 4) boxes."""
    scores: np.ndarray
    """(N,)"""
    explained: int
    """How many of them the heat maps explain."""
    heat: dict[str, np.ndarray] = field(default_factory=dict)
    """Heading to a map (H, W), such as `Grad-CAM` and `attention P2`."""


def colour(values: np.ndarray) -> np.ndarray:
    """`(H, W)` in [0, 1] to `(H, W, 3)` float32 colours in 0..255, from black to pale yellow."""
    at = np.clip(np.nan_to_num(values), 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(at.astype(np.int64), len(_HEAT) - 2)
    share = (at - low)[..., None]
    return (1 - share) * _HEAT[low] + share * _HEAT[low + 1]


def scaled(heat: np.ndarray) -> np.ndarray:
    """`heat` at least 0 to [0, 1], where 1 is its 99.5th percentile: one hot cell must not darken all others.

    A map that is 0 nearly everywhere is scaled by its largest value; zeros stay zeros.
    """
    highest = float(np.percentile(heat, 99.5)) if heat.size else 0.0
    highest = highest or float(heat.max(initial=0))
    return (heat / highest).clip(0, 1) if highest > 0 else np.zeros_like(heat)


def overlay(grey: np.ndarray, heat: np.ndarray) -> Image.Image:
    """An image `(H, W)` uint8 in darkened greys under `heat (H, W)` in [0, 1]: the hotter, the less of it shows."""
    opacity = (0.85 * np.clip(heat, 0, 1) ** 0.6)[..., None]
    under = 0.7 * grey[..., None].astype(np.float32)
    return Image.fromarray(((1 - opacity) * under + opacity * colour(heat)).round().clip(0, 255).astype(np.uint8))


def sheet(
    pixels: np.ndarray,
    truths: np.ndarray,
    case: Case,
    models: Sequence[ModelView],
    *,
    title: str,
    show_score: float = 0.3,
) -> Image.Image:
    """The sheet of one case: `pixels (H, W, 3)` uint8, `truths (N, 4)` boxes; a column a heat map, two rows a model.

    In the first column objects are blue, detections of at least `show_score` green, both drawn just outside their box.
    """
    columns = ["image", *dict.fromkeys(head for model in models for head in model.heat)]
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    whole: Window = (0, 0, pixels.shape[1], pixels.shape[0])
    zooms = [_PANEL / (window[2] - window[0]) for window in (whole, case.window)]
    heights = [round((window[3] - window[1]) * zoom) for window, zoom in zip((whole, case.window), zooms, strict=True)]
    page = Image.new(
        "RGB",
        (
            len(columns) * (_PANEL + _GAP) + _GAP,
            _TITLE + len(models) * (_NAME + _HEAD + sum(heights) + 2 * _GAP + 4) + _HEAD,
        ),
        _PAPER,
    )
    pen, font, large = ImageDraw.Draw(page), ImageFont.load_default(17), ImageFont.load_default(20)
    pen.text((_GAP, 6), title, fill=_INK, font=large)
    top = _TITLE
    for model in models:
        pen.text(
            (_GAP, top + 4), _heading(model, show_score), fill=_INK, font=large
        )  # a line of its own: names are long
        for c, head in enumerate(columns):
            pen.text((_GAP + c * (_PANEL + _GAP), top + _NAME), head, fill=_SOFT, font=font)
        y = top + _NAME + _HEAD
        for window, zoom, height in zip((whole, case.window), zooms, heights, strict=True):
            for c, head in enumerate(columns):
                panel = _panel(pixels, grey, truths, model, head, window, (_PANEL, height), zoom, show_score)
                if window == whole and case.window != whole:
                    _frame(panel, case.window, zoom)
                page.paste(panel, (_GAP + c * (_PANEL + _GAP), y))
            y += height + _GAP
        top = y + 4
    legend = "blue: annotated    green: found    white frame: the place enlarged    heat maps: each scaled to its own highest"
    pen.text((_GAP, top), legend, fill=_SOFT, font=ImageFont.load_default(16))
    return page


def _heading(model: ModelView, show_score: float) -> str:
    found = int((model.scores >= show_score).sum())
    if model.explained == found:
        return f"{model.name}: {found} found"
    return f"{model.name}: {found} found, {model.explained} explained"


def _panel(
    pixels: np.ndarray,
    grey: np.ndarray,
    truths: np.ndarray,
    model: ModelView,
    head: str,
    window: Window,
    size: tuple[int, int],
    zoom: float,
    show_score: float,
) -> Image.Image:
    x1, y1, x2, y2 = window
    if head == "image":
        panel = Image.fromarray(pixels[y1:y2, x1:x2]).resize(size, _filter(zoom))
        pen = ImageDraw.Draw(panel)
        _boxes(pen, truths, window, zoom, _TRUTH, 3 if zoom > 1.5 else 2)
        _boxes(pen, model.found[model.scores >= show_score], window, zoom, _FOUND, 1)
        return panel
    if head not in model.heat:
        panel = Image.new("RGB", size, (235, 235, 235))
        ImageDraw.Draw(panel).text((8, 8), "no such level", fill=_SOFT, font=ImageFont.load_default(13))
        return panel
    heat = scaled(model.heat[head])[y1:y2, x1:x2]
    # The map is resampled before it is coloured: blends of colours would be other values.
    small = Image.fromarray(np.ascontiguousarray(grey[y1:y2, x1:x2])).resize(size, _filter(zoom))
    values = Image.fromarray(np.ascontiguousarray(heat, np.float32)).resize(size, Image.Resampling.BILINEAR)
    panel = overlay(np.asarray(small), np.asarray(values))
    if window != (0, 0, pixels.shape[1], pixels.shape[0]):
        _boxes(ImageDraw.Draw(panel), truths, window, zoom, (235, 235, 235), 2)
    return panel


def _filter(zoom: float) -> Image.Resampling:
    """Whole pixels where they are enlarged, means where they shrink."""
    return Image.Resampling.NEAREST if zoom > 1.5 else Image.Resampling.BOX if zoom < 1 else Image.Resampling.BILINEAR


def _boxes(
    pen: ImageDraw.ImageDraw, boxes: np.ndarray, window: Window, zoom: float, ink: tuple[int, int, int], away: int
) -> None:
    """Outlines `away` px outside their boxes `(N, 4)`, of those that touch the window."""
    x1, y1, x2, y2 = window
    for left, top, right, bottom in boxes.tolist():
        if right > x1 and left < x2 and bottom > y1 and top < y2:
            corners = ((left - x1) * zoom - away, (top - y1) * zoom - away, (right - x1) * zoom + away - 1)
            pen.rectangle((*corners, (bottom - y1) * zoom + away - 1), outline=ink)


def _frame(panel: Image.Image, window: Window, zoom: float) -> None:
    x1, y1, x2, y2 = (v * zoom for v in window)
    pen = ImageDraw.Draw(panel)
    pen.rectangle((x1 - 1, y1 - 1, x2, y2), outline=(0, 0, 0))
    pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=(255, 255, 255))
