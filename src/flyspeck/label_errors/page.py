"""The suspects on one HTML page: a summary of the kinds, and enlarged crops without and with the boxes in question."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw

from flyspeck.data.annotations import Annotations
from flyspeck.data.images import read_image
from flyspeck.drawing import as_shown
from flyspeck.errors import UserError, counted
from flyspeck.label_errors.ranking import KINDS
from flyspeck.label_errors.suspects import Box, Suspect
from flyspeck.report import tables
from flyspeck.report.crops import dashed, data_uri, image
from flyspeck.report.html import render_page

_PANEL = 224  # px of an enlarged crop, at most
_SIDES = 6  # sides of the object that a crop shows
_SMALLEST, _LARGEST = 32, 512  # px of the image in a crop
_OTHER, _ANNOTATED, _SEEN = (120, 160, 200), (64, 200, 255), (255, 120, 40)
_EXPLAINED = {
    "missing": "an object that nobody annotated",
    "superfluous": "an annotation where there is no object",
    "class": "an annotation of another class",
    "placement": "a box that lies badly",
}


def build_page(
    annotations: Annotations, suspects: Sequence[Suspect], rates: dict[str, float], *, model: str, draw: int
) -> tuple[str, list[str]]:
    """The page's HTML with the crops of the first `draw` suspects, and the images that could not be read."""
    shown, problems = _crops(annotations, suspects[:draw])
    source = annotations.source or "the annotations"
    lead = f"{counted(len(suspects), 'suspect')} in {counted(len(annotations), 'image')} of {source}, by the opinion of {model}."
    sections = [("kinds", "Kinds of errors", _summary(suspects, rates)), ("images", "Suspects", _list(shown, problems))]
    return render_page("Annotations that are likely wrong", lead, sections), problems


def _summary(suspects: Sequence[Suspect], rates: dict[str, float]) -> str:
    rows = []
    for kind in KINDS:
        mine = [one.chance for one in suspects if one.kind == kind]
        strong = sum(chance >= 0.5 for chance in mine)
        rows.append(
            [kind, _EXPLAINED[kind], tables.percent(rates[kind]), str(len(mine)), str(strong), f"{sum(mine):.0f}"]
        )
    head = ["kind", "what it is", "estimated share, %", "listed", "chance of 50 % and more", "errors expected of them"]
    text = (
        "<p>The estimated share is that of the annotations (of missing ones: of the objects). A chance is what is expected of "
        "suspects like this one, not a verdict: look at each before anything is changed.</p>"
    )
    return text + tables.table(head, rows, caption="Suspects by kind")


def _crops(
    annotations: Annotations, suspects: Sequence[Suspect]
) -> tuple[list[tuple[int, Suspect, str, str]], list[str]]:
    """Rank, suspect, and the data URIs of the bare and the marked crop; every image is read once."""
    order = sorted(enumerate(suspects, 1), key=lambda pair: pair[1].image)
    shown, problems = [], []
    for row, group in groupby(order, key=lambda pair: pair[1].image):
        try:
            pixels = as_shown(read_image(annotations.path(row)))
        except UserError as error:
            problems.append(str(error))
            continue
        for rank, one in group:
            bare, marked = _panels(pixels, one, annotations.boxes[annotations.of_image(row)])
            shown.append((rank, one, data_uri(bare), data_uri(marked)))
    return sorted(shown, key=lambda entry: entry[0]), problems


def _panels(pixels: np.ndarray, one: Suspect, others: np.ndarray) -> tuple[Image.Image, Image.Image]:
    x1, y1, x2, y2 = window = crop_window(one, (pixels.shape[0], pixels.shape[1]))
    zoom = max(1.0, _PANEL / max(x2 - x1, y2 - y1))
    cut = Image.fromarray(np.ascontiguousarray(pixels[y1:y2, x1:x2]))
    zoom = zoom if cut.width * zoom <= _PANEL else _PANEL / max(cut.size)
    bare = cut.resize((round(cut.width * zoom), round(cut.height * zoom)), Image.Resampling.NEAREST)
    marked = bare.copy()
    pen = ImageDraw.Draw(marked)
    for box in others:
        pen.rectangle(_scaled(box, window, zoom), outline=_OTHER)
    if one.box is not None:
        pen.rectangle(_scaled(one.box, window, zoom), outline=_ANNOTATED, width=2)
    if one.suggested_box is not None:
        dashed(pen, _scaled(one.suggested_box, window, zoom), _SEEN)
    return bare, marked


