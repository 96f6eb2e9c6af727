"""The images that an export is checked and calibrated on, and running models over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.infer.predictor import Model, Predictor
from flyspeck.infer.shown import shown_enlargement, shown_tiles
from flyspeck.infer.source import find_items
from flyspeck.infer.windows import OpenOptions
from flyspeck.types import Detections


@dataclass(frozen=True)
class ImageSet:
    """Image files, and their annotations if there are any."""

    paths: tuple[Path, ...]
    annotations: Annotations | None
    name: str

    def spread(self, limit: int) -> ImageSet:
        """At most `limit` of them, evenly spread."""
        if len(self.paths) <= limit:
            return self
        rows = np.linspace(0, len(self.paths) - 1, limit).round().astype(np.int64)
        table = None if self.annotations is None else self.annotations.select_images(rows)
        return ImageSet(tuple(self.paths[int(row)] for row in rows), table, self.name)


def named_set(path: Path, classes: Sequence[str]) -> ImageSet:
    """What a user names: annotations in any format that is read, or images, or a folder of them."""
    if not path.exists():
        raise UserError("no such images or annotations", where=path, fix="check the path")
    try:
        return _annotated(read_annotations(path, classes=list(classes)), str(path))
    except UserError as error:
        if path.is_file() and path.suffix.lower() in (".json", ".txt", ".xml", ".csv", ".yaml", ".yml", ".mat"):
            raise
        items, _ = find_items([str(path)])
        files = tuple(Path(item.image) for item in items if isinstance(item.image, str | Path))
        if not files:
            raise error
        return ImageSet(files, None, str(path))


def run_sets(run: Path) -> tuple[ImageSet, ImageSet]:
    """The training and the validation images of a run folder, by its recipe."""
    from flyspeck.train.config import load_recipe
    from flyspeck.train.inputs import read_sets

    folder = run if run.is_dir() else run.parent
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise UserError(
            "no recipe beside the weights: no images to check the export on",
            where=folder,
            fix="give some with --on ANNOTATIONS or --on FOLDER",
        )
    try:
        train, val = read_sets(load_recipe(recipe).data)
    except UserError as error:
        raise UserError(
            f"the run's own images cannot be read ({error.what})",
            where=error.where,
            fix="give others with --on ANNOTATIONS or --on FOLDER",
        ) from error
    return _annotated(train, f"{folder.name}'s training set"), _annotated(val, f"{folder.name}'s validation set")


def _annotated(table: Annotations, name: str) -> ImageSet:
    return ImageSet(tuple(table.path(row) for row in range(len(table))), table, name)


class Recorder:
    """A model that remembers what it found in each window, in order."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.found: list[Detections] = []

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        """As the model's."""
        found = self._model(windows)
        self.found.extend(found)
        return found


def predictor_for(model: Model, description: Mapping[str, Any], *, score: float, batch_size: int = 3) -> Predictor:
    """As `flyspeck predict` runs it: the tiles and the enlargement that the model says. One reader: a fixed order.

    The batch is odd, and the last one often ragged, as a stranger's are.
    """
    tile, overlap = shown_tiles(None, None, description)
    enlarge = shown_enlargement(description)
    return Predictor(
        model,
        tile=tile,
        overlap=overlap,
        enlarge=enlarge,
        batch_size=batch_size,
        score_threshold=score,
        readers=1,
        options=OpenOptions().completed(description),
    )


def detect(
    model: Model, images: ImageSet, description: Mapping[str, Any], *, score: float
) -> tuple[list[Detections], list[Detections]]:
    """Merged detections of each image, and the raw ones of each window."""
    recorder = Recorder(model)
    found = predictor_for(recorder, description, score=score).predict(list(images.paths))
    if images.annotations is not None:
        ids = images.annotations.image_ids
        found = [replace(one, image_id=_plain(i)) for one, i in zip(found, ids, strict=True)]
    return found, recorder.found


def tiles_of(images: ImageSet, description: Mapping[str, Any], *, limit: int, seed: int = 0) -> list[np.ndarray]:
    """Up to `limit` tiles `(h, w, C)`, one drawn from each of as many images, as the model sees them."""
    windows: list[np.ndarray] = []
    for path in images.spread(limit).paths:
        seen: list[np.ndarray] = []

        def keep(batch: list[np.ndarray], seen: list[np.ndarray] = seen) -> list[Detections]:
            seen.extend(batch)
            return [Detections.empty((w.shape[0], w.shape[1])) for w in batch]

        predictor_for(keep, description, score=1.0).predict(path)
        windows.append(seen[np.random.default_rng((seed, len(windows))).integers(len(seen))])
    return windows


def _plain(image_id: Any) -> int | str:
    return image_id if isinstance(image_id, str) else int(image_id)
