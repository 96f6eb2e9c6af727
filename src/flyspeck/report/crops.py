"""The worst images: a small overview and zoomed crops, ground truth beside each run's detections, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image, ImageDraw

from flyspeck import boxes as box_algebra
from flyspeck.data.images import read_image
from flyspeck.drawing import as_shown
from flyspeck.errors import UserError, counted
from flyspeck.evaluate.tables import image_ranks
from flyspeck.report.diagnosis import FATES, SIZES, RunDiagnosis

_OVERVIEW = 360  # longest side in pixels
_PANEL = 200
_TRUTH, _FOUND, _LOST, _IGNORED = (64, 200, 255), (90, 220, 90), (255, 120, 40), (170, 170, 170)


@dataclass(frozen=True)
class ShownImage:
    """One image of the report."""

    name: str
    summary: str
    """What went wrong, in words."""
    tags: tuple[str, ...]
    """What the page can filter by: size bins of lost objects, `false alarm`, class names."""
    overview: str
    """Data URI."""
    panels: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    """Crops: a caption, and for each panel its heading, its data URI and its text alternative."""


def worst_images(diagnoses: Sequence[RunDiagnosis], number: int, crops: int = 2) -> tuple[list[ShownImage], list[str]]:
    """The images on which the first run errs most, with every run's detections, and what could not be read."""
    first = diagnoses[0]
    annotations = first.run.annotations
    index_of = np.argsort(image_ranks(annotations))
    images, problems = [], []
    for rank in first.worst_images(number):
        path = annotations.path(int(index_of[rank]))
        try:
            pixels = as_shown(read_image(path))
        except UserError as error:
            problems.append(str(error))
            continue
        images.append(_image(diagnoses, rank, annotations.file_names[int(index_of[rank])], pixels, crops))
    return images, problems


@dataclass(frozen=True)
class _View:
    """One run's boxes in one image."""

    truths: np.ndarray
    truth_labels: np.ndarray
    fates: np.ndarray
    bins: np.ndarray
    regions: np.ndarray
    found: np.ndarray
    found_labels: np.ndarray
    scores: np.ndarray
    wrong: np.ndarray
    """(D,) bool: counts as a false alarm."""


def _view(diagnosis: RunDiagnosis, rank: int) -> _View:
    truths, found = diagnosis.inputs.truths, diagnosis.inputs.found
    objects = truths.image[diagnosis.object_rows] == rank
    rows = diagnosis.object_rows[objects]
    strong = np.flatnonzero((found.image == rank) & (found.scores >= diagnosis.working_score))
    flagged = (truths.image == rank) & truths.flagged
    return _View(
        truths.boxes[rows],
        truths.label[rows],
        diagnosis.fates[objects],
        diagnosis.object_bins[objects],
        np.unique(truths.boxes[flagged], axis=0),
        found.boxes[strong],
        found.label[strong],
        found.scores[strong],
        np.isin(strong, diagnosis.false_alarms),
    )


def _image(diagnoses: Sequence[RunDiagnosis], rank: int, name: str, pixels: np.ndarray, crops: int) -> ShownImage:
    views = [_view(d, rank) for d in diagnoses]
    view, classes, bins = views[0], diagnoses[0].run.annotations.classes, list(SIZES)
    lost = view.fates != FATES.index("found")
    tags = {f"lost {bins[b]}" for b in view.bins[lost] if b >= 0}
    tags |= {classes[int(k)] for k in np.concatenate([view.truth_labels[lost], view.found_labels[view.wrong]])}
    if view.wrong.any():
        tags.add("false alarm")
    counts = ", ".join(
        f"{int((view.fates == k).sum())} {fate}" for k, fate in enumerate(FATES) if (view.fates == k).any()
    )
    summary = f"{counted(len(view.truths), 'object')}: {counts or 'none'}; {int(view.wrong.sum())} false alarms"
    panels = []
    for number, window in enumerate(_windows(view, pixels.shape[:2], crops), 1):
        row = [("ground truth", *_truth_panel(pixels, window, view, classes))]
        row += [(d.run.name, *_found_panel(pixels, window, v, classes)) for d, v in zip(diagnoses, views, strict=True)]
        x1, y1, x2, y2 = window
        panels.append((f"crop {number}: x {x1}–{x2}, y {y1}–{y2}", tuple(row)))
    return ShownImage(name, summary, tuple(sorted(tags)), _overview(pixels, view), tuple(panels))


def _windows(view: _View, shape: tuple[int, int], number: int) -> list[tuple[int, int, int, int]]:
    """Square windows (x1, y1, x2, y2) around the densest groups of errors, the most errors first."""
    wrong = np.concatenate([view.truths[view.fates != FATES.index("found")], view.found[view.wrong]])
    windows: list[tuple[int, int, int, int]] = []
    while len(wrong) and len(windows) < number:
        # twelve objects' sides show where it lies, forty pixels let the least of them be seen
        side = np.clip(12 * float(np.median(box_algebra.size(wrong))), 40, 160)
        side = int(min(max(side, 1.5 * float((wrong[:, 2:] - wrong[:, :2]).max(1).min())), *shape))
        centres = box_algebra.center(wrong)
        near = (np.abs(centres[:, None] - centres[None]) < side / 2 * 0.9).all(2)
        middle = centres[near[int(near.sum(1).argmax())]].mean(0)
        x1 = int(np.clip(middle[0] - side / 2, 0, shape[1] - side))
        y1 = int(np.clip(middle[1] - side / 2, 0, shape[0] - side))
        windows.append((x1, y1, x1 + side, y1 + side))
        inside = ((centres >= (x1, y1)) & (centres < (x1 + side, y1 + side))).all(1)
        if not inside.any():
            break
        wrong = wrong[~inside]
    return windows


