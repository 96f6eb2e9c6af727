"""What models see in the images of a set, each image by a model that was not trained on it."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.enlarge import native_sizes
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError, counted, nearest
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.infer.load import load_predictor
from flyspeck.infer.source import Item
from flyspeck.train.config import load_recipe
from flyspeck.train.inputs import spread
from flyspeck.train.start_names import find_start

LEAST_SCORE = 0.01
"""Detections of a lower score are not looked at."""


def training_images(model: Path) -> list[Path] | None:
    """The image files that a model was trained on, by the recipe in its run folder; None where nothing says so.

    Images of the run that it started from count too. Raises UserError for a recipe that cannot be read.
    """
    recipe_file = (model if model.is_dir() else model.parent) / "recipe.yaml"
    if not recipe_file.is_file():
        return None
    recipe = load_recipe(recipe_file)
    data = recipe.data
    try:
        table = read_annotations(
            data.train, format=data.format, classes=data.classes, encoding=data.encoding, absent_classes=True
        )
    except UserError:
        return None
    table = spread(table, data.train_limit)
    files = [table.path(row) for row in range(len(table))]
    if recipe.model.start is not None:
        start = find_start(recipe.model.start)
        files += [] if start.is_foreign else training_images(start.file) or []
    return files


def seen_in_training(annotations: Annotations, files: Sequence[Path]) -> np.ndarray:
    """`(I,)` bool: the image is one of `files`, by its path, or by name and content where the set was copied."""
    paths = {file.resolve() for file in files}
    by_name: dict[str, list[Path]] = {}
    for file in paths:
        by_name.setdefault(file.name, []).append(file)
    seen = np.zeros(len(annotations), bool)
    for row in range(len(annotations)):
        mine = annotations.path(row).resolve()
        seen[row] = mine in paths or any(_same(mine, other) for other in by_name.get(mine.name, []))
    return seen


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def assign_models(
    models: Sequence[Path], annotations: Annotations, *, in_sample: bool, warn: Callable[[str], None]
) -> list[tuple[Path, np.ndarray]]:
    """Each model with the rows `(N,)` of the images it is asked about: the first model that was not trained on an image.

    Raises UserError where every model was trained on some image, unless `in_sample`: then the first one is asked all the same.
    """
    judge = np.full(len(annotations), -1, np.int64)
    for number, model in enumerate(models):
        files = training_images(model)
        if files is None:
            warn(f"{model}: nothing says what it was trained on; its opinion is taken as held out")
        seen = np.zeros(len(annotations), bool) if files is None else seen_in_training(annotations, files)
        judge[(judge < 0) & ~seen] = number
    known = int((judge < 0).sum())
    if known:
        what = f"was trained on {known} of these {len(annotations)} images, so that its opinion of them is not held out"
        if not in_sample:
            fix = "train folds with --folds 5, give a run that did not see them too, or accept it with --in-sample"
            raise UserError(what, where=", ".join(map(str, models)), fix=fix)
        warn(f"{models[0]} {what}: errors that it learnt by heart are not found")
        judge[judge < 0] = 0
    parts = [(model, np.flatnonzero(judge == number)) for number, model in enumerate(models)]
    return [part for part in parts if len(part[1])]


def detect(
    parts: Sequence[tuple[Path, np.ndarray]],
    annotations: Annotations,
    *,
    device: str,
    batch_size: int,
    warn: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Annotations, DetectionTable, np.ndarray]:
    """Every model's detections in its images, in one table.

    Returns the annotations of the images that could be read, with their sizes; the detections; and which classes every model
    knows, `(K,)` bool. Raises UserError where no image can be read, or a model knows none of the set's classes.
    """
    known, total, done = np.ones(len(annotations.classes), bool), len(annotations), 0
    columns: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
    readable, problems = np.zeros(total, bool), []
    for model, rows in parts:
        predictor = load_predictor(model, device=device, score_threshold=LEAST_SCORE, batch_size=batch_size)
        number = _class_numbers(tuple(predictor.model.classes), annotations.classes, model, warn)
        known &= np.isin(np.arange(len(known)), number)
        items = [Item(annotations.file_names[row], annotations.path(row), row) for row in rows.tolist()]
        for result in predictor.stream(items):
            done += 1
            if progress is not None:
                progress(done, total)
            if result.problem is not None or result.holes:
                problems.append(str(result.problem or f"{result.item.name}: {result.holes[0][1]}"))
                continue
            row, found = result.item.number, result.detections
            readable[row] = True
            labels = number[found.labels] if len(found) else found.labels
            columns.append((row, found.boxes[labels >= 0], found.scores[labels >= 0], labels[labels >= 0]))
    if not readable.any():
        raise UserError(
            f"no image can be read: {problems[0] if problems else 'there is none'}", where=annotations.source
        )
    if problems:
        warn(f"{counted(len(problems), 'image is', 'images are')} not judged: {problems[0]}")
    judged = annotations.select_images(readable)
    new_row = np.cumsum(readable) - 1
    columns.sort(key=lambda column: column[0])
    table = DetectionTable.from_columns(
        image_index=np.concatenate([np.full(len(boxes), new_row[row]) for row, boxes, _, _ in columns]),
        boxes=np.concatenate([boxes for _, boxes, _, _ in columns]),
        scores=np.concatenate([scores for _, _, scores, _ in columns]),
        labels=np.concatenate([labels for _, _, _, labels in columns]),
    )
    return replace(judged, sizes=native_sizes(judged)), table, known


def _class_numbers(
    own: tuple[str, ...], classes: tuple[str, ...], model: Path, warn: Callable[[str], None]
) -> np.ndarray:
    """The set's number of each class of the model, -1 where the set does not have it."""
    number = np.array([classes.index(name) if name in classes else -1 for name in own], np.int64)
    if (number < 0).all():
        raise UserError(
            f"knows {', '.join(own)}, of which the set has nothing",
            where=model,
            fix=nearest(own[0] if own else "", classes),
        )
    absent = [name for name, mine in zip(own, number, strict=True) if mine < 0]
    if absent:
        warn(f"{model}: {', '.join(absent)} is not in the set; such detections are left out")
    strange = [name for name in classes if name not in own]
    if strange:
        warn(f"{model} does not know {', '.join(strange)}; such annotations are not judged")
    return number
