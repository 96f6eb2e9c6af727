"""`flyspeck data split`: splits that do not leak."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.shared_options import (
    ALIKE,
    ALLOW_REFERENCES,
    ALSO,
    COMPARE_IMAGES,
    ENCODING,
    FORMAT,
    FRAME_GAP,
    FRAMES,
    IMAGES,
    LINK,
    PIXELS,
    SOURCE,
    WORKERS,
    Frames,
    Pixels,
)
from flyspeck.cli.terminal import ProgressBar
from flyspeck.cli.values import parse_names
from flyspeck.errors import UserError

CLASSES_SHOWN = 20
"""Lines on classes in the terminal; `summary.txt` has all."""


def split(
    source: Path = SOURCE,
    out: Path = typer.Option(
        ..., "--out", metavar="FOLDER", help="Where to write: a new folder of the splits, groups.csv and summary.txt."
    ),
    also: list[Path] = ALSO,
    shares: str = typer.Option(
        "train=0.8,val=0.2", "--shares", metavar="NAME=SHARE,...", help="Splits and their shares of the images."
    ),
    seed: int = typer.Option(0, "--seed", min=0, metavar="N", help="Seed of the order in which groups are dealt out."),
    cut: bool = typer.Option(
        False,
        "--cut",
        help="Cut groups that are too large into blocks of frames, and leave out what leaks at the cuts.",
    ),
    link: bool = LINK,
    compare_images: bool = COMPARE_IMAGES,
    alike: float = ALIKE,
    frames: Frames = FRAMES,
    frame_gap: int = FRAME_GAP,
    workers: int = WORKERS,
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    pixels: Pixels | None = PIXELS,
    encoding: str | None = ENCODING,
    allow_references: bool = ALLOW_REFERENCES,
) -> None:
    """Divide a set so that no split has an image, a near duplicate or a neighbouring frame of another's."""
    from flyspeck.data.checks.split import split as split_set

    with ProgressBar("comparing images") as progress:
        done = split_set(
            source,
            out=out,
            also=also,
            shares=_shares(shares),
            seed=seed,
            cut=cut,
            link=link,
            format=format,
            images=images,
            pixels=pixels,
            encoding=encoding,
            allow_references=allow_references,
            compare_images=compare_images,
            alike=alike,
            frames=frames,
            frame_gap=frame_gap,
            workers=workers,
            progress=progress.update,
        )
    typer.echo(done.text(most=CLASSES_SHOWN), nl=False)


def _shares(text: str) -> dict[str, float]:
    """`train=0.8,val=0.2` to numbers by name."""
    found: dict[str, float] = {}
    for part in parse_names(text, where="--shares"):
        name, equals, value = (word.strip() for word in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not equals or not name or name in found or not 0 < number < 1:
            raise UserError(f"'{part}' is no share", where="--shares", fix="for example train=0.7,val=0.15,test=0.15")
        found[name] = number
    return found