def crop_window(one: Suspect, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) around a suspect's boxes within an image of `shape` (H, W): six sides of the object, 32 px at least."""
    boxes = np.array([box for box in (one.box, one.suggested_box) if box is not None])
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    side = float(np.clip(_SIDES * one.size, _SMALLEST, _LARGEST))
    side = max(side, 1.2 * float((high - low).max()))
    width, height = (int(min(side, most)) for most in (shape[1], shape[0]))
    middle = (low + high) / 2
    x1 = int(np.clip(middle[0] - width / 2, 0, shape[1] - width))
    y1 = int(np.clip(middle[1] - height / 2, 0, shape[0] - height))
    return x1, y1, x1 + max(width, 1), y1 + max(height, 1)


def _scaled(box: Box | np.ndarray, window: tuple[int, int, int, int], zoom: float) -> Box:
    x1, y1, x2, y2 = ((np.asarray(box, np.float64) - np.tile(window[:2], 2)) * zoom).tolist()
    return x1 - 1, y1 - 1, max(x2, x1), max(y2, y1)


def _list(shown: Sequence[tuple[int, Suspect, str, str]], problems: Sequence[str]) -> str:
    notes = (
        f'<p class="note">{counted(len(problems), "image")} could not be read: {escape(problems[0])}</p>'
        if problems
        else ""
    )
    if not shown:
        return notes + ("" if problems else "<p>Nothing looks wrong.</p>")
    classes = {name for _, one, _, _ in shown for name in (one.annotated_class, one.suggested_class) if name}
    tags = [kind for kind in KINDS if any(one.kind == kind for _, one, _, _ in shown)] + sorted(classes)
    radios = "".join(
        f'<label><input type="radio" name="show" value="{escape(tag, quote=True)}"{"" if tag else " checked"}> '
        f"{escape(tag) or 'all'}</label>"
        for tag in ("", *tags)
    )
    legend = (
        "<p>Left the image, right with boxes: bright blue the annotation in question, dashed orange what the detector sees, "
        "pale blue all other annotations.</p>"
    )
    return (
        f'{legend}{notes}<form id="filter"><fieldset><legend>Show suspects with</legend>{radios}</fieldset></form>'
        f'<p id="shown" role="status" aria-live="polite">{len(shown)} of {len(shown)} images shown.</p>'
        + "".join(_article(*entry) for entry in shown)
    )


def _article(rank: int, one: Suspect, bare: str, marked: str) -> str:
    tags = "|".join(dict.fromkeys(tag for tag in (one.kind, one.annotated_class, one.suggested_class) if tag))
    words = describe(one)
    return (
        f'<article class="image" data-tags="{escape(tags, quote=True)}" aria-labelledby="p{rank}">'
        f'<h3 id="p{rank}">{rank}. {escape(one.file_name)}</h3><p>{escape(words)}</p><div class="views crop">'
        f"{image(bare, 'the place, enlarged')}{image(marked, words)}</div></article>"
    )


def describe(one: Suspect) -> str:
    """A suspect in words: `class, 83 %: annotated Car of 12 px (id 7), seen as Person at score 0.91`."""
    parts = []
    if one.annotated_class is not None:
        parts.append(f"annotated {one.annotated_class} of {one.size:.0f} px (id {one.box_id})")
    if one.kind == "superfluous" or one.suggested_class is None:
        parts.append("the detector sees little or nothing")
    else:
        size = f" of {one.size:.0f} px" if one.box is None else ""
        parts.append(f"seen {one.suggested_class}{size} at score {one.score:.2f}")
    if one.kind == "placement":
        parts.append(f"{one.apart:.2f} of its size apart")
    return f"{one.kind}, {100 * one.chance:.0f} %: {', '.join(parts)}"
