"""`flyspeck init`: annotated images to a complete recipe."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.shared_options import CLASSES, DEVICE, FORMAT, IMAGES, PIXELS, SOURCE, Pixels
from flyspeck.cli.values import parse_names

BUDGET = typer.Option(60.0, "--minutes", metavar="N", help="Minutes to spend on all of it.")
VAL = typer.Option(
    None,
    "--val",
    metavar="PATH",
    help="Annotations to measure on; default: a part of SOURCE that shares no image or series.",
)


def init(
    source: Path = SOURCE,
    val: Path | None = VAL,
    minutes: float = typer.Option(60.0, "--minutes", metavar="N", help="Minutes to spend on the training."),
    out: Path = typer.Option(Path("recipe.yaml"), "--out", metavar="FILE", help="Where to write: the recipe."),
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: Pixels | None = PIXELS,
    device: str = DEVICE,
) -> None:
    """Look at annotated images and write a recipe for a detector of their objects, every choice with its reason."""
    from flyspeck.plan.init import init as make

    make(
        source,
        val=val,
        minutes=minutes,
        out=out,
        format=format,
        images=images,
        classes=None if classes is None else parse_names(classes, where="--classes"),
        pixels=pixels,
        device=device,
        say=typer.echo,
    )
