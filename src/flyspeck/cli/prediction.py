"""The loop over a prediction's results: what is written, drawn and said of each image, on one process or many."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flyspeck.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from flyspeck.infer.predictor import Predictor, Result
    from flyspeck.infer.skip import SkipReport, SkipRule
    from flyspeck.infer.source import Categories, Item, OpenOptions

HUGE = 8000  # px; a longer image gets a heat map too, as boxes of few pixels cannot be seen on its overview


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is drawn of the results."""

    images: int
    """Of so many images; the first ones."""
    score: float
    """Boxes of at least this score."""
    heat: bool
    """A heat map of every image drawn; else of those longer than `HUGE`."""


@dataclass
class Prediction:
    """The loop over the results, and what it counted."""

    predictor: Predictor
    out: Path
    options: OpenOptions
    drawing: Drawing
    writers: Sequence[Any] = ()
    truth: dict[int | str, np.ndarray] | None = None
    """Annotated boxes (N, 4) of each image, where what skipping costs is to be measured on them."""
    boxes: int = 0
    done: int = 0
    bad: int = 0
    tiles: int = 0
    skip: SkipReport | None = None
    notes: set[str] = field(default_factory=set)
    recalled: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Annotated objects, those found by all tiles, those found by the tiles that are not skipped."""

    def part(self, items: list[Item], journal: Any) -> None:
        """This process's share, into the journal alone; what cannot be read is left to the one that writes the results."""
        for result in self.predictor.stream(items, journal=journal):
            self.done += 1
            self.tiles += result.num_tiles
        journal.close()

    def all(self, items: list[Item], journal: Any) -> None:
        """Everything; raises UserError at the end if an image or a part of one could not be read."""
        start = time.perf_counter()
        try:
            for result in self.predictor.stream(items, journal=journal):
                self.one(result)
        finally:
            for writer in self.writers:
                writer.close()
            journal.close()
        seconds = time.perf_counter() - start
        if self.skip is not None:
            typer.echo(self.skip.line())
        if self.truth is not None and self.recalled[0]:
            typer.echo(recall_line(self.recalled, self.drawing.score))
        typer.echo(f"{self.out}: {self.boxes} boxes in {self.done} images, {self.tiles} tiles, {seconds:.1f} s")
        if self.bad:
            raise UserError(
                f"{self.bad} of {len(items)} images could not be read, wholly or in part",
                fix="see the lines above; everything else was written",
            )

    def one(self, result: Result) -> None:
        """Write one image's results and its line of summary."""
        if result.problem is not None:
            self.bad += 1
            typer.echo(f"error: {result.problem}", err=True)
            return
        for (x1, y1, x2, y2), reason in result.holes:
            typer.echo(f"error: {result.item.name}: no result for {x1},{y1} to {x2},{y2}: {reason}", err=True)
        self.bad += bool(result.holes)
        if result.note and result.note not in self.notes:
            self.notes.add(result.note)
            typer.echo(f"note: {result.item.name}: {result.note} (--bands, --value-range)", err=True)
        for writer in self.writers:
            writer.add(result)
        if self.done < self.drawing.images:
            self._draw(result)
        self.done += 1
        self.boxes += len(result.detections)
        self.tiles += result.num_tiles
        if result.skip is not None:
            self.skip = result.skip if self.skip is None else self.skip + result.skip
        if self.truth is not None:
            self._recall(result)
        typer.echo(summary_line(result))

    def _recall(self, result: Result) -> None:
        objects = (self.truth or {}).get(result.item.image_id)
        if objects is None or not len(objects):
            return
        least = self.drawing.score
        kept = result.detections if result.unaudited is None else result.unaudited
        self.recalled[0] += len(objects)
        self.recalled[1] += num_found(objects, result.detections, least)
        self.recalled[2] += num_found(objects, kept, least)

    def _draw(self, result: Result) -> None:
        """An annotated image, and a heat map: PNG, as JPEG would blur what is to be seen."""
        from flyspeck.infer.outputs import inside
        from flyspeck.infer.source import open_source
        from flyspeck.report.density import heat_map
        from flyspeck.report.drawing import annotated

        found = result.detections[result.detections.scores >= self.drawing.score]
        path = (self.out / "drawn" / inside(result.item.name)).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_source(result.item.image, self.options, name=result.item.name) as source:
                annotated(source.read, found).save(path)
                if self.drawing.heat or max(source.size) > HUGE:
                    heat_map(source.read, found).save(path.with_suffix(".heat.png"))
        except UserError as error:
            typer.echo(f"note: not drawn: {error}", err=True)


