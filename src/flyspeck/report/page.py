"""`report`: runs to one HTML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flyspeck.evaluate.baselines import measure_baselines
from flyspeck.files import local_output
from flyspeck.report.html import build_report
from flyspeck.report.runs import read_runs, training_set

AnyPath = str | os.PathLike[str]


def report(
    runs: AnyPath | Sequence[AnyPath],
    *,
    out: AnyPath = "report.html",
    ground_truth: AnyPath | None = None,
    protocol: str | None = None,
    images: int = 40,
    title: str = "flyspeck report",
    baselines: bool = False,
    train: AnyPath | None = None,
    allow_references: bool = True,
) -> Path:
    """Explain runs in one HTML file: numbers by size, curves, what is lost and why, the worst images.

    The file needs no server and no network. Nothing but json, YAML and images is read: no weights.

    Args:
        runs: One run folder, or several that are compared side by side; in place of one, a COCO results file of any program, or
            a folder that `predict` wrote, with `ground_truth`.
        out: The file to write.
        ground_truth: Annotations, where they are not the recipe's validation set.
        protocol: Measure anew under this protocol; None: the runs' own.
        images: How many of the worst images to show.
        title: The page's title.
        baselines: Measure on the first run's images what needs no network: no box, blobs, the usual places and number.
        train: Annotations that they are fitted to; None: the first run's training set.
        allow_references: The annotations may name images outside of their folder; False refuses them.

    Returns:
        The file.

    Raises:
        UserError: For a folder that is not a finished run, and for runs that were not measured on the same images.
    """
    folders = [Path(runs)] if isinstance(runs, str | os.PathLike) else [Path(run) for run in runs]
    gt = None if ground_truth is None else Path(ground_truth)
    read = read_runs(folders, gt=gt, protocol=protocol, allow_references=allow_references)
    if baselines:
        first = read[0]
        fitted = training_set(None if train is None else Path(train), folders[0], first.annotations.classes)
        measured = measure_baselines(fitted, first.annotations, first.evaluation.protocol)
        read[0] = replace(first, baselines=measured)
    return build_report(read, local_output(out), images=images, title=title)
