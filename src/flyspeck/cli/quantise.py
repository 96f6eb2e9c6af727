"""`flyspeck quantise`: a trained detector, to be trained on for INT8."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.shared_options import EPOCHS_AFTER, FINISHED_RUN


def quantise(
    run: Path = FINISHED_RUN,
    out: Path = typer.Option(
        ...,
        "--out",
        metavar="FOLDER",
        help="Where to write: the folder of the weights to start from and of the recipe.",
    ),
    epochs: int | None = EPOCHS_AFTER,
) -> None:
    """Write the recipe that trains a detector on while its layers round to 8 bits, as an INT8 file will."""
    from flyspeck.train.quantising import quantise_run

    done = quantise_run(run, out, epochs=epochs)
    typer.echo(f"{done.weights}: {done.layers} layers round what they take and their weights to 8 bits in training")
    typer.echo(f"next: flyspeck {'distill' if done.distills else 'train'} {done.recipe} --out FOLDER")
    typer.echo("then: flyspeck export FOLDER --out FILE.onnx --int8")
