"""`flyspeck predict`: images of any size, and videos, to detections, result files and annotated images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flyspeck.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from flyspeck.cli.prediction import Prediction
    from flyspeck.data.enlarge import Enlarge
    from flyspeck.infer.merge import MergeRule
    from flyspeck.infer.predictor import Predictor
    from flyspeck.infer.processes import Processes
    from flyspeck.infer.skip import SkipRule
    from flyspeck.infer.source import Categories, Item, OpenOptions


def predict(
    source: list[str] = typer.Argument(..., help="Images, folders, one COCO json, or one video."),
    model: Path = typer.Option(..., "--model", help="A run folder, a weights file, or an exported model."),
    out: Path = typer.Option(..., "--out", help="Folder for the results."),
    tile: str = typer.Option(None, "--tile", help="Tile HxW in model pixels, or 'off'; default: the training size."),
    overlap: int = typer.Option(None, "--overlap", help="Pixels that tiles share; the largest object must fit in."),
    scale: float = typer.Option(None, "--scale", help="Model pixels per image pixel; default: as in training."),
    scales: str = typer.Option(None, "--scales", help="See each tile at all of these sizes and merge, as in 0.5,1,2."),
    flip: bool = typer.Option(False, "--flip", help="See each tile mirrored too, and merge."),
    score: float = typer.Option(0.05, "--score", help="Leave out weaker detections."),
    show_score: float = typer.Option(0.3, "--show-score", help="Draw, track and count only from this score."),
    merge: str = typer.Option("nms", "--merge", help="nms, nmm, soft-nms or wbf."),
    merge_threshold: float = typer.Option(0.4, "--merge-threshold", help="Overlap from which two boxes are one."),
    batch_size: int = typer.Option(8, "--batch-size", help="Tiles in one pass."),
    readers: int = typer.Option(1, "--readers", help="Threads that decode ahead."),
    device: str = typer.Option("cpu", "--device", help="cpu, cuda, cuda:1, mps."),
    precision: str = typer.Option("fp32", "--precision", help="fp32 or bf16."),
    format_: str = typer.Option("coco", "--format", help="Some of coco,csv,geojson,gpkg,widerface,yolo."),
    images: int = typer.Option(100, "--images", help="Draw the first N images; 0 draws none."),
    heat: bool = typer.Option(False, "--heat", help="A heat map of each, not only of images over 8000 px."),
    bands: str = typer.Option(None, "--bands", help="Bands of a raster, as in 4,3,2."),
    value_range: str = typer.Option(None, "--value-range", help="LOW,HIGH: raster values of black and white."),
    max_megapixels: float = typer.Option(200, "--max-megapixels", help="Largest image decoded in one piece."),
    resume: bool = typer.Option(False, "--resume", help="Keep the tiles that an earlier run finished."),
    skip: bool = typer.Option(False, "--skip", help="Pass over tiles that a cheap first look finds empty."),
    skip_audit: float = typer.Option(0.05, "--skip-audit", help="Share of the empty tiles that is run all the same."),
    skip_check: bool = typer.Option(False, "--skip-check", help="Run every tile and say what --skip would have lost."),
    budget: str = typer.Option(
        None, "--budget", help="Of a detector with factors: mean cost, as in 0.6GFLOPs or 12ms."
    ),
    quality: float = typer.Option(None, "--quality", help="Of a detector with factors: 0 the cheapest, 1 the largest."),
    factor: float = typer.Option(None, "--factor", help="Of a detector with factors: this one for everything."),
    every: int = typer.Option(1, "--every", help="Of a video, every Nth frame."),
) -> None:
    """Find objects in images; writes detections.json, images.json and annotated images into --out."""
    from flyspeck.cli.prediction import made_with
    from flyspeck.infer.load import load_model
    from flyspeck.infer.merge import MergeRule
    from flyspeck.infer.predictor import Predictor
    from flyspeck.infer.processes import Processes

    formats = _checked(score, format_)
    options = _open_options(max_megapixels, bands, value_range)
    rule = MergeRule(method=merge, threshold=merge_threshold)  # pyright: ignore[reportArgumentType]
    film, items, categories = _sources(source, resume)
    processes = Processes.from_environment()
    asked: dict[str, Any] = {"budget": budget, "quality": quality, "factor": factor}
    choice = {name: value for name, value in asked.items() if value is not None}
    network, description = load_model(
        model, device=processes.device(device), precision=precision, choice=choice, tile=_tile(tile)
    )
    sides, shared, enlarge = _tiling(tile, overlap, scale, description)
    seer, views = _views(network, scales, flip, rule)
    predictor = Predictor(
        seer,
        tile=sides,
        overlap=shared,
        enlarge=enlarge,
        batch_size=batch_size,
        score_threshold=score,
        merge=rule,
        skip=_skip_rule(model, network, skip_audit, show_score, check=skip_check) if skip or skip_check else None,
        readers=readers,
        options=options,
    )
    if processes.leads:
        what = f"{len(items)} images" if film is None else film.name
        typer.echo(_settings(what, predictor, description, f"merge {merge} {merge_threshold:g}"))
    if film is not None:
        _video(film, predictor, out, formats, network.classes, show=show_score, every=every, draw=images > 0)
        return
    made = {**made_with(model, predictor, precision), **choice, **views}
    where = {"out": out, "formats": formats, "source": source, "items": items, "categories": categories}
    job = _Job(made=made, classes=network.classes, resume=resume, **where)
    job.run(predictor, processes, images=images, show_score=show_score, heat=heat, check=skip_check)
    if processes.leads:
        _say_factors(network)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """From what was asked for to the loop over the results."""

    made: dict[str, Any]
    """What decides the boxes of a tile."""
    classes: tuple[str, ...]
    out: Path
    formats: list[str]
    source: list[str]
    items: list[Item]
    categories: Categories | None
    resume: bool

    def run(
        self, predictor: Predictor, processes: Processes, *, images: int, show_score: float, heat: bool, check: bool
    ) -> None:
        """On one process, or this process's part and, for the first one, the result of all."""
        from dataclasses import replace

        from flyspeck.cli.prediction import Drawing, Prediction, match_categories, open_journal
        from flyspeck.infer.outputs import open_writers
        from flyspeck.infer.reading import Share

        ids, remarks = match_categories(self.classes, self.categories)
        run = Prediction(predictor, self.out, predictor.options, Drawing(images=images, score=show_score, heat=heat))
        if processes.leads:
            for remark in remarks:
                typer.echo(f"note: {remark}", err=True)
            journal = open_journal(self.out, fresh=not self.resume, made_with=self.made)
            if self.resume:
                typer.echo(f"resumed: {journal.num_kept} tiles kept")
            journal.close()
        processes.wait()
        if processes.world > 1:
            self._part(run, processes)
            if not processes.leads:
                return
            predictor.share = Share()
            if predictor.skip is not None:  # each process has judged its own audit already
                predictor.skip = replace(predictor.skip, max_loss=1.0)
        journal = open_journal(self.out, fresh=False, made_with=self.made)
        run = replace(run, done=0, tiles=0, truth=_truth(self.source) if check and self.categories else None)
        run.writers = open_writers(self.out, self.formats, classes=self.classes, category_ids=ids)
        run.all(self.items, journal)

    def _part(self, run: Prediction, processes: Processes) -> None:
        import time

        from flyspeck.cli.prediction import open_journal

        start = time.perf_counter()
        run.predictor.share = processes.share(len(self.items))
        journal = open_journal(self.out, fresh=False, made_with=self.made)
        run.part(self.items, journal)
        typer.echo(
            f"process {processes.rank + 1} of {processes.world}: {journal.num_written} tiles, {time.perf_counter() - start:.1f} s"
        )
        processes.wait()


