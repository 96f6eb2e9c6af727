"""`flyspeck predict`: images of any size, and videos, to detections, result files and annotated images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import typer

from flyspeck.cli.choices import detection_formats, layouts
from flyspeck.cli.shared_options import ALLOW_REFERENCES, DEVICE, PRECISION, RESUME, Precision


def predict(
    source: list[str] = typer.Argument(
        ...,
        metavar="SOURCE...",
        help="Images (https:// and s3:// too), folders, one file of annotations, one video (https:// too), one rtsp:// stream.",
    ),
    model: str = typer.Option(
        ..., "--model", metavar="PATH", help="A run folder, a weights file, an exported model, or module:function."
    ),
    out: Path = typer.Option(..., "--out", metavar="FOLDER", help="Where to write: the folder of the results."),
    tile: str = typer.Option(
        None,
        "--tile",
        metavar="HxW",
        help="Tile size in pixels, as the model sees them, or off; default: as auto measured, else as trained.",
    ),
    overlap: int = typer.Option(
        None, "--overlap", min=0, metavar="PX", help="Pixels that tiles share; the largest object must fit in."
    ),
    scale: float = typer.Option(
        None,
        "--scale",
        metavar="FACTOR",
        help="Model pixels per image pixel; default: as auto measured, else as trained.",
    ),
    scales: str = typer.Option(
        None,
        "--scales",
        metavar="A,B,...",
        help="Scales of the image, with commas between: each tile is seen at all of them, and merged.",
    ),
    flip: bool = typer.Option(False, "--flip", help="See each tile mirrored too, and merge."),
    score: str = typer.Option(
        "auto",
        "--score",
        metavar="SCORE",
        help="Score threshold of what is reported: a number, or what it was worth in validation: auto (best F1), precision=0.9, "
        "false-positives=0.1 (an image).",
    ),
    keep_score: float = typer.Option(
        0.05,
        "--keep-score",
        min=0,
        max=1,
        metavar="SCORE",
        help="coco and widerface files hold weaker ones too, from here.",
    ),
    merge: Literal["nms", "nmm", "soft-nms", "wbf", "tiny"] = typer.Option(
        "tiny", "--merge", help="What becomes of boxes of one object: suppressed, joined, weakened or averaged."
    ),
    merge_threshold: float = typer.Option(
        0.4, "--merge-threshold", min=0, max=1, metavar="IOU", help="Overlap from which two boxes are one."
    ),
    merge_places: Literal["own", "witnesses", "all"] = typer.Option(
        "witnesses",
        "--merge-places",
        help="Whose boxes of a place in several tiles count: of the tile that sees it best; with others to confirm; of all.",
    ),
    suppression: Literal["nms", "tiny"] = typer.Option(
        None,
        "--suppression",
        help="After NMS: nothing more, or one box on each tiny object; default: as trained, else tiny.",
    ),
    batch_size: int = typer.Option(8, "--batch-size", min=1, metavar="N", help="Batch size: tiles in one pass."),
    readers: int = typer.Option(1, "--readers", min=1, metavar="N", help="Threads that decode ahead."),
    device: str = DEVICE,
    precision: Precision = PRECISION,
    to: str = typer.Option(
        "coco",
        "--to",
        metavar="A,B,...",
        autocompletion=detection_formats,
        help="Format to write, or several with commas between.",
    ),
    draw: int = typer.Option(
        100, "--draw", min=0, metavar="N", help="Draw at most so many images: the first; 0 draws none."
    ),
    heat: bool = typer.Option(False, "--heat", help="A heat map of each, not only of images over 8000 px."),
    bands: str = typer.Option(
        None, "--bands", metavar="A,B,...", help="Bands to read, as in 4,3,2; default: as in training."
    ),
    value_range: str = typer.Option(
        None,
        "--value-range",
        metavar="LOW,HIGH",
        help="Values that are black and white; default: as in training.",
    ),
    crs: str = typer.Option(
        None,
        "--crs",
        metavar="CRS",
        help="Coordinate system of map formats, as in EPSG:4326; default: the image's own.",
    ),
    resolution: str = typer.Option(
        None,
        "--resolution",
        metavar="native|trained|M",
        help="Metres a pixel at which images on a map are seen; default: the training's, where more than 1.25 times apart.",
    ),
    roi: Path = typer.Option(
        None, "--roi", metavar="FILE", help="Polygons (GeoJSON, GeoPackage, Shapefile): look and report only inside."
    ),
    max_megapixels: float = typer.Option(
        200, "--max-megapixels", metavar="N", help="Largest image decoded in one piece."
    ),
    allow_references: bool = ALLOW_REFERENCES,
    timeout: float = typer.Option(
        30, "--timeout", metavar="SECONDS", help="Of images at addresses: how long an answer may stand still."
    ),
    resume: bool = RESUME,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the results of an earlier job in --out."),
    skip: bool = typer.Option(False, "--skip", help="Pass over tiles that a cheap first look finds empty."),
    skip_audit: float = typer.Option(
        0.05, "--skip-audit", metavar="SHARE", help="Share of the empty tiles that is run all the same."
    ),
    skip_check: bool = typer.Option(False, "--skip-check", help="Run every tile and say what --skip would have lost."),
    budget: str = typer.Option(
        None, "--budget", metavar="COST", help="Of a detector with pooling factors: mean cost, as in 0.6GFLOPs or 12ms."
    ),
    quality: float = typer.Option(
        None, "--quality", metavar="SHARE", help="Of a detector with pooling factors: 0 the cheapest, 1 the largest."
    ),
    factor: float = typer.Option(
        None, "--factor", metavar="FACTOR", help="Of a detector with pooling factors: this one alone."
    ),
    layout: str = typer.Option(
        None,
        "--layout",
        metavar="NAME",
        autocompletion=layouts,
        help="Layout of another program's outputs, as in yolov8; default: told from the file.",
    ),
    classes: str = typer.Option(
        None,
        "--classes",
        metavar="A,B,...",
        help="Names of the classes of another program's model, with commas between, or a file of them.",
    ),
    every: int = typer.Option(1, "--every", min=1, metavar="N", help="Of a video, every Nth frame."),
    max_frames: int = typer.Option(
        None, "--max-frames", min=1, metavar="N", help="Of a video, stop after so many frames."
    ),
    max_seconds: float = typer.Option(None, "--max-seconds", metavar="S", help="Of a video, stop at this time."),
    stills: bool = typer.Option(
        False, "--stills", help="Of a video, the best crop of each track, and a table of them."
    ),
    count_line: list[str] = typer.Option(
        [],
        "--count-line",
        metavar="X1,Y1,X2,Y2[:NAME]",
        help="Of a video, count what crosses this line, in pixels; may be repeated.",
    ),
    count_region: list[str] = typer.Option(
        [],
        "--count-region",
        metavar="X1,Y1,...[:NAME]|FILE",
        help="Of a video, count what enters and leaves these polygons, in pixels; may be repeated.",
    ),
) -> None:
    """Find objects in images; writes detections.json, images.json and annotated images into --out."""
    from flyspeck.cli.class_names import class_names
    from flyspeck.cli.terminal import Steps
    from flyspeck.cli.values import parse_integers, parse_names, parse_numbers, parse_range

    with Steps("starting") as steps:
        from flyspeck.infer.job import predict as run
        from flyspeck.infer.merge import MergeRule

        run(
            source,
            model=model,
            out=out,
            formats=parse_names(to, where="--to"),
            tile=_tile(tile),
            overlap=overlap,
            scale=scale,
            scales=(1.0,) if scales is None else parse_numbers(scales, where="--scales"),
            flip=flip,
            score_threshold=score,
            keep_score=keep_score,
            merge=MergeRule.at(merge_places, method=merge, threshold=merge_threshold),
            suppression=suppression,
            batch_size=batch_size,
            readers=readers,
            device=device,
            precision=precision,
            draw=draw,
            heat=heat,
            bands=None if bands is None else parse_integers(bands, where="--bands"),
            value_range=None if value_range is None else parse_range(value_range, where="--value-range"),
            crs=crs,
            roi=roi,
            resolution=resolution,
            max_megapixels=max_megapixels,
            allow_references=allow_references,
            timeout=timeout,
            resume=resume,
            overwrite=overwrite,
            skip=skip,
            skip_audit=skip_audit,
            skip_check=skip_check,
            budget=budget,
            quality=quality,
            factor=factor,
            every=every,
            max_frames=max_frames,
            max_seconds=max_seconds,
            stills=stills,
            count_lines=count_line,
            count_regions=count_region,
            layout=layout,
            classes=None if classes is None else class_names(classes, where="--classes"),
            say=steps.say,
            warn=steps.warn,
            progress=steps,
        )


def _tile(tile: str | None) -> Any:
    from flyspeck.cli.values import parse_size

    return tile if tile is None or tile == "off" else parse_size(tile, where="--tile")
