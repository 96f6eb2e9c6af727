"""A perfect detector in the place of training and prediction: every other command is run, and must find 100 %.

So a command that names a file which no command before it made, a source whose images have other ids than the ground truth, or a
protocol that does not fit the files, shows without a network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from limits import words_to_run

from flyspeck.cli.main import main
from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.train.config import Recipe, load_recipe
from flyspeck.train.inputs import read_sets, training_loader
from flyspeck_lab.cli.main import main as laboratory
from verb_tree import all_verbs, parse

MAIN = {"flyspeck": main, "flyspeck-lab": laboratory}
VERBS = all_verbs()


def path_of(words: list[str]) -> str:
    """The verb of a command, as `flyspeck data shrink`; empty for one that is not known here."""
    return max((verb for verb in KNOWN if words[: len(verb.split())] == verb.split()), key=len, default="")


def run(words: list[str]) -> None:
    """Runs a command, through the command line's own entry."""
    done = words_to_run(words)
    assert MAIN[done[0]](done[1:]) == 0, " ".join(words)


def walk(words: list[str]) -> None:
    """One command of a head in the working folder, with the perfect detector."""
    verb = path_of(words)
    assert verb, f"tests/recipes/perfect.py knows nothing of `{' '.join(words)}`"
    KNOWN[verb](words, parse(words, VERBS))


# --- what stands for what a network does ------------------------------------------------------------------------------


def _train(words: list[str], given: dict[str, Any]) -> None:
    recipe = load_recipe(given["recipe"], given["set_"])
    if recipe.model.start is not None:
        assert Path(recipe.model.start).is_dir(), f"{recipe.model.start}: no run before this"
    if given.get("teacher") is not None:
        assert given["teacher"].is_dir(), f"{given['teacher']}: no run before this"
    train, val = read_sets(recipe.data)
    assert train.num_boxes >= 1
    assert val.num_boxes >= 1
    assert train.classes == val.classes
    broken = len(train.problems) / max(1, len(train.problems) + train.num_boxes)
    assert broken <= recipe.data.max_broken_share, train.problems
    assert all(table.path(row).is_file() for table in (train, val) for row in range(len(table)))
    _look_at_a_batch(recipe, train)
    folder = given["out"] or Path("runs") / recipe.name
    _detect(val, folder / "detections.json")
    if words[1] == "distill":
        (folder / "teacher").mkdir()
    if recipe.dynamic is not None and recipe.dynamic.predictor is not None:
        (folder / "dpnet").mkdir()


def _look_at_a_batch(recipe: Recipe, train: Annotations) -> None:
    """What augmentation leaves is within the image, and of the size that the recipe says."""
    one = recipe.train.model_copy(update={"batch_size": 1, "accumulate": 1, "workers": 0})
    recipe = recipe.model_copy(update={"train": one})
    rule = PixelRule(channels=recipe.data.channels or 3)
    loader = training_loader(recipe, train, rule=rule, rank=0, world_size=1, divisor=32)
    images, (target, *_), _ = next(loader.epoch(0))
    height, width = images.pixels.shape[-2:]
    if recipe.data.short_side is not None:
        assert min(height, width) >= recipe.data.short_side
    if recipe.data.squeeze is not None:
        assert images.sizes == (recipe.data.squeeze,)
    if recipe.augment.crop is not None:
        assert height <= recipe.augment.crop[0] + 31  # padded to a multiple of 32
        assert width <= recipe.augment.crop[1] + 31
    assert (target.boxes[:, 2:] > target.boxes[:, :2]).all()
    assert (target.boxes[:, 2] <= width).all()
    assert (target.boxes[:, 3] <= height).all()


def _fit(words: list[str], given: dict[str, Any]) -> None:
    assert given["run"].is_dir(), f"{given['run']}: no run before this"
    if words[2] == "fit":
        (given["out"] or given["run"] / "dpnet").mkdir()


def _needs_run(words: list[str], given: dict[str, Any]) -> None:
    assert given["run"].is_dir(), f"{given['run']}: no run before this"


def _predict(words: list[str], given: dict[str, Any]) -> None:
    assert Path(given["model"]).is_dir(), f"{given['model']}: no run before this"
    (source,) = map(Path, given["source"])
    assert source.is_file(), f"{source}: predict the file of annotations, so that detections have its ids"
    table = read_annotations(source)
    assert all(table.path(row).is_file() for row in range(len(table)))
    if given["to"] == "widerface":
        _submit(table, given["out"] / "widerface")
    else:
        _detect(table, given["out"] / "detections.json")


def _perfect(table: Annotations) -> DetectionTable:
    """Every object that is to be found, larger ones with a higher score: of an object that a tile cuts, the whole one wins."""
    rows = np.flatnonzero(~table.ignore & (table.labels >= 0))
    rows = rows[np.argsort(-table.area[rows], kind="stable")]
    scores = 0.99 - 0.9 * np.arange(len(rows)) / max(1, len(rows))
    return DetectionTable.from_columns(
        image_index=table.image_index[rows], boxes=table.boxes[rows], scores=scores, labels=table.labels[rows]
    )


def _detect(table: Annotations, path: Path) -> None:
    path.parent.mkdir(parents=True)
    _perfect(table).write_coco(path, table)


def _submit(table: Annotations, folder: Path) -> None:
    """WIDER FACE's files, one an image."""
    found = _perfect(table)
    for row, name in enumerate(table.file_names):
        mine = np.flatnonzero(found.image_index == row)
        lines = [" ".join(map(str, (*found.xywh[one].tolist(), found.scores[one]))) for one in mine]
        path = folder / PurePath(name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([PurePath(name).name, str(len(lines)), *lines]) + "\n")


# --- what is run ------------------------------------------------------------------------------------------------------


def _really(words: list[str], given: dict[str, Any]) -> None:
    run(words)


def _evaluate(words: list[str], given: dict[str, Any]) -> None:
    numbers = Path("numbers.json")
    run([*words, "--out", str(numbers)])
    rows = json.loads(numbers.read_text(encoding="utf-8"))["rows"]
    counted = [row for row in rows if row["value"] not in (None, -1) and _is_metric(row)]
    assert counted, " ".join(words)
    for row in counted:
        wanted = 0.0 if "MR" in row["metric"].upper() else 1.0
        assert abs(row["value"] - wanted) < 1e-3, f"{' '.join(words)}: {row}"


def _is_metric(row: dict[str, Any]) -> bool:
    return row["metric"].upper().startswith(("AP", "MAP", "MR"))


KNOWN: dict[str, Callable[[list[str], dict[str, Any]], None]] = {
    "flyspeck-lab prepare": _really,
    "flyspeck data shrink": _really,
    "flyspeck data tile": _really,
    "flyspeck data scale-match": _really,
    "flyspeck train": _train,
    "flyspeck distill": _train,
    "flyspeck dpnet labels": _needs_run,
    "flyspeck dpnet fit": _fit,
    "flyspeck-lab curve": _needs_run,
    "flyspeck predict": _predict,
    "flyspeck eval": _evaluate,
}
"""What is done for each verb that a head may name. One that is not here fails the test."""
