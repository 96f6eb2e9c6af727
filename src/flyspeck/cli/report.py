"""`flyspeck report`: runs to one HTML file."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.choices import protocols
from flyspeck.cli.shared_options import ALLOW_REFERENCES
from flyspeck.cli.terminal import ProgressBar


def report(
    runs: list[Path] = typer.Argument(
        ..., metavar="RUN...", help="Run folders, or files of detections with --gt; several are compared side by side."
    ),
    out: Path = typer.Option(Path("report.html"), "--out", metavar="FILE", help="Where to write: the HTML file."),
    gt: Path | None = typer.Option(
        None, "--gt", metavar="PATH", help="Ground truth: annotations, where not the recipe's validation set."
    ),
    protocol: str | None = typer.Option(
        None,
        "--protocol",
        metavar="NAME",
        autocompletion=protocols,
        help="Protocol to score under; default: each run's own.",
    ),
    draw: int = typer.Option(40, "--draw", min=0, metavar="N", help="Draw at most so many images: the worst."),
    baselines: bool = typer.Option(
        False,
        "--baselines",
        help="Measure what needs no network too: no box, blobs of the usual sizes, the usual places and number.",
    ),
    train: Path | None = typer.Option(
        None,
        "--train",
        metavar="PATH",
        help="Annotations that --baselines is fitted to; default: the training set of the run.",
    ),
    allow_references: bool = ALLOW_REFERENCES,
    title: str = typer.Option("flyspeck report", "--title", metavar="WORDS", help="Title of the page."),
) -> None:
    """Explain runs in one HTML file: numbers by size, curves, what is lost, the worst images. No server, no network."""
    with ProgressBar("making the page"):
        from flyspeck.report.page import report as write

        path = write(
            runs,
            out=out,
            ground_truth=gt,
            protocol=protocol,
            images=draw,
            title=title,
            baselines=baselines,
            train=train,
            allow_references=allow_references,
        )
    typer.echo(f"{path}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {path.stat().st_size / 1e6:.1f} MB")
