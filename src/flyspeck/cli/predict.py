"""`flyspeck predict`: pictures of any size to detections, result files and annotated pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flyspeck.errors import UserError

if TYPE_CHECKING:
    from flyspeck.data.enlarge import Enlarge
    from flyspeck.infer.predictor import Predictor, Result
    from flyspeck.infer.source import Categories, Item, OpenOptions


def predict(
    source: list[str] = typer.Argument(..., help="Pictures, folders, or one COCO json."),
    model: Path = typer.Option(..., "--model", help="A run folder, a weights file, or an exported model."),
    out: Path = typer.Option(..., "--out", help="Folder for the results."),
    tile: str = typer.Option(None, "--tile", help="Tile HxW in model pixels, or 'off'; default: the training size."),
    overlap: int = typer.Option(None, "--overlap", help="Pixels that tiles share; the largest object must fit in."),
    scale: float = typer.Option(None, "--scale", help="Model pixels per picture pixel; default: as in training."),
    scales: str = typer.Option(None, "--scales", help="See each tile at all of these sizes and merge, as in 0.5,1,2."),
    flip: bool = typer.Option(False, "--flip", help="See each tile mirrored too, and merge."),
    score: float = typer.Option(0.05, "--score", help="Leave out weaker detections."),
    show_score: float = typer.Option(0.3, "--show-score", help="Draw only boxes of at least this score."),
    merge: str = typer.Option("nms", "--merge", help="nms, nmm, soft-nms or wbf."),
    merge_threshold: float = typer.Option(0.4, "--merge-threshold", help="Overlap from which two boxes are one."),
    batch_size: int = typer.Option(8, "--batch-size", help="Tiles in one pass."),
    readers: int = typer.Option(1, "--readers", help="Threads that decode ahead."),
    device: str = typer.Option("cpu", "--device", help="cpu, cuda, cuda:1, mps."),
    precision: str = typer.Option("fp32", "--precision", help="fp32 or bf16."),
    format_: str = typer.Option("coco", "--format", help="Some of coco,csv,geojson,yolo."),
    pictures: int = typer.Option(100, "--pictures", help="Draw the first N pictures; 0 draws none."),
    bands: str = typer.Option(None, "--bands", help="Bands of a raster, as in 4,3,2."),
    value_range: str = typer.Option(None, "--value-range", help="LOW,HIGH: raster values of black and white."),
    max_megapixels: float = typer.Option(200, "--max-megapixels", help="Largest picture decoded in one piece."),
    resume: bool = typer.Option(False, "--resume", help="Keep the tiles that an earlier run finished."),
) -> None:
    """Find objects in pictures; writes detections.json, images.json and annotated pictures into --out."""
    from flyspeck.cli.values import parse_integers, parse_numbers, parse_size
    from flyspeck.data.enlarge import Enlarge
    from flyspeck.infer.load import load_model
    from flyspeck.infer.merge import MergeRule
    from flyspeck.infer.multiscale import MultiScale
    from flyspeck.infer.outputs import check_formats, open_writers
    from flyspeck.infer.predictor import Predictor
    from flyspeck.infer.source import OpenOptions, find_items
    from flyspeck.infer.tiles import default_tiles

    if not 0 <= score <= 1:
        raise UserError(f"a score of {score}", where="--score", fix="choose one from 0 to 1")
    formats = format_.split(",")
    check_formats(formats)
    options = OpenOptions(
        max_pixels=int(max_megapixels * 1e6),
        bands=None if bands is None else parse_integers(bands, where="--bands"),
        value_range=None if value_range is None else _range(value_range),
    )
    rule = MergeRule(method=merge, threshold=merge_threshold)  # pyright: ignore[reportArgumentType]
    items, categories = find_items(source)
    network, description = load_model(model, device=device, precision=precision)
    sides, shared = default_tiles(
        None if tile is None or tile == "off" else parse_size(tile, where="--tile"),
        overlap,
        description,
        whole=tile == "off",
    )
    enlarge = Enlarge(**description.get("enlarge", {})) if scale is None else Enlarge(scale)
    views = (1.0,) if scales is None else parse_numbers(scales, where="--scales")
    many = len(views) > 1 or views != (1.0,) or flip
    predictor = Predictor(
        MultiScale(network, views, flip=flip, rule=rule) if many else network,
        tile=sides,
        overlap=shared,
        enlarge=enlarge,
        batch_size=batch_size,
        score_threshold=score,
        merge=rule,
        readers=readers,
        options=options,
    )
    said = "whole pictures" if sides is None else f"tiles of {sides[0]}x{sides[1]}, overlap {shared}"
    typer.echo(
        f"{len(items)} pictures, {said}, {_scale(enlarge)}, score >= {score:g}, merge {merge} {merge_threshold:g}"
    )
    category_ids, remarks = match_categories(network.classes, categories)
    for remark in remarks:
        typer.echo(f"note: {remark}", err=True)
    made_with = _made_with(model, predictor, precision) | ({"views": [*views, flip]} if many else {})
    journal = _journal(out, fresh=not resume, made_with=made_with)
    writers = open_writers(out, formats, classes=network.classes, category_ids=category_ids)
    if resume:
        typer.echo(f"resumed: {journal.num_kept} tiles kept")
    run = _Run(predictor, out, writers, journal, options, show_score, pictures)
    run.all(items)


class _Run:
    """The loop over the results, and what it counted."""

    def __init__(
        self,
        predictor: Predictor,
        out: Path,
        writers: list[Any],
        journal: Any,
        options: OpenOptions,
        show: float,
        pictures: int,
    ) -> None:
        self.predictor, self.out, self.writers, self.journal = predictor, out, writers, journal
        self.options, self.show, self.pictures = options, show, pictures
        self.boxes, self.done, self.bad = 0, 0, 0

    def all(self, items: list[Item]) -> None:
        """Everything; raises UserError at the end if a picture or a part of one could not be read."""
        import time

        start = time.perf_counter()
        tiles = 0
        try:
            for result in self.predictor.stream(items, journal=self.journal):
                self.one(result)
                tiles += result.num_tiles
        finally:
            for writer in self.writers:
                writer.close()
            self.journal.close()
        seconds = time.perf_counter() - start
        typer.echo(f"{self.out}: {self.boxes} boxes in {self.done} pictures, {tiles} tiles, {seconds:.1f} s")
        if self.bad:
            raise UserError(
                f"{self.bad} of {len(items)} pictures could not be read, wholly or in part",
                fix="see the lines above; everything else was written",
            )

    def one(self, result: Result) -> None:
        """Write one picture's results and its line of summary."""
        if result.problem is not None:
            self.bad += 1
            typer.echo(f"error: {result.problem}", err=True)
            return
        for (x1, y1, x2, y2), reason in result.holes:
            typer.echo(f"error: {result.item.name}: no result for {x1},{y1} to {x2},{y2}: {reason}", err=True)
        self.bad += bool(result.holes)
        for writer in self.writers:
            writer.add(result)
        if self.done < self.pictures:
            self._draw(result)
        self.done += 1
        self.boxes += len(result.detections)
        typer.echo(summary_line(result))

    def _draw(self, result: Result) -> None:
        """An annotated picture: PNG, as JPEG would blur what is to be seen."""
        from flyspeck.infer.outputs import inside
        from flyspeck.infer.source import open_source
        from flyspeck.report.drawing import annotated

        found = result.detections
        path = (self.out / "pictures" / inside(result.item.name)).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_source(result.item.picture, self.options, name=result.item.name) as source:
                annotated(source.read, found[found.scores >= self.show]).save(path)
        except UserError as error:
            typer.echo(f"note: not drawn: {error}", err=True)


def summary_line(result: Result) -> str:
    """One line a picture: name, size, tiles, boxes by class."""
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


def _made_with(model: Path, predictor: Predictor, precision: str) -> dict[str, Any]:
    """What decides the boxes of a tile: a journal of other settings must not be mixed in."""
    import hashlib

    from flyspeck.infer.exported import is_exported

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
    }


def _scale(enlarge: Enlarge) -> str:
    return f"scale {enlarge.factor:g}" if enlarge.short_side is None else f"shorter side {enlarge.short_side} px"


def _journal(out: Path, *, fresh: bool, made_with: dict[str, Any]) -> Any:
    from flyspeck.infer.resume import TileJournal

    return TileJournal(out / "tiles", made_with, fresh=fresh)


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"'{text}' is no range", where="--value-range", fix="write LOW,HIGH such as 0,3000") from None
    if not low < high:
        raise UserError(f"'{text}' is no range", where="--value-range", fix="the first number must be the smaller")
    return low, high