def _cut(pixels: np.ndarray, window: tuple[int, int, int, int]) -> tuple[Image.Image, float]:
    """The window enlarged to a panel, every pixel a square, and by how much."""
    x1, y1, x2, y2 = window
    zoom = max(1, _PANEL // max(x2 - x1, 1))
    image = Image.fromarray(pixels[y1:y2, x1:x2])
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST), zoom


def _touching(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    return np.flatnonzero(box_algebra.intersection(boxes, np.array([window], np.float64))[:, 0] > 0)


def _truth_panel(
    pixels: np.ndarray, window: tuple[int, int, int, int], view: _View, classes: tuple[str, ...]
) -> tuple[str, str]:
    image, zoom = _cut(pixels, window)
    pen = ImageDraw.Draw(image)
    for region in view.regions[_touching(view.regions, window)]:
        dashed(pen, _scaled(region, window, zoom), _IGNORED)
    rows = _touching(view.truths, window)
    words = []
    for row in rows:
        box, lost = _scaled(view.truths[row], window, zoom), view.fates[row] != FATES.index("found")
        (dashed if lost else _solid)(pen, box, _LOST if lost else _TRUTH)
        size = float(box_algebra.size(view.truths[row]))
        words.append(f"{classes[int(view.truth_labels[row])]} of {size:.0f} px, {FATES[int(view.fates[row])]}")
    return data_uri(image), "Ground truth: " + (_listed(words) or "no object")


def _found_panel(
    pixels: np.ndarray, window: tuple[int, int, int, int], view: _View, classes: tuple[str, ...]
) -> tuple[str, str]:
    image, zoom = _cut(pixels, window)
    pen, words = ImageDraw.Draw(image), []
    for row in _touching(view.found, window):
        box, wrong = _scaled(view.found[row], window, zoom), bool(view.wrong[row])
        (dashed if wrong else _solid)(pen, box, _LOST if wrong else _FOUND)
        words.append(
            f"{classes[int(view.found_labels[row])]} at score {view.scores[row]:.2f}{', false alarm' if wrong else ''}"
        )
    return data_uri(image), "Detections: " + (_listed(words) or "none")


def _overview(pixels: np.ndarray, view: _View) -> str:
    """The whole image made small: lost objects and false alarms marked, the rest left as it is."""
    image = Image.fromarray(pixels)
    zoom = min(1.0, _OVERVIEW / max(image.size))
    image = image.resize((max(1, round(image.width * zoom)), max(1, round(image.height * zoom))), Image.Resampling.BOX)
    pen = ImageDraw.Draw(image)
    marks = [(view.truths[view.fates != FATES.index("found")], False), (view.found[view.wrong], True)]
    for boxes, false_alarm in marks:
        for x1, y1, x2, y2 in boxes * zoom:
            pad = max(2.0, 5 - (x2 - x1) / 2)
            corners = (x1 - pad, y1 - pad, x2 + pad, y2 + pad)
            if false_alarm:
                pen.rectangle(corners, outline=_LOST)
            else:
                pen.ellipse(corners, outline=_TRUTH)
    return data_uri(image)


def _scaled(box: np.ndarray, window: tuple[int, int, int, int], zoom: float) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = ((box - np.tile(window[:2], 2)) * zoom).tolist()
    return x1 - 1, y1 - 1, x2, y2


def _solid(pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: tuple[int, int, int]) -> None:
    x1, y1, x2, y2 = box
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0))
    pen.rectangle(box, outline=colour)


def dashed(pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: tuple[int, int, int]) -> None:
    """A dashed rectangle: lost or wrong, whoever does not see the colour."""
    x1, y1, x2, y2 = box
    pen.rectangle(box, outline=(0, 0, 0))
    for x in np.arange(x1, x2, 6):
        for y in (y1, y2):
            pen.line((x, y, min(x + 3, x2), y), fill=colour)
    for y in np.arange(y1, y2, 6):
        for x in (x1, x2):
            pen.line((x, y, x, min(y + 3, y2)), fill=colour)


def _listed(words: list[str], most: int = 6) -> str:
    rest = f"; and {len(words) - most} more" if len(words) > most else ""
    return "; ".join(words[:most]) + rest


def data_uri(image: Image.Image) -> str:
    """WebP as a data URI: a tenth of PNG's size for photographs, and every browser shows it."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=72, method=2)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def to_html(shown: ShownImage, number: int) -> str:
    """The image as an article; `data-tags` is what the page's filter reads."""
    rows = []
    for caption, panels in shown.panels:
        cells = "".join(
            f"<figure>{image(uri, alt)}<figcaption>{escape(head)}</figcaption></figure>" for head, uri, alt in panels
        )
        rows.append(f'<div class="crop"><p>{escape(caption)}</p><div class="panels">{cells}</div></div>')
    tags = escape("|".join(shown.tags), quote=True)
    overview = image(shown.overview, f"{shown.name}: circles mark lost objects, squares false alarms")
    return (
        f'<article class="image" data-tags="{tags}" aria-labelledby="p{number}">'
        f'<h3 id="p{number}">{number}. {escape(shown.name)}</h3><p>{escape(shown.summary)}</p>'
        f'<div class="views">{overview}{"".join(rows)}</div></article>'
    )


def image(uri: str, alt: str) -> str:
    """An img element with its text alternative."""
    return f'<img src="{uri}" alt="{escape(alt, quote=True)}" loading="lazy">'
