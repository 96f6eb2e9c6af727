"""`flyspeck export`: a trained detector as a file that runs without torch."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import typer


def export(
    run: Path = typer.Argument(..., metavar="RUN", help="A run folder or a weights file."),
    out: Path = typer.Option(
        ..., "--out", metavar="FILE", help="Where to write: a file .onnx, .xml (OpenVINO) or .tflite (LiteRT)."
    ),
    to: Literal["onnx", "openvino", "litert"] = typer.Option(
        None, "--to", help="Format to write; default: by the ending of --out."
    ),
    int8: bool = typer.Option(False, "--int8", help="Integers, calibrated on tiles; its loss by size is printed."),
    bits: Literal["8", "16"] = typer.Option(
        None, "--bits", help="Bits of a band of the images, 16 takes both; default: those of the training's."
    ),
    hard_nms: float = typer.Option(
        None, "--hard-nms", min=0, max=1, metavar="IOU", help="Plain suppression at this overlap, in place of soft-NMS."
    ),
    suppression: Literal["nms", "tiny"] = typer.Option(
        None,
        "--suppression",
        help="After NMS: nothing more, or one box on each tiny object; default: as trained, else tiny.",
    ),
    factor: float = typer.Option(
        None, "--factor", metavar="FACTOR", help="Of a detector with pooling factors: this one alone."
    ),
    tile: str = typer.Option(
        None,
        "--tile",
        metavar="HxW",
        help="Tile size in pixels, as the model sees them, of litert; default: as trained.",
    ),
    on: Path = typer.Option(
        None, "--on", metavar="PATH", help="Images or annotations to measure on; default: the run's own."
    ),
    limit: int = typer.Option(48, "--limit", min=1, metavar="N", help="At most so many images, evenly spread."),
    calibrate: Path = typer.Option(
        None, "--calibrate", metavar="PATH", help="Images or annotations for INT8; default: the run's training set."
    ),
    calibration_tiles: int = typer.Option(
        64, "--calibration-tiles", min=1, metavar="N", help="Tiles that INT8 is calibrated on."
    ),
) -> None:
    """Write a detector as ONNX, OpenVINO or LiteRT, if it finds the same boxes there; else say what differed."""
    from flyspeck.cli.terminal import Steps
    from flyspeck.cli.values import parse_size

    with Steps("loading the detector") as steps:
        from flyspeck.export.exporting import export as write

        done = write(
            run,
            out=out,
            format=to,
            int8=int8,
            bits={"8": 8, "16": 16}.get(bits),  # type: ignore[arg-type]
            hard_nms=hard_nms,
            suppression=suppression,
            factor=factor,
            tile=None if tile is None else parse_size(tile, where="--tile"),
            check=on,
            check_limit=limit,
            calibrate=calibrate,
            calibration_tiles=calibration_tiles,
            say=steps.follow,
        )
    size = sum(f.stat().st_size for f in (done.path, done.path.with_suffix(".bin")) if f.is_file()) / 1e6
    typer.echo(
        f"{done.path}: {size:.1f} MB; flyspeck predict --model {shlex.quote(str(done.path))} IMAGES --out FOLDER"
    )
