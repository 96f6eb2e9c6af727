"""`flyspeck card`: a run to a small weights file with its card."""

from __future__ import annotations

from pathlib import Path

import typer


def card(
    run: Path = typer.Argument(..., help="A finished run folder."),
    out: Path = typer.Option(..., "--out", help="Folder to write: model.safetensors and README.md."),
    data: str = typer.Option(..., "--data", help="The data set, its source and licence, in words."),
    licence: str = typer.Option(..., "--licence", help="Licence of the weights, in words."),
    title: str = typer.Option("", "--title", help="Head of the card; default: the run's name."),
    notes: Path | None = typer.Option(None, "--notes", help="A text file: what to know before using the model."),
    gt: Path | None = typer.Option(None, "--gt", help="The validation set, where it has moved."),
    speed: bool = typer.Option(False, "--speed", help="Time the model, on a machine that does nothing else."),
    images: int = typer.Option(200, "--parity-images", min=1, help="Validation images to compare half precision on."),
) -> None:
    """Write a model card with figures by size, and the weights in half precision where that costs nothing."""
    from flyspeck.errors import UserError
    from flyspeck.publish.card import Words, write_card

    if notes is not None and not notes.is_file():
        raise UserError("no such file", where=f"--notes {notes}")
    words = Words(title or run.name, data, licence, notes.read_text(encoding="utf-8") if notes else "")
    parity = write_card(run, out, words, gt=gt, parity_images=images, speed=speed)
    kept = "half" if parity.holds else "single"
    typer.echo(
        f"{out}: {kept} precision; {parity.figure} on {parity.images} images {100 * parity.single:.2f} before "
        f"rounding, {100 * parity.half:.2f} after"
    )
