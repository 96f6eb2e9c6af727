"""`flyspeck quantise`: a trained detector, to be trained on for INT8."""

from __future__ import annotations

from pathlib import Path

import typer


def quantise(
    run: Path = typer.Argument(..., metavar="RUN", help="A finished run folder."),
    out: Path = typer.Option(
        ...,
        "--out",
        metavar="FOLDER",
        help="Where to write: the folder of the weights to start from and of the recipe.",
    ),
    epochs: int | None = typer.Option(
        None,
        "--epochs",
        min=1,
        metavar="N",
        help="Passes over the training images, in the recipe; default: a quarter of the run's, or of its minutes.",
    ),
) -> None:
    """Write the recipe that trains a detector on while its layers round to 8 bits, as an INT8 file will."""
    from flyspeck.train.quantising import quantise_run

    done = quantise_run(run, out, epochs=epochs)
    typer.echo(f"{done.weights}: {done.layers} layers round what they take and their weights to 8 bits in training")
    typer.echo(f"next: flyspeck {'distill' if done.distills else 'train'} {done.recipe} --out FOLDER")
    typer.echo("then: flyspeck export FOLDER --out FILE.onnx --int8")
