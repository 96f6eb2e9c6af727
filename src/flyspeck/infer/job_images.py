"""A prediction job over images: what is written, drawn and said of each, on one process or many, resumed or not."""

from __future__ import annotations

import glob
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.boxes import iou
from flyspeck.convert import class_names
from flyspeck.data.readers import read_annotations
from flyspeck.drawing import annotated
from flyspeck.errors import UserError, counted, one_line
from flyspeck.files import uninterrupted
from flyspeck.infer.engines import is_exported
from flyspeck.infer.foreign.function_model import is_function, source_of
from flyspeck.infer.outputs import open_writers
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.processes import Processes
from flyspeck.infer.reading import Result, Share
from flyspeck.infer.results_folder import ResultsFolder
from flyspeck.infer.resume import TileJournal
from flyspeck.infer.skip import SkipReport, SkipRule
from flyspeck.infer.source import Categories, Item, open_source
from flyspeck.infer.watched import Watched
from flyspeck.infer.writer import Writer, close_all, reported
from flyspeck.progress import Advance, Tell, untold
from flyspeck.report.density import heat_map
from flyspeck.types import Detections

Say = Callable[[str], None]
HUGE = 8000  # px; a longer image gets a heat map too, as boxes of few pixels cannot be seen on its overview


@dataclass(frozen=True, kw_only=True)
class DrawRule:
    """What is drawn of the results."""

    images: int
    """Of so many images; the first ones."""
    score: float
    """Boxes of at least this score."""
    heat: bool
    """A heat map of every image drawn; else of those longer than `HUGE`."""


