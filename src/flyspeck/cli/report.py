"""`flyspeck report`: runs to one HTML file."""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    runs: list[Path] = typer.Argument(..., help="Run folders; several are compared side by side."),
    out: Path = typer.Option(Path("report.html"), "--out", help="The file to write."),
    gt: Path | None = typer.Option(None, "--gt", help="Ground truth, where it is not the recipe's validation set."),
    protocol: str | None = typer.Option(None, "--protocol", help="Measure anew under this protocol."),
    images: int = typer.Option(40, "--images", min=0, help="How many of the worst images to show."),
    title: str = typer.Option("flyspeck report", "--title", help="The page's title."),
) -> None:
    """Explain runs in one HTML file: numbers by size, curves, what is lost, the worst images. No server, no network."""
    from flyspeck.report.page import report as write

    path = write(runs, out=out, ground_truth=gt, protocol=protocol, images=images, title=title)
    typer.echo(f"{path}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {path.stat().st_size / 1e6:.1f} MB")
