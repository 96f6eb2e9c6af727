"""`flyspeck card`: a run to a small weights file with its card."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.shared_options import DEVICE, FINISHED_RUN, training_device
from flyspeck.cli.terminal import ProgressBar


def card(
    run: Path = FINISHED_RUN,
    out: Path = typer.Option(
        ..., "--out", metavar="FOLDER", help="Where to write: the folder of model.safetensors and README.md."
    ),
    trained_on: str = typer.Option(
        ..., "--trained-on", metavar="WORDS", help="The data set, its source and licence, in words."
    ),
    licence: str = typer.Option(..., "--licence", metavar="WORDS", help="Licence of the weights, in words."),
    title: str = typer.Option("", "--title", metavar="WORDS", help="Title of the page; default: the run's name."),
    notes: Path | None = typer.Option(
        None, "--notes", metavar="FILE", help="A text file: what to know before using the model."
    ),
    gt: Path | None = typer.Option(
        None, "--gt", metavar="PATH", help="Ground truth: the validation set, where it has moved."
    ),
    latency: bool = typer.Option(False, "--latency", help="Also time the model, on a machine that does nothing else."),
    baselines: bool = typer.Option(
        False,
        "--baselines",
        help="Measure what needs no network too, on the same images, fitted to the training set.",
    ),
    limit: int = typer.Option(
        200, "--limit", min=1, metavar="N", help="At most so many images: those that half precision is compared on."
    ),
    device: str = DEVICE,
) -> None:
    """Write a model card with metrics by size, and the weights in half precision where that costs nothing."""
    from flyspeck.errors import UserError, counted
    from flyspeck.publish.card import Words, write_card

    if notes is not None and not notes.is_file():
        raise UserError("no such file", where=f"--notes {notes}")
    words = Words(title or run.name, trained_on, licence, notes.read_text(encoding="utf-8") if notes else "")
    with training_device(device), ProgressBar("measuring and rounding"):
        parity = write_card(run, out, words, gt=gt, parity_images=limit, speed=latency, baselines=baselines)
    kept = "half" if parity.holds else "single"
    typer.echo(
        f"{out}: {kept} precision; {parity.metric} on {counted(parity.images, 'image')} {100 * parity.single:.2f} before "
        f"rounding, {100 * parity.half:.2f} after"
    )
