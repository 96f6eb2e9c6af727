"""`report`: runs to one HTML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flyspeck.files import local_output
from flyspeck.report.html import build_report
from flyspeck.report.runs import read_runs

AnyPath = str | os.PathLike[str]


def report(
    runs: AnyPath | Sequence[AnyPath],
    *,
    out: AnyPath = "report.html",
    ground_truth: AnyPath | None = None,
    protocol: str | None = None,
    images: int = 40,
    title: str = "flyspeck report",
) -> Path:
    """Explain runs in one HTML file: numbers by size, curves, what is lost and why, the worst images.

    The file needs no server and no network. Nothing but json, YAML and images is read: no weights.

    Args:
        runs: One run folder, or several that are compared side by side.
        out: The file to write.
        ground_truth: Annotations, where they are not the recipe's validation set.
        protocol: Measure anew under this protocol; None: the runs' own.
        images: How many of the worst images to show.
        title: The page's title.

    Returns:
        The file.

    Raises:
        UserError: For a folder that is not a finished run, and for runs that were not measured on the same images.
    """
    folders = [Path(runs)] if isinstance(runs, str | os.PathLike) else [Path(run) for run in runs]
    read = read_runs(folders, gt=None if ground_truth is None else Path(ground_truth), protocol=protocol)
    return build_report(read, local_output(out), images=images, title=title)
