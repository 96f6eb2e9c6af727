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
    from flyspeck.devices import check_device
    from flyspeck.errors import counted
    from flyspeck.files import check_writable, local_output
    from flyspeck.plan.state import check_folder
    from flyspeck.plan.usable import check_there
    from flyspeck.plan.voice import Voice, minutes_of

    minutes = minutes_of(minutes)
    check_there(source, val)  # what can be said at once is said before torch is loaded, which takes seconds
    check_folder(local_output(out), resume=resume)
    check_writable(out)
    with Voice(typer.echo).doing(f"flyspeck auto: {counted(minutes, 'minute')} for all of it; loading"):
        check_device(device)
        from flyspeck.plan.auto import auto as run

    run(
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
    )
