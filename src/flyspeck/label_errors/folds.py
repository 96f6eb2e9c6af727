"""Folds of a data set that do not leak into each other, and a run of each: the opinion on an image by whoever never saw it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path, PurePath

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.writers import write_coco
from flyspeck.errors import UserError, counted
from flyspeck.train.config import Recipe, load_recipe

_ONE_NUMBERING = 0.95  # share of different frame numbers from which names count through the whole set
_SLACK = 0.15  # share of a fold by which a cut may move to a better place
DONE = "evaluation.json"
"""What a run writes last."""


def split_folds(annotations: Annotations, folds: int) -> np.ndarray:
    """`(I,)` the fold, 0..folds-1, of each image: blocks of frames that follow each other.

    Frames of one video are nearly the same image, so that a random split would show the detector what it is asked about. Images
    are put in order: by the number at the end of their names where that counts through the whole set, else by folder, name and
    number. The cuts between folds lie where names or numbers jump, as near as may be to folds of equal length.

    Raises UserError for fewer than two folds, or more folds than images.
    """
    if not 2 <= folds <= len(annotations):
        raise UserError(
            f"{folds} folds of {len(annotations)} images", where="--folds", fix="give 2 at least, 5 is usual"
        )
    keys = [_frame(name) for name in annotations.file_names]
    numbers = np.array([number for _, number in keys])
    through = (numbers >= 0).all() and len(np.unique(numbers)) >= _ONE_NUMBERING * len(numbers)
    order = sorted(range(len(keys)), key=lambda row: (numbers[row], row) if through else (*keys[row], row))
    # how sharp the break before each image is: the jump of the number, and more than any where the name changes
    jumps = np.diff(numbers[order], prepend=numbers[order[0]]).astype(np.float64)
    if not through:
        changed = [keys[a][0] != keys[b][0] for a, b in pairwise(order)]
        jumps[1:] = np.where(changed, np.inf, jumps[1:])
    length = len(order) / folds
    fold, start = np.zeros(len(order), np.int64), 0
    for number in range(1, folds):
        low = max(start + 1, int(np.ceil((number - _SLACK) * length)))
        high = max(low, min(len(order) - (folds - number), int((number + _SLACK) * length)))
        best = np.flatnonzero(jumps[low : high + 1] == jumps[low : high + 1].max()) + low
        start = int(best[np.abs(best - number * length).argmin()])
        fold[np.array(order)[start:]] = number
    return fold


def _frame(name: str) -> tuple[str, int]:
    """A file's name without the number at its end, and that number; -1 for none."""
    path = PurePath(name)
    match = re.fullmatch(r"(.*?)(\d+)", path.stem)
    stem, number = (match[1], int(match[2][-15:])) if match else (path.stem, -1)
    return f"{path.parent.as_posix()}/{stem}", number


def train_folds(
    run: Path,
    annotations: Annotations,
    folds: int,
    out: Path,
    *,
    train: Callable[[Recipe, Path, bool], object],
    say: Callable[[str], None],
) -> list[tuple[Path, np.ndarray]]:
    """Trains the recipe of the folder `run` once for each fold, on the images of the others, into `out/fold1`, `out/fold2`, …

    `train` is given a recipe, a run folder, and whether to go on there. Returns each run's folder with the rows `(N,)` of the
    images that it never saw. Folds that are finished are kept, one that was stopped goes on. The recipe is the run's own, but for
    its training set; the best epoch is picked on its validation set.
    Raises UserError where `run` is no run folder, and what training raises.
    """
    file = run / "recipe.yaml"
    if not file.is_file():
        raise UserError("no recipe to train folds by", where=run, fix="give a run folder, or leave out --folds")
    recipe = load_recipe(file)
    parts = split_folds(annotations, folds)
    runs = []
    for number in range(folds):
        folder = out / f"fold{number + 1}"
        held_out = np.flatnonzero(parts == number)
        say(
            f"fold {number + 1} of {folds}: {folder}, {counted(len(annotations) - len(held_out), 'image')} to learn from"
        )
        if not (folder / "run" / DONE).is_file():
            fold = _fold_recipe(recipe, annotations.select_images(parts != number), folder)
            train(fold, folder / "run", (folder / "run" / "recipe.yaml").is_file())
        runs.append((folder / "run", held_out))
    return runs


def _fold_recipe(recipe: Recipe, others: Annotations, folder: Path) -> Recipe:
    """The recipe with the images of the other folds for its training set."""
    written = folder / "train.json"
    write_coco(others, written)
    data = recipe.data.model_copy(
        update={
            "train": str(written.absolute()),
            "format": None,
            "classes": recipe.data.classes or list(others.classes),
        }
    )
    # weights of a run that saw the held-out images would carry them over
    model = recipe.model.model_copy(update={"start": None})
    return recipe.model_copy(update={"name": f"{recipe.name}_{folder.name}", "data": data, "model": model})
