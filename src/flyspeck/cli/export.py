"""`flyspeck export`: a trained detector as a file that runs without torch."""

from __future__ import annotations

from pathlib import Path

import typer


def export(
    run: Path = typer.Argument(..., help="A run folder or a weights file."),
    out: Path = typer.Option(..., "--out", help="The file to write: .onnx, or .xml for OpenVINO."),
    format_: str = typer.Option("onnx", "--format", help="onnx or openvino."),
    int8: bool = typer.Option(False, "--int8", help="Integers, calibrated on tiles; its loss by size is printed."),
    pixels: int = typer.Option(8, "--pixels", help="Bits of a channel: 8, or 16 (which takes both)."),
    hard_nms: float = typer.Option(None, "--hard-nms", help="IoU of plain suppression, in place of soft-NMS."),
    factor: float = typer.Option(None, "--factor", help="Of a detector with factors: this one alone."),
    check: Path = typer.Option(None, "--check", help="Images or annotations to check on; default: the run's own."),
    check_limit: int = typer.Option(48, "--check-limit", help="Check on at most so many images, evenly spread."),
    calibrate: Path = typer.Option(None, "--calibrate", help="Images for INT8; default: the run's training set."),
    calibration_tiles: int = typer.Option(64, "--calibration-tiles", help="Tiles that INT8 is calibrated on."),
) -> None:
    """Write a detector as ONNX or OpenVINO, if it finds the same boxes there; else say what differed."""
    from flyspeck.export.exporting import export as write

    done = write(
        run,
        out=out,
        format=format_,  # pyright: ignore[reportArgumentType]  # the function says which there are
        int8=int8,
        bits=pixels,  # pyright: ignore[reportArgumentType]
        hard_nms=hard_nms,
        factor=factor,
        check=check,
        check_limit=check_limit,
        calibrate=calibrate,
        calibration_tiles=calibration_tiles,
        say=typer.echo,
    )
    size = sum(f.stat().st_size for f in (done.path, done.path.with_suffix(".bin")) if f.is_file()) / 1e6
    typer.echo(f"{done.path}: {size:.1f} MB; flyspeck predict --model {done.path} IMAGES --out FOLDER")