@dataclass(frozen=True, kw_only=True)
class PredictionSummary:
    """What a prediction job did."""

    out: Path
    """The folder of the results."""
    images: int
    """Images, or frames of a video."""
    boxes: int
    tiles: int
    seconds: float
    skip: SkipReport | None = None
    """What skipping did, where it was asked for."""
    recalled: tuple[int, int, int] | None = None
    """Where skipping was checked on annotated images: objects, those found by all tiles, those found by the tiles that are
    not skipped."""
    tracks: int | None = None
    """Of a video."""
    factors: Mapping[float, int] = field(default_factory=dict)
    """How many images or tiles took which factor, of a detector that has them."""
    outside: int = 0
    """Tiles that were not run, since the region that was asked for meets none of them."""
    remarks: tuple[str, ...] = ()
    """What was passed over or may be mixed up in the folders given, a line each."""


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """From what was asked for to the result files of many images."""

    items: list[Item]
    out: Path
    formats: Sequence[str]
    """Names out of `flyspeck.infer.outputs.FORMATS`."""
    classes: tuple[str, ...]
    categories: Categories | None
    """Those of the COCO json that names the images; their numbers are then the results' too."""
    truth: Path | None
    """Annotations, where what skipping costs is to be measured on them."""
    resume: bool
    overwrite: bool
    made_with: Mapping[str, Any]
    """What decides the boxes of a tile (`made_with`)."""
    drawing: DrawRule
    say: Say
    warn: Say
    progress: Tell = untold

    def run(self, predictor: Predictor, processes: Processes) -> PredictionSummary:
        """On one process, or this process's part and, for the first one, the result of all.

        Raises UserError at the end if an image or a part of one could not be read; everything else is written.
        """
        with processes.together():
            ids, remarks = match_categories(self.classes, self.categories)
            if processes.leads:
                self._begin(remarks)
        if processes.world > 1:
            with processes.together():
                part = self._part(predictor, processes)
            if not processes.leads:
                return part
            predictor.share = Share()
            if predictor.skip is not None:  # each process has judged its own audit already
                predictor.skip = replace(predictor.skip, max_loss=1.0)
        journal = self._journal(fresh=False)
        truth = None if self.truth is None else annotated_objects(self.truth)
        writers = open_writers(self.out, self.formats, classes=self.classes, category_ids=ids)
        loop = ImageLoop(predictor, self.out, self.drawing, writers, self.say, self.warn, truth=truth)
        loop.progress = self.progress
        return loop.run(self.items, journal)

    def _begin(self, remarks: Sequence[str]) -> None:
        """Make the folder of results this job's."""
        results = ResultsFolder(self.out, resume=self.resume, overwrite=self.overwrite)
        for remark in remarks:
            self.warn(f"note: {remark}")
        journal = self._journal(fresh=not self.resume)  # refuses tiles of other settings before anything is removed
        results.clear(tiles=False)
        if self.resume:
            self.say(f"resumed: {counted(journal.num_kept, 'tile')} kept")
        journal.close()

    def _part(self, predictor: Predictor, processes: Processes) -> PredictionSummary:
        """This process's share, into the journal alone; what cannot be read is left to the one that writes the results."""
        start = time.perf_counter()
        predictor.share = processes.share(len(self.items))
        journal = self._journal(fresh=False)
        watched = Watched(journal, len(self.items) // processes.world, self.progress)
        images = sum(1 for _ in watched.counted(predictor.stream(self.items, journal=watched)))
        journal.close()
        seconds = time.perf_counter() - start
        self.say(
            f"process {processes.rank + 1} of {processes.world}: {counted(journal.num_written, 'tile')}, {seconds:.1f} s"
        )
        return PredictionSummary(out=self.out, images=images, boxes=0, tiles=journal.num_written, seconds=seconds)

    def _journal(self, *, fresh: bool) -> TileJournal:
        return TileJournal(self.out / "tiles", dict(self.made_with), fresh=fresh)


@dataclass
class ImageLoop:
    """The loop over the results of images, and what it counted."""

    predictor: Predictor
    out: Path
    drawing: DrawRule
    writers: Sequence[Writer]
    say: Say
    warn: Say
    truth: Mapping[int | str | None, np.ndarray] | None = None
    """Annotated boxes (N, 4) of each image, where what skipping costs is to be measured on them."""
    boxes: int = 0
    done: int = 0
    bad: int = 0
    tiles: int = 0
    full: int = 0
    hidden: int = 0
    """Detections left out in what images do not have."""
    outside: int = 0
    missed: int = 0
    """Images that the region meets nowhere."""
    progress: Tell = untold
    skip: SkipReport | None = None
    notes: set[str] = field(default_factory=set)
    recalled: list[int] = field(default_factory=lambda: [0, 0, 0])

    def run(self, items: list[Item], journal: TileJournal) -> PredictionSummary:
        """Everything; raises UserError at the end if an image or a part of one could not be read."""
        start = time.perf_counter()
        watched = Watched(journal, len(items), self.progress)
        try:
            with closing(
                self.predictor.stream(items, journal=watched)
            ) as results:  # its threads end before the files do
                for result in watched.counted(results):
                    self.one(result)
        except KeyboardInterrupt:
            self.warn(
                f"note: stopped after {self.done} of {counted(len(items), 'image')}: the files are whole, --resume goes on"
            )
            raise
        finally:
            self.progress(Advance("writing the results"))
            with uninterrupted():
                close_all([*self.writers, journal])
        seconds = time.perf_counter() - start
        recalled = (self.recalled[0], self.recalled[1], self.recalled[2]) if self.recalled[0] else None
        if self.full > 1:
            self.warn(f"note: {self.full} images have tiles with as many boxes as the model gives of one")
        if self.hidden:
            self.say(
                f"{counted(self.hidden, 'detection')} left out (tile by tile) that lie in pixels which are not there"
            )
        self._tell_region()
        if self.skip is not None:
            self.say(self.skip.line())
        if recalled is not None:
            self.say(recall_line(recalled, self.drawing.score))
        outside = f" ({self.outside} outside the region, not run)" if self.outside else ""
        self.say(
            f"{self.out}: {counted(self.boxes, 'box')} in {counted(self.done, 'image')},"
            f" {counted(self.tiles, 'tile')}{outside}, {seconds:.1f} s"
        )
        if self.bad:
            raise UserError(
                f"{self.bad} of {counted(len(items), 'image')} could not be read, wholly or in part",
                fix="see the lines above; everything else was written",
            )
        region = self.predictor.placing.region
        if region is not None and self.missed and self.missed == self.done:
            what = "the image" if self.done == 1 else f"any of the {self.done} images"
            raise UserError(
                f"meets no part of {what}", where=f"--roi {region.name}", fix="look at its coordinate system"
            )
        return PredictionSummary(
            out=self.out,
            outside=self.outside,
            images=self.done,
            boxes=self.boxes,
            tiles=self.tiles,
            seconds=seconds,
            skip=self.skip,
            recalled=recalled,
        )

    def one(self, result: Result) -> None:
        """Write one image's results and its line of summary."""
        if result.problem is not None:
            self.bad += 1
            self.warn(f"error: {result.problem}")
            return
        for (x1, y1, x2, y2), reason in result.holes:
            self.warn(f"error: {result.item.name}: no result for {x1},{y1} to {x2},{y2}: {reason}")
        self.bad += bool(result.holes)
        if result.resolution and result.resolution not in self.notes:
            self.notes.add(result.resolution)
            self.warn(f"note: {result.item.name}: {result.resolution}")
        if result.note and result.note not in self.notes:
            self.notes.add(result.note)
            self.warn(f"note: {result.item.name}: {result.note} (--bands, --value-range)")
        if result.remark and result.remark not in self.notes:
            self.notes.add(result.remark)
            self.warn(f"note: {result.item.name}: {result.remark}")
        self.hidden += result.num_hidden
        self._tell_full(result)
        shown = reported(result, self.drawing.score)
        for writer in self.writers:
            writer.add(result if writer.keeps_all else shown)
        missed = result.num_outside == result.num_tiles
        if self.done < self.drawing.images and not missed:
            self._draw(shown)
        self.done += 1
        self.missed += missed
        self.outside += result.num_outside
        self.boxes += len(shown.detections)
        self.tiles += result.num_tiles
        if result.skip is not None:
            self.skip = result.skip if self.skip is None else self.skip + result.skip
        if self.truth is not None:
            self._recall(result, self.truth)
        self.say(summary_line(shown))

    def _tell_region(self) -> None:
        """What was mended of the region; how many of several images it meets nowhere."""
        region = self.predictor.placing.region
        if region is None:
            return
        for note in region.notes:
            self.warn(f"note: --roi {note}")
        if 0 < self.missed < self.done:
            self.warn(
                f"note: --roi {region.name} meets {self.done - self.missed} of {self.done} images; the others were not run, and "
                "have results without boxes"
            )

    def _tell_full(self, result: Result) -> None:
        """The first image whose tiles have all the boxes that the model gives is named, the others are counted (`run`)."""
        self.full += result.num_full > 0
        if result.num_full and self.full == 1:
            self.warn(
                f"note: {result.item.name}: {result.num_full} of {result.num_tiles} tiles have as many boxes as the model "
                "gives of one; there may be more (smaller tiles, a higher score threshold, or model.max_detections in the recipe)"
            )

    def _recall(self, result: Result, truth: Mapping[int | str | None, np.ndarray]) -> None:
        objects = truth.get(result.item.image_id)
        if objects is None or not len(objects):
            return
        least = self.drawing.score
        kept = result.detections if result.unaudited is None else result.unaudited
        self.recalled[0] += len(objects)
        self.recalled[1] += num_found(objects, result.detections, least)
        self.recalled[2] += num_found(objects, kept, least)

    def _draw(self, result: Result) -> None:
        """An annotated image, and a heat map: PNG, as JPEG would blur what is to be seen."""
        found = result.detections
        self.progress(Advance("drawing", words=one_line(result.item.name, 60)))
        path, heat = (self.out / kind / f"{result.item.file_name}.png" for kind in ("drawn", "heat"))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_source(result.item.image, self.predictor.options, name=result.item.name) as source:
                annotated(source.read, found, colours=source.colours).save(path)
                if self.drawing.heat or max(source.size) > HUGE:
                    heat.parent.mkdir(parents=True, exist_ok=True)
                    heat_map(source.read, found, colours=source.colours).save(heat)
        except UserError as error:
            self.warn(f"note: not drawn: {error}")


def annotated_objects(source: Path) -> dict[int | str | None, np.ndarray]:
    """The annotated objects (N, 4) of each image of a COCO json, by image id."""
    table = read_annotations(source)
    counts = (table.labels >= 0) & ~table.ignore
    return {key: table.boxes[counts & (table.image_index == row)] for row, key in enumerate(table.image_ids.tolist())}


def num_found(objects: np.ndarray, found: Detections, least: float) -> int:
    """How many of the boxes (N, 4) a detection of at least the score `least` covers with an IoU of 0.5, whatever its class."""
    boxes = found.boxes[found.scores >= least]
    return int((iou(objects, boxes).max(axis=1) >= 0.5).sum()) if len(boxes) else 0


def recall_line(recalled: Sequence[int], least: float) -> str:
    """What skipping costs on annotated images, for people."""
    total, full, kept = recalled
    return (
        f"recall of {counted(total, 'annotated object')} (IoU 0.5, score >= {least:g}): {100 * full / total:.1f} % with all "
        f"tiles, {100 * kept / total:.1f} % with skipping, {100 * (full - kept) / total:.2f} points lost"
    )


def summary_line(result: Result) -> str:
    """One line an image: name, size, tiles, boxes by class."""
    found = result.detections
    counts = Counter(class_names(found)).most_common(5)
    classes = ", ".join(f"{name} {n}" for name, n in counts)
    tiles = f", {result.num_tiles} tiles" if result.num_tiles > 1 else ""
    skipped = f" ({result.num_skipped} skipped)" if result.num_skipped else ""
    skipped += f" ({result.num_empty} empty)" if result.num_empty else ""
    skipped += f" ({result.num_outside} outside the region)" if result.num_outside else ""
    size = f"{found.image_size[0]}x{found.image_size[1]}"
    boxes = f"{counted(len(found), 'box')}{': ' if classes else ''}{one_line(classes)}"
    return f"{one_line(result.item.name)}: {size}{tiles}{skipped}, {boxes}"


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
            remarks.append(f"class '{name}' is not in the annotations; its category id is {free}")
            ids.append(free)
            free += 1
        else:
            ids.append(by_name[name])
    return ids, remarks


def made_with(model: str, predictor: Predictor, precision: str) -> dict[str, Any]:
    """What decides the boxes of a tile: a journal of other settings must not be mixed in."""
    weights = Path(model)
    if is_function(model):
        weights = source_of(model)
    elif not is_exported(model):
        from flyspeck.train.checkpoint import weights_file

        weights = weights_file(weights)
    options = predictor.options
    return {
        "weights": _digest(weights),
        "score": predictor.score_threshold,
        "scale": [predictor.enlarge.factor, predictor.enlarge.short_side],
        **({} if predictor.enlarge.long_side is None else {"long_side": predictor.enlarge.long_side}),
        **({} if predictor.enlarge.squeeze is None else {"squeeze": list(predictor.enlarge.squeeze)}),
        "precision": precision,
        **({} if (rule := predictor.placing.resolution.rule) is None else {"resolution": rule}),
        "bands": options.bands,
        "value range": options.value_range,
        **({} if predictor.skip is None else {"skip": skip_settings(predictor.skip)}),
    }


def _digest(model: Path) -> str:
    """Of all that a model is of: the graph, its weights where they lie beside it, and a graph for each factor of a DPNet."""
    import hashlib

    found, name = hashlib.sha256(), glob.escape(model.stem)
    for graph in [model, *sorted(model.parent.glob(f"{name}.df*{model.suffix}"))]:
        beside = [graph.with_suffix(".bin")] if graph.suffix == ".xml" else []
        if graph.suffix == ".onnx":
            beside = [graph.with_name(graph.name + ending) for ending in (".data", "_data")]
        for part in (graph, *(path for path in beside if path.is_file())):
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    found.update(block)
    return found.hexdigest()[:16]


def skip_settings(rule: SkipRule) -> list[Any]:
    """What decides which tiles are skipped."""
    return [type(rule.look).__name__, rule.look.shrink, round(rule.threshold, 6), rule.audit]