def _checked(score: float, formats: str) -> list[str]:
    """The formats, where they and the score can be used."""
    from flyspeck.infer.outputs import check_formats

    if not 0 <= score <= 1:
        raise UserError(f"a score of {score}", where="--score", fix="choose one from 0 to 1")
    check_formats(formats.split(","))
    return formats.split(",")


def _sources(source: list[str], resume: bool) -> tuple[Path | None, list[Item], Categories | None]:
    """One video, or images with the categories of their json."""
    from flyspeck.infer.source import find_items
    from flyspeck.infer.video import is_video

    film = next((Path(s) for s in source if is_video(s)), None)
    if film is None:
        return None, *find_items(source)
    if len(source) > 1 or resume:
        raise UserError("a video is predicted alone and in one go", where=film, fix="give it alone, without --resume")
    return film, [], None


def _open_options(max_megapixels: float, bands: str | None, value_range: str | None) -> OpenOptions:
    from flyspeck.cli.values import parse_integers
    from flyspeck.infer.source import OpenOptions

    return OpenOptions(
        max_pixels=int(max_megapixels * 1e6),
        bands=None if bands is None else parse_integers(bands, where="--bands"),
        value_range=None if value_range is None else _range(value_range),
    )


def _tile(tile: str | None) -> tuple[int, int] | None:
    from flyspeck.cli.values import parse_size

    return None if tile is None or tile == "off" else parse_size(tile, where="--tile")


def _say_factors(network: Any) -> None:
    """How many images or tiles took which factor (`TorchModel.taken`)."""
    total = sum(network.taken.values())
    if total:
        counts = ", ".join(f"{f:g}: {n} ({100 * n / total:.0f} %)" for f, n in network.taken.items())
        typer.echo(f"images or tiles by factor: {counts}")


