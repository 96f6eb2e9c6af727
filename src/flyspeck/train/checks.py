"""What is looked at before the first step, so that nothing stops a run that has already cost something."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.band_choice import Survey
from flyspeck.data.headers import ImageHeader, read_header
from flyspeck.data.images import read_image
from flyspeck.errors import UserError, counted

log = logging.getLogger("flyspeck")

NONE, HEADERS, FULL = "none", "headers", "full"
FEW_STEPS = 300
"""Optimiser steps below which a training from random weights has hardly begun; three times as many are named."""
LOOKED_AT = 256
"""Images whose headers are read all the same where none are checked."""


def few_steps(epochs: int, steps_per_epoch: int) -> str | None:
    """A line where a training is over before it has learnt much; None where it is long enough."""
    steps = epochs * steps_per_epoch
    if steps >= FEW_STEPS:
        return None
    wanted = -(-3 * FEW_STEPS // max(1, steps_per_epoch))
    return (
        f"{steps} steps in all ({counted(epochs, 'epoch')} of {steps_per_epoch}) are few for a detector: "
        f"train.epochs {wanted} would be"
        f" {wanted * steps_per_epoch}, or give train.minutes; `flyspeck init` plans a training for your minutes"
    )


def judge_problems(allowed_share: float, tables: Sequence[Annotations]) -> None:
    """Broken entries stop a run, unless the recipe allows their share; then they are counted and the first listed."""
    for table in tables:
        for note in table.notes:
            log.warning("%s: %s", table.source, note)
        if not table.problems:
            continue
        broken, shown = len(table.problems), "; ".join(table.problems[:3])
        share = broken / (broken + table.num_boxes)
        if share > allowed_share:
            raise UserError(
                f"{broken} broken entries ({share:.2%} of all, {allowed_share:.2%} allowed): {shown}",
                where=table.source,
                fix="mend them (`flyspeck data inspect` lists them all), or raise data.max_broken_share",
            )
        log.warning("%s: %d broken entries left out: %s", table.source, broken, shown)


def usable_images(table: Annotations, *, how: str = HEADERS, allowed_share: float = 0.0) -> tuple[Annotations, Survey]:
    """`table` without the images that are not there, cannot be read, or are not of the stated size; and the headers of the rest.

    `how`: `none` looks at the headers of some images only and leaves nothing out, `headers` opens each file, `full` decodes it.
    Raises UserError where more than `allowed_share` of the images fail; those that may are counted, and the first named.
    """
    faults, headers = image_faults(table, how=how)
    survey = Survey(table.source, headers)
    if not faults or how == NONE:
        return table, survey
    share, first = len(faults) / len(table), next(iter(faults.values()))
    said = f"{len(faults)} of {len(table)} images cannot be used; the first: {first}"
    if share > allowed_share:
        raise UserError(
            f"{said} ({share:.2%}, {allowed_share:.2%} allowed)",
            where=table.source,
            fix="put them in place (`flyspeck data inspect` lists them), or raise data.max_broken_share",
        )
    log.warning("%s: %s; they are left out, with their objects", table.source, said)
    keep = np.ones(len(table), dtype=bool)
    keep[list(faults)] = False
    return table.select_images(keep), survey


def image_faults(table: Annotations, *, how: str = HEADERS) -> tuple[dict[int, str], dict[str, ImageHeader]]:
    """What is wrong with which row of `table`, and the headers of the other images by their paths; `how` as `usable_images`."""
    rows = range(len(table))
    if how == NONE:
        rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), LOOKED_AT)).round().astype(np.int64)).tolist()
    headers: dict[str, ImageHeader] = {}
    faults: dict[int, str] = {}
    for row in rows:
        found = _header_or_fault(table, row, how == FULL)
        if isinstance(found, str):
            faults[row] = found
        else:
            headers[str(table.path(row))] = found
    return faults, headers


def _header_or_fault(table: Annotations, row: int, whole: bool) -> ImageHeader | str:
    """The header of an image, or what is wrong with it."""
    path = table.path(row)
    try:
        header = read_header(path)
        height, width = read_image(path).shape[:2] if whole else header.size
    except UserError as error:
        return str(error)
    stated = tuple(int(side) for side in table.sizes[row])
    if min(stated) > 0 and stated != (height, width):
        return f"{path}: {width} x {height} px where the annotations say {stated[1]} x {stated[0]}"
    return header
