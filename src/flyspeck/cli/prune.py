"""`flyspeck prune`: a trained detector without the channels that are worth least."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.shared_options import EPOCHS_AFTER, FINISHED_RUN
from flyspeck.errors import counted


def prune(
    run: Path = FINISHED_RUN,
    out: Path = typer.Option(
        ..., "--out", metavar="FOLDER", help="Where to write: the folder of the pruned weights and of the recipe."
    ),
    share: float = typer.Option(
        0.3,
        "--share",
        min=0.01,
        max=0.9,
        metavar="SHARE",
        help="Share of the inner channels to cut, those of the lowest norm scales.",
    ),
    multiple: int = typer.Option(
        4, "--multiple", min=1, max=64, metavar="N", help="Leave widths that are multiples of N."
    ),
    epochs: int | None = EPOCHS_AFTER,
    quantise: bool = typer.Option(
        False, "--quantise", help="Train what is left for INT8 at once, as flyspeck quantise does."
    ),
) -> None:
    """Cut the channels of a detector that are worth least, and write the recipe that trains what is left."""
    from flyspeck.train.pruning import prune_run

    done = prune_run(run, out, share=share, multiple=multiple, epochs=epochs, quantise=quantise)
    before, after = done.parameters
    typer.echo(
        f"{done.weights}: {before / 1e6:.3f} M parameters before, {after / 1e6:.3f} M after;"
        f" {done.channels[0]} inner channels before, {done.channels[1]} after"
        + (f"; {counted(done.quantised, 'layer')} to be rounded to 8 bits" if quantise else "")
    )
    typer.echo(f"next: flyspeck {'distill' if done.distills else 'train'} {done.recipe} --out FOLDER")
