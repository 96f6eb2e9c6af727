"""`flyspeck data errors`: the annotations that are likely wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from flyspeck.cli.shared_options import (
    ALLOW_REFERENCES,
    CLASSES,
    DEVICE,
    ENCODING,
    FORMAT,
    IMAGES,
    JSON,
    PIXELS,
    Pixels,
)
from flyspeck.cli.terminal import ProgressBar, list_problems
from flyspeck.cli.values import parse_names


def errors(
    runs: list[Path] = typer.Argument(
        ...,
        metavar="RUN",
        help="The detector: a run folder, a weights file or an exported file. Of several, each image is judged by the first that"
        " was not trained on it.",
    ),
    source: Path = typer.Argument(..., metavar="SET", help="Annotations: a file or folder in any of the formats read."),
    out: Path = typer.Option(
        ..., "--out", metavar="FOLDER", help="Where to write: the folder of errors.csv, errors.json and index.html."
    ),
    to: str | None = typer.Option(
        None,
        "--to",
        metavar="A,B,...",
        help="Format to write pre-annotations in, or several: cvat, fiftyone, label-studio, labelme, voc.",
    ),
    chance: float = typer.Option(
        0.1, "--chance", min=0, max=1, metavar="SHARE", help="Suspects that are less likely errors are left out."
    ),
    folds: int = typer.Option(
        0,
        "--folds",
        min=0,
        metavar="N",
        help="Folds of SET, where RUN was trained on it: its recipe is trained on each, and judges the part not seen.",
    ),
    in_sample: bool = typer.Option(
        False, "--in-sample", help="Accept a RUN that was trained on SET, though it knows its errors by heart."
    ),
    draw: int = typer.Option(
        120, "--draw", min=0, metavar="N", help="Draw at most so many images: crops of the likeliest suspects."
    ),
    as_json: bool = JSON,
    device: str = DEVICE,
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: Pixels | None = PIXELS,
    encoding: str | None = ENCODING,
    allow_references: bool = ALLOW_REFERENCES,
) -> None:
    """Rank the annotations of SET that are likely missing, superfluous, of another class or badly placed, by RUN's opinion."""
    import json

    from flyspeck.data.readers import read_annotations
    from flyspeck.files import finite
    from flyspeck.label_errors.preannotations import check_formats
    from flyspeck.label_errors.run import find_label_errors

    formats = [] if to is None else parse_names(to, where="--to")
    check_formats(formats)
    table = read_annotations(
        source,
        format=format,
        images=images,
        classes=None if classes is None else parse_names(classes, where="--classes"),
        pixels=pixels,
        encoding=encoding,
        allow_references=allow_references,
    )
    for note in table.notes:
        print(f"note: {note}", file=sys.stderr)
    list_problems(table.problems, "broken entries left out")
    with ProgressBar("looking") as progress:
        found = find_label_errors(
            runs,
            annotations=table,
            out=out,
            formats=formats,
            least_chance=chance,
            folds=folds,
            in_sample=in_sample,
            draw=draw,
            device=device,
            say=lambda line: print(line, file=sys.stderr),
            warn=lambda line: print(f"note: {line}", file=sys.stderr),
            progress=progress.update,
        )
    if as_json:
        typer.echo(json.dumps(finite(found.facts()), indent=1, allow_nan=False))
        return
    typer.echo(found.text())
    typer.echo(f"-> {', '.join(str(file) for file in found.files)}")
