"""Whether what several runs differ by may be chance: paired on the same images, with intervals and p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flyspeck.evaluate import protocol_named
from flyspeck.evaluate.bootstrap import compare
from flyspeck.evaluate.protocols import APProtocol
from flyspeck.report import tables
from flyspeck.report.runs import RunReport

SAMPLES = 500
"""Resamples of the images: the least p-value is 2 of 501."""


def differences(runs: Sequence[RunReport]) -> str:
    """A table for each further run: AP50 by size, the first run's less its own; nothing for a single run, or a single image.

    Under the first run's protocol where that is an AP of COCO's kind at IoU 0.5, else under `flyspeck`.
    """
    if len(runs) < 2 or len(runs[0].annotations) < 2:
        return ""
    first = runs[0]
    protocol = first.evaluation.protocol
    if not isinstance(protocol, APProtocol) or 0.5 not in protocol.ious:
        protocol = protocol_named("flyspeck")
    assert isinstance(protocol, APProtocol)
    at = replace(protocol, ious=(0.5,))
    parts = []
    for other in runs[1:]:
        rows = compare(first.annotations, first.detections, other.detections, at, samples=SAMPLES)
        cells = []
        for row in rows:
            known = row["difference"] is not None
            points = [f"{100 * row[name]:+.1f}" if known else "–" for name in ("difference", "low", "high")]
            p_value = f"{row['p_value']:.3f}" if known else "–"
            aps = [tables.percent(row[name]) for name in ("value", "other")]
            cells.append([row["area"], *aps, points[0], f"{points[1]} to {points[2]}" if known else "–", p_value])
        head = ["", f"AP50 {first.name}", f"AP50 {other.name}", "difference", "95 % interval", "p-value"]
        caption = (
            f"{first.name} less {other.name}, AP at IoU 0.5 in points under {protocol.name}: paired by {SAMPLES} resamples of "
            "the images; a difference whose interval holds 0 may be chance"
        )
        parts.append(tables.table(head, cells, caption=caption))
    return "".join(parts)
