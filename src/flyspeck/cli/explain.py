"""`flyspeck explain`: where one model looks, or two side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flyspeck.cli.shared_options import ALLOW_REFERENCES, DEVICE, FORMAT
from flyspeck.cli.terminal import Steps
from flyspeck.errors import UserError, counted

if TYPE_CHECKING:
    from flyspeck.data.annotations import Annotations
    from flyspeck.explain.run import Images


def explain(
    models: list[Path] = typer.Argument(
        ..., metavar="MODEL...", help="One or two run folders or weights files: teacher, then student."
    ),
    out: Path = typer.Option(
        ..., "--out", metavar="FOLDER", help="Where to write: the folder of the images and index.html."
    ),
    gt: Path | None = typer.Option(
        None, "--gt", metavar="PATH", help="Ground truth: annotations to pick dense and occluded cases from."
    ),
    format: str | None = FORMAT,
    allow_references: bool = ALLOW_REFERENCES,
    image: list[str] = typer.Option(
        [], "--image", metavar="IMAGE", help="Explain this image: a file, or a name or id in --gt; may be repeated."
    ),
    draw: int = typer.Option(
        6, "--draw", min=1, metavar="N", help="Draw at most so many images: the cases picked from --gt."
    ),
    score: float = typer.Option(
        0.3, "--score", min=0, max=1, metavar="SCORE", help="Score threshold: weaker detections are not explained."
    ),
    class_: str | None = typer.Option(
        None, "--class", metavar="NAME", help="Explain the detections of this class alone."
    ),
    limit: int = typer.Option(
        64, "--limit", min=0, metavar="N", help="At most so many images, evenly spread, for the numbers; 0: no numbers."
    ),
    max_side: int = typer.Option(
        1024, "--max-side", min=64, metavar="PX", help="Larger images are cut about the case, to so many pixels."
    ),
    device: str = DEVICE,
) -> None:
    """Show what a model looks at, or teacher and student side by side: Grad-CAM, attention of each level, similarity."""
    from flyspeck.explain.run import ExplainOptions, explain_models
    from flyspeck.explain.subjects import load_subjects

    if len(models) > 2:
        raise UserError(f"{len(models)} models", where="MODELS", fix="give one, or two to compare")
    table = _images(gt, format, image, allow_references)
    subjects = load_subjects(models, device=device)
    options = ExplainOptions(
        images=draw,
        score=score,
        label=class_,
        sample=limit if gt is not None else 0,
        max_side=max_side,
    )
    with Steps("explaining") as steps:
        page = explain_models(subjects, table, out, options, tell=steps.say)
    typer.echo(f"{page}: {page.stat().st_size / 1e6:.1f} MB")


def _images(gt: Path | None, format: str | None, wanted: list[str], allow_references: bool) -> Images:
    """The table of --gt with the rows that were asked for, or one of bare image files."""
    import numpy as np

    from flyspeck.data.images import read_size
    from flyspeck.data.readers import read_annotations
    from flyspeck.explain.run import Images

    if gt is not None:
        table = read_annotations(gt, format=format, allow_references=allow_references)
        return Images(table, tuple(_row(table, name) for name in wanted))
    if not wanted:
        raise UserError("nothing to explain", fix="give annotations with --gt, or images with --image")
    from flyspeck.data.annotations import Annotations

    sizes = np.array([read_size(name) for name in wanted], np.int64).reshape(-1, 2)
    nothing = np.zeros(0)
    table = Annotations(
        image_ids=np.arange(len(wanted)),
        file_names=tuple(str(Path(name).resolve()) for name in wanted),
        sizes=sizes,
        image_index=nothing.astype(np.int64),
        boxes=np.zeros((0, 4)),
        labels=nothing.astype(np.int64),
        area=nothing,
        ignore=nothing.astype(bool),
        crowd=nothing.astype(bool),
        box_ids=nothing.astype(np.int64),
        classes=(),
        category_ids=(),
        source=f"{counted(len(wanted), 'image')}",
    )
    return Images(table, tuple(range(len(wanted))))


def _row(table: Annotations, name: str) -> int:
    """The row of the image of this file name (whole, or its last part) or id."""
    for row, (file, number) in enumerate(zip(table.file_names, table.image_ids.tolist(), strict=True)):
        if name in (file, Path(file).name, str(number)):
            return row
    from flyspeck.errors import nearest

    names = [Path(file).name for file in table.file_names]
    raise UserError(f"no image '{name}'", where=table.source or "--gt", fix=nearest(name, names))
