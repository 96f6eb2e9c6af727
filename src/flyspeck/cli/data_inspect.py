"""`flyspeck data inspect`: what is in a data set, what ruins experiments with it, and the set repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from flyspeck.cli.shared_options import (
    ALIKE,
    ALLOW_REFERENCES,
    ALSO,
    CLASSES,
    COMPARE_IMAGES,
    ENCODING,
    FORMAT,
    FRAME_GAP,
    FRAMES,
    IMAGES,
    JSON,
    PIXELS,
    SOURCE,
    WORKERS,
    Frames,
    Pixels,
)
from flyspeck.cli.terminal import ProgressBar, list_problems
from flyspeck.cli.values import parse_names
from flyspeck.errors import UserError
from flyspeck.files import write_text


def inspect(
    source: Path = SOURCE,
    as_json: bool = JSON,
    out: Path | None = typer.Option(
        None, "--out", metavar="FOLDER", help="Where to write: the folder of images with boxes, and inspect.json."
    ),
    draw: int = typer.Option(
        12, "--draw", min=0, metavar="N", help="Draw at most so many images into --out, with their boxes."
    ),
    check_files: bool = typer.Option(
        True, "--check-files/--no-check-files", help="Look for each image and read its header."
    ),
    also: list[Path] = ALSO,
    compare_images: bool = COMPARE_IMAGES,
    alike: float = ALIKE,
    frames: Frames = FRAMES,
    frame_gap: int = FRAME_GAP,
    workers: int = WORKERS,
    fix: Path | None = typer.Option(
        None,
        "--fix",
        metavar="FOLDER",
        help="Write the set, repaired by rule, into this new folder, with a list of changes.",
    ),
    positives: bool = typer.Option(
        False, "--positives", help="Count the positives each label assigner gives to each size."
    ),
    detector: str = typer.Option(
        "faster_rcnn:mobilenet_v2",
        "--detector",
        metavar="NAME|RECIPE",
        help="Of --positives: the detector, or its recipe, whose anchors or points are meant.",
    ),
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: Pixels | None = PIXELS,
    encoding: str | None = ENCODING,
    allow_references: bool = ALLOW_REFERENCES,
) -> None:
    """Count what is in a data set, by size; say what is broken or twice, and what it asks of a detector."""
    import json

    from flyspeck.data.inspect_text import lines

    packed = sorted(source.glob("*.npz")) if source.is_dir() else [source] if source.suffix == ".npz" else []
    if packed:
        if fix is not None:
            raise UserError("a classification set is not repaired", where="--fix", fix="leave it out")
        facts = _classification(packed)
    else:
        from flyspeck.data.inspection import inspect as inspect_set

        with ProgressBar("comparing images") as progress:
            found = inspect_set(
                source,
                also=also,
                check_files=check_files,
                compare_images=compare_images,
                alike=alike,
                frames=frames,
                frame_gap=frame_gap,
                workers=workers,
                progress=progress.update,
                format=format,
                images=images,
                classes=None if classes is None else parse_names(classes, where="--classes"),
                pixels=pixels,
                encoding=encoding,
                allow_references=allow_references,
            )
        facts = found.facts
        if fix is not None:
            facts["repair"] = found.fix(fix).text().splitlines()
        if positives:
            from flyspeck.train.positives import positives_by_size

            facts["assign"] = positives_by_size(found.annotations, detector)
        if out is not None:
            from flyspeck.data.samples import write_samples

            written, faults = write_samples(found.annotations, out, draw)
            facts["samples"] = [str(path) for path in written]
            list_problems(faults, "images could not be drawn")
    text = json.dumps(facts, indent=1, allow_nan=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "inspect.json", text)
    typer.echo(text if as_json else "\n".join(lines(facts)))


def _classification(files: list[Path]) -> dict[str, Any]:
    """The facts on the files of one classification set: one report, each file's beside it."""
    from flyspeck.data.inspect import summarize_classification

    reports = {file.name: summarize_classification(file) for file in files}
    first, *_ = reports.values()
    if len(reports) == 1:
        return first
    total = sum(report["images"] for report in reports.values())
    parts = {name: {"images": report["images"], "boxes": 0} for name, report in reports.items()}
    return {**first, "source": f"npz: {', '.join(reports)}", "images": total, "files": parts}
