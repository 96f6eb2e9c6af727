"""`flyspeck auto`: annotated images and minutes to a detector, chosen by measuring."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from flyspeck.cli.init import BUDGET, VAL
from flyspeck.cli.shared_options import CLASSES, DEVICE, FORMAT, IMAGES, PIXELS, RESUME, SOURCE, Pixels
from flyspeck.cli.values import parse_names


def auto(
    source: Path = SOURCE,
    out: Path = typer.Option(..., "--out", metavar="FOLDER", help="Where to write: a new folder for all of it."),
    minutes: float = BUDGET,
    val: Path | None = VAL,
    resume: bool = RESUME,
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: Pixels | None = PIXELS,
    device: str = DEVICE,
) -> None:
    """Look, plan, try a few trainings, finish the best, export it, and report on images that no choice was made on."""
    begun = time.monotonic()  # what is imported below counts
    from flyspeck.errors import counted
    from flyspeck.files import check_writable, local_output
    from flyspeck.plan.state import check_folder
    from flyspeck.plan.usable import check_there
    from flyspeck.plan.voice import minutes_of

    minutes = minutes_of(minutes)
    check_there(source, val)
    check_folder(local_output(out), resume=resume)
    check_writable(out)
    typer.echo(f"flyspeck auto: {counted(minutes, 'minute')} for all of it")
    from flyspeck.plan.begin import begin

    with begin(
        source,
        minutes=minutes,
        out=out,
        val=val,
        format=format,
        images=images,
        classes=None if classes is None else parse_names(classes, where="--classes"),
        pixels=pixels,
        device=device,
        resume=resume,
        begun=begun,
        say=typer.echo,
    ) as beginning:
        with beginning.voice.doing("loading what trains"):
            from flyspeck.plan.auto import go_on

        go_on(beginning)