def _views(network: Any, scales: str | None, flip: bool, rule: MergeRule) -> tuple[Any, dict[str, Any]]:
    """The model with all the views of a tile that are asked for, and what a journal has to know of them."""
    from flyspeck.cli.values import parse_numbers
    from flyspeck.infer.multiscale import MultiScale

    views = (1.0,) if scales is None else tuple(parse_numbers(scales, where="--scales"))
    if views == (1.0,) and not flip:
        return network, {}
    return MultiScale(network, views, flip=flip, rule=rule), {"views": [*views, flip]}


def _tiling(
    tile: str | None, overlap: int | None, scale: float | None, description: dict[str, Any]
) -> tuple[tuple[int, int] | None, int, Enlarge]:
    from flyspeck.data.enlarge import Enlarge
    from flyspeck.infer.tiles import default_tiles

    sides, shared = default_tiles(_tile(tile), overlap, description, whole=tile == "off")
    return sides, shared, Enlarge(**description.get("enlarge", {})) if scale is None else Enlarge(scale)


def _settings(what: str, predictor: Predictor, description: dict[str, Any], merge: str) -> str:
    """What was chosen, and what it follows from."""
    sides, shared = predictor.tile, predictor.overlap[0]
    said = "whole images" if sides is None else f"tiles of {sides[0]}x{sides[1]}, overlap {shared}"
    line = f"{what}, {said}, {_scale(predictor.enlarge)}, score >= {predictor.score_threshold:g}, {merge}"
    trained = description.get("training_size")
    if trained is not None:
        line += f"\ntrained at {trained[0]}x{trained[1]}"
        if "object_side_99" in description:
            line += f", where 99 % of the objects were at most {description['object_side_99']:.0f} px long"
    if sides is not None:
        waste = sides[0] * sides[1] / ((sides[0] - shared) * (sides[1] - shared))
        if waste > 2:
            line += (
                f"\nnote: with this overlap {waste:.1f} times the image is run; larger tiles or less overlap are faster"
            )
    return line


def _skip_rule(model: Path, network: Any, audit: float, score: float, *, check: bool) -> SkipRule:
    """The look of the run folder where `flyspeck tune look` left one, else the predictor's statistic branch, else the detector
    itself on a coarse image.
    """
    from flyspeck.infer.engines import is_exported
    from flyspeck.infer.skip import DetectorLook, SkipRule

    path = (model if model.is_dir() else model.parent) / "look.safetensors"
    share = 1.0 if check else audit
    if path.is_file():
        from flyspeck.infer.presence import PresenceLook

        look = PresenceLook(path)
        typer.echo(
            f"skip: {path.name} at 1/{look.shrink} of the size, threshold {look.threshold:.3f}; in validation it passed over "
            f"{100 * look.calibration['lost']:.1f} % of the objects, each taken alone"
        )
        return SkipRule(look=look, threshold=look.threshold, audit=share, score=score)
    if not is_exported(model):
        from flyspeck.infer.statistic import StatisticLook, has_statistics

        if has_statistics(network):
            typer.echo(
                "skip: tiles in which the factor predictor expects fewer than 0.5 objects; 'flyspeck tune look RUN' trains a "
                "first look that is much cheaper"
            )
            return SkipRule(look=StatisticLook(network), threshold=0.5, audit=share, score=score)
    typer.echo("skip: by the detector itself at 1/4 of the size; 'flyspeck tune look RUN' trains a better first look")
    return SkipRule(look=DetectorLook(network, shrink=4), threshold=0.1, audit=share, score=score)


def _truth(source: list[str]) -> dict[int | str, np.ndarray]:
    """The annotated objects (N, 4) of each image of a COCO json."""
    from flyspeck.data.readers import read_annotations

    table = read_annotations(source[0])
    counts = (table.labels >= 0) & ~table.ignore
    return {key: table.boxes[counts & (table.image_index == row)] for row, key in enumerate(table.image_ids.tolist())}


def _video(
    film: Path,
    predictor: Predictor,
    out: Path,
    formats: list[str],
    classes: tuple[str, ...],
    *,
    show: float,
    every: int,
    draw: bool,
) -> None:
    from flyspeck.cli.predict_video import predict_video
    from flyspeck.infer.outputs import open_writers

    writers = open_writers(out, formats, classes=classes)
    predict_video(film, predictor, out, writers, show=show, every=every, draw=draw)


def _scale(enlarge: Enlarge) -> str:
    return f"scale {enlarge.factor:g}" if enlarge.short_side is None else f"shorter side {enlarge.short_side} px"


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"'{text}' is no range", where="--value-range", fix="write LOW,HIGH such as 0,3000") from None
    if not low < high:
        raise UserError(f"'{text}' is no range", where="--value-range", fix="the first number must be the smaller")
    return low, high
