"""From models and images to the sheets, the numbers and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.enlarge import native_sizes
from flyspeck.data.images import read_image, read_size
from flyspeck.drawing import as_shown
from flyspeck.errors import UserError, nearest
from flyspeck.explain.cases import Case, Window, pick_cases, whole_case
from flyspeck.explain.maps import Explanation, explain
from flyspeck.explain.page import Shown, build_page
from flyspeck.explain.panels import ModelView, sheet
from flyspeck.explain.similarity import View, attention_on_objects, compare_levels
from flyspeck.explain.subjects import Subject, box_rows, region_around
from flyspeck.files import own_place, write_json, write_text

MAX_LEVELS = 4
"""Levels whose attention a sheet shows, from the finest."""


@dataclass(frozen=True)
class ExplainOptions:
    """How much to explain, and how."""

    images: int = 6
    """Cases to pick from annotations."""
    score: float = 0.3
    """Detections of at least this score are drawn and explained."""
    label: str | None = None
    """Explain the detections of one class alone."""
    sample: int = 64
    """Images, evenly spread, over which attention and similarity are measured."""
    max_side: int = 1024
    """Pixels of the file's image that a model is shown at once; larger images are cut about the case. A model that squeezes its
    images is shown whole ones."""


@dataclass(frozen=True)
class Images:
    """What may be explained: a table of images, with their objects if these are known."""

    table: Annotations
    chosen: tuple[int, ...] = ()
    """Rows that were asked for; empty picks cases."""


def explain_models(
    subjects: Sequence[Subject],
    images: Images,
    out: Path,
    options: ExplainOptions,
    *,
    tell: Callable[[str], None] = print,
) -> Path:
    """Writes a PNG a case, `explain.json` with every number, and `index.html` into the folder `out`; returns the page's path.

    One model is explained; two are shown one above the other and compared. Images that cannot be read raise UserError.
    """
    if len(subjects) not in (1, 2):
        raise ValueError(f"one or two models, not {len(subjects)}")
    cases = find_cases(images, options.images)
    if not cases:
        raise UserError(
            "no objects are annotated, so that there is no place to pick",
            where=images.table.source or "annotations",
            fix="name images with --image",
        )
    if any(subject.enlarge.squeeze is not None for subject in subjects):
        options = replace(
            options, max_side=1 << 30
        )  # it has only seen whole images, and a cut one would come out larger
    out.mkdir(parents=True, exist_ok=True)
    shown = []
    for number, case in enumerate(cases, 1):
        shown.append(_show(subjects, images.table, case, number, out, options))
        tell(f"{shown[-1].file}: {case.kind}, {case.reason}")
    numbers = measure(subjects, images.table, options)
    content = {
        "models": [s.name for s in subjects],
        "score": options.score,
        "cases": [s.to_json() for s in shown],
        **numbers,
        "similarity_through_training": {s.name: s.history for s in subjects if s.history},
    }
    # json has no NaN; what could not be measured is null
    write_json(out / "explain.json", content)
    write_text(out / "index.html", build_page(subjects, shown, numbers, images.table.source))
    return out / "index.html"


def find_cases(images: Images, count: int) -> list[Case]:
    """The images that were asked for, or `count` dense and occluded places, and sparse ones where these are too few."""
    table = images.table
    if not images.chosen:
        return pick_cases(table, native_sizes(table), count)
    sizes = native_sizes(table.select_images(np.array(images.chosen)))
    return [
        whole_case(row, objects_of(table, row), (int(h), int(w)))
        for row, (h, w) in zip(images.chosen, sizes, strict=True)
    ]


def objects_of(table: Annotations, row: int) -> np.ndarray:
    """Boxes `(N, 4)` of an image's objects, without ignore regions."""
    rows = table.of_image(row)
    keep = (table.labels[rows] >= 0) & ~table.ignore[rows] & ~table.crowd[rows]
    return table.boxes[rows][keep]


def _show(
    subjects: Sequence[Subject], table: Annotations, case: Case, number: int, out: Path, options: ExplainOptions
) -> Shown:
    """Explains one case with every model and writes its sheet."""
    path = table.path(case.row)
    pixels, truths = read_image(path), objects_of(table, case.row)
    region = region_around(case.window, (pixels.shape[0], pixels.shape[1]), options.max_side)
    shift = np.array(region[:2] * 2)
    views, shares = [], {}
    for subject in subjects:
        view = subject.view(path, truths, region)
        found = explain(
            subject.detector,
            view.images,
            score=options.score,
            label=_label(subject, options.label),
        )
        views.append(_in_file_frame(subject.name, found, region))
        shares[subject.name] = found.evidence
    x1, y1, x2, y2 = region
    cut = as_shown(pixels)[y1:y2, x1:x2]
    window = (case.window[0] - x1, case.window[1] - y1, case.window[2] - x1, case.window[3] - y1)
    title = f"{number}. {table.file_names[case.row]}: {case.kind}, {case.reason}"
    inside = truths[box_rows(truths, region)] - shift
    image = sheet(
        cut, inside, Case(case.kind, case.row, window, case.reason), views, title=title,
        show_score=options.score,
    )  # fmt: skip
    file = f"{number:02d}_{case.kind}_{path.stem}.png"
    image.save(own_place(out / file))
    return Shown(file, title, image, case, shares)


def _label(subject: Subject, name: str | None) -> int | None:
    if name is None:
        return None
    if name not in subject.detector.classes:
        raise UserError(
            f"{subject.name} has no class '{name}'", where="--class", fix=nearest(name, subject.detector.classes)
        )
    return subject.detector.classes.index(name)


def _in_file_frame(name: str, found: Explanation, region: Window) -> ModelView:
    """An explanation in the pixels of the region of the file's image, whatever enlargement the model saw."""
    size = (region[3] - region[1], region[2] - region[0])
    ratio = np.array([size[1] / found.found.image_size[1], size[0] / found.found.image_size[0]] * 2)
    heat = {method: _fitted(cam, size) for method, cam in found.cams.items()}
    heat |= {f"attention {level}": _fitted(m, size) for level, m in list(found.attention.items())[:MAX_LEVELS]}
    return ModelView(name, found.found.boxes * ratio, found.found.scores, int(found.explained.sum()), heat)


def _fitted(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A heat map at another size (H, W), bilinear."""
    if heat.shape == size:
        return heat
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(heat, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def measure(subjects: Sequence[Subject], table: Annotations, options: ExplainOptions) -> dict[str, Any]:
    """Attention on objects of every model and, of two, the similarity of their levels, over `options.sample` images."""
    if options.sample < 1:
        return {"sample": 0, "attention": {}, "similarity": []}
    rows = np.unique(np.linspace(0, len(table) - 1, min(options.sample, len(table))).round().astype(np.int64))
    views: list[list[View]] = [[] for _ in subjects]
    for row in rows.tolist():
        path, boxes = table.path(row), objects_of(table, row)
        size = read_size(path)
        region = region_around(whole_case(row, boxes, size).window, size, options.max_side)
        for mine, subject in zip(views, subjects, strict=True):
            mine.append(subject.view(path, boxes, region))
    attention = {s.name: attention_on_objects(s.detector, mine) for s, mine in zip(subjects, views, strict=True)}
    similarity = []
    if len(subjects) == 2:
        first, second = (s.detector for s in subjects)
        similarity = [vars(level) for level in compare_levels(first, second, zip(*views, strict=True))]
    return {"sample": len(rows), "attention": attention, "similarity": similarity}
