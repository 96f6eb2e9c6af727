"""`flyspeck predict`: images of any size, and videos, to detections, result files and annotated images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import typer

from flyspeck.errors import UserError


def predict(
    source: list[str] = typer.Argument(..., help="Images, folders, one file of annotations, or one video."),
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
    format_: str = typer.Option(
        "coco", "--format", help="Some of coco,csv,geojson,gpkg,widerface,yolo, or a plugin's."
    ),
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
    from flyspeck.cli.values import parse_integers, parse_names, parse_numbers, parse_range
    from flyspeck.infer.job import predict as run
    from flyspeck.infer.merge import MergeRule

    if not 0 <= score <= 1:
        raise UserError(f"a score of {score}", where="--score", fix="choose one from 0 to 1")
    run(
        source,
        model=model,
        out=out,
        formats=parse_names(format_, where="--format"),
        tile=_tile(tile),
        overlap=overlap,
        scale=scale,
        scales=(1.0,) if scales is None else parse_numbers(scales, where="--scales"),
        flip=flip,
        score_threshold=score,
        show_score=show_score,
        merge=MergeRule(method=merge, threshold=merge_threshold),  # pyright: ignore[reportArgumentType]
        batch_size=batch_size,
        readers=readers,
        device=device,
        precision=precision,
        draw=images,
        heat=heat,
        bands=None if bands is None else parse_integers(bands, where="--bands"),
        value_range=None if value_range is None else parse_range(value_range, where="--value-range"),
        max_megapixels=max_megapixels,
        resume=resume,
        skip=skip,
        skip_audit=skip_audit,
        skip_check=skip_check,
        budget=budget,
        quality=quality,
        factor=factor,
        every=every,
        say=typer.echo,
        warn=partial(typer.echo, err=True),
    )


def _tile(tile: str | None) -> Any:
    from flyspeck.cli.values import parse_size

    return tile if tile is None or tile == "off" else parse_size(tile, where="--tile")