def num_found(objects: np.ndarray, found: Any, least: float) -> int:
    """How many of the boxes (N, 4) a detection of at least the score `least` covers with an IoU of 0.5, whatever its class."""
    from flyspeck.boxes import iou

    boxes = found.boxes[found.scores >= least]
    return int((iou(objects, boxes).max(axis=1) >= 0.5).sum()) if len(boxes) else 0


def recall_line(recalled: Sequence[int], least: float) -> str:
    """What skipping costs on annotated images, for people."""
    total, full, kept = recalled
    return (
        f"recall of {total} annotated objects (IoU 0.5, score >= {least:g}): {100 * full / total:.1f} % with all tiles, "
        f"{100 * kept / total:.1f} % with skipping, {100 * (full - kept) / total:.2f} points lost"
    )


def summary_line(result: Result) -> str:
    """One line an image: name, size, tiles, boxes by class."""
    from collections import Counter

    from flyspeck.infer.convert import class_names

    found = result.detections
    counts = Counter(class_names(found)).most_common(5)
    classes = ", ".join(f"{name} {n}" for name, n in counts)
    tiles = f", {result.num_tiles} tiles" if result.num_tiles > 1 else ""
    skipped = f" ({result.num_skipped} skipped)" if result.num_skipped else ""
    size = f"{found.image_size[0]}x{found.image_size[1]}"
    return f"{result.item.name}: {size}{tiles}{skipped}, {len(found)} boxes{': ' if classes else ''}{classes}"


def match_categories(classes: tuple[str, ...], categories: Categories | None) -> tuple[list[int] | None, list[str]]:
    """The category id of each class: that of the same name in the COCO json; and remarks for the user.

    Classes that the json does not have get new numbers behind its own. Without a json: None, that is 1..K.
    """
    if categories is None:
        return None, []
    by_name = dict(zip(categories.names, categories.ids, strict=True))
    ids, remarks, free = [], [], 1 + max(categories.ids, default=0)
    for name in classes:
        if name not in by_name:
            remarks.append(f"class '{name}' is not in the json; its category id is {free}")
            ids.append(free)
            free += 1
        else:
            ids.append(by_name[name])
    return ids, remarks


def made_with(model: Path, predictor: Predictor, precision: str) -> dict[str, Any]:
    """What decides the boxes of a tile: a journal of other settings must not be mixed in."""
    import hashlib

    from flyspeck.infer.engines import is_exported

    weights = model
    if not is_exported(model):
        from flyspeck.train.checkpoint import weights_file

        weights = weights_file(model)
    with (weights.with_suffix(".bin") if weights.suffix == ".xml" else weights).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    options = predictor.options
    return {
        "weights": digest[:16],
        "score": predictor.score_threshold,
        "scale": [predictor.enlarge.factor, predictor.enlarge.short_side],
        "precision": precision,
        "bands": options.bands,
        "value range": options.value_range,
        **({} if predictor.skip is None else {"skip": skip_settings(predictor.skip)}),
    }


def skip_settings(rule: SkipRule) -> list[Any]:
    """What decides which tiles are skipped."""
    return [type(rule.look).__name__, rule.look.shrink, round(rule.threshold, 6), rule.audit]


def open_journal(out: Path, *, fresh: bool, made_with: dict[str, Any]) -> Any:
    """The journal of finished tiles under `out`."""
    from flyspeck.infer.resume import TileJournal

    return TileJournal(out / "tiles", made_with, fresh=fresh)
