"""`diagnose`: everything beyond the score itself, as plain values for reports and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.evaluate.ap import APArrays, average_precision, mean_of_known, prepare
from flyspeck.evaluate.borders import border_rows
from flyspeck.evaluate.catalogue import protocol_named
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.errors import KINDS, error_rows
from flyspeck.evaluate.operating import calibration, olrp_rows, recall_rows
from flyspeck.evaluate.printing import aligned, percent
from flyspeck.evaluate.protocols import APProtocol, Protocol

NOISE = "below about 12 px IoU measures label noise: one pixel off both ways turns a 6x6 box's IoU into 0.53"


@dataclass(frozen=True)
class Diagnosis:
    """Why a score is what it is, at one IoU; all lists are rows by size bin, as plain values."""

    protocol: APProtocol
    iou: float
    errors: list[dict[str, Any]]
    """Counts of the kinds of error and the AP each costs (`flyspeck.evaluate.errors`)."""
    olrp: list[dict[str, Any]]
    recall: list[dict[str, Any]]
    """Recall at fixed rates of false positives per image."""
    calibration: dict[str, Any]
    affinities: list[dict[str, Any]]
    """AP50 by IoU beside AP with boxes matched by centre distance and by NWD."""
    curves: list[dict[str, Any]]
    """`precision` at the 101 `recall` points, mean over classes, for every bin."""
    borders: list[dict[str, Any]]
    """Recall by distance to the next tile border; empty without tiles."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "protocol": self.protocol.name,
            "iou": self.iou,
            "note": NOISE,
            "errors": self.errors,
            "olrp": self.olrp,
            "recall": self.recall,
            "calibration": self.calibration,
            "affinities": self.affinities,
            "curves": self.curves,
            "borders": self.borders,
        }

    def text(self) -> str:
        """Tables for the terminal, headed by the protocol."""
        parts = [self.protocol.text, _error_text(self.errors), _gain_text(self.errors), _olrp_text(self.olrp)]
        parts += [_recall_text(self.recall), _affinity_text(self.affinities)]
        error = percent(self.calibration["error"])
        parts.append(f"expected calibration error of the scores, all sizes: {error} %")
        if self.borders:
            parts.append(_border_text(self.borders))
        return "\n\n".join(parts) + "\n"


def diagnose(
    annotations: Annotations,
    detections: DetectionTable,
    protocol: Protocol | str = "flyspeck",
    *,
    iou: float = 0.5,
    tiles: Mapping[Any, np.ndarray] | None = None,
) -> Diagnosis:
    """Errors by size, oLRP, recall at false-alarm rates, calibration, curves and AP by other affinities, at one `iou`.

    `protocol` is one of the AP family. `tiles`, (T, 4) xyxy by image id, adds recall by distance to tile borders.
    """
    chosen = protocol_named(protocol) if isinstance(protocol, str) else protocol
    if not isinstance(chosen, APProtocol):
        raise UserError(
            f"'{chosen.name}' is not diagnosed", fix="use an AP protocol, such as flyspeck or tinybenchmark_ap"
        )
    at = replace(chosen, ious=(iou,))
    inputs = prepare(annotations, detections, at)
    arrays = average_precision(inputs, at)
    everything = (annotations, detections, at)
    return Diagnosis(
        protocol=at,
        iou=iou,
        errors=error_rows(*everything, iou=iou, inputs=inputs),
        olrp=olrp_rows(*everything, iou=iou, inputs=inputs),
        recall=recall_rows(*everything, iou=iou, inputs=inputs),
        calibration=calibration(*everything, iou=iou, inputs=inputs),
        affinities=_affinity_rows(*everything, arrays),
        curves=_curve_rows(at, arrays),
        borders=border_rows(annotations, detections, tiles, at, iou=iou, inputs=inputs) if tiles else [],
    )


def _affinity_rows(
    annotations: Annotations, detections: DetectionTable, protocol: APProtocol, arrays: APArrays
) -> list[dict[str, Any]]:
    """AP of every bin by IoU, by centre distance and by NWD."""
    results = {"iou": arrays}
    for affinity in ("centre", "nwd"):
        other = replace(protocol, ious=(0.5,), affinity=affinity)
        results[affinity] = average_precision(prepare(annotations, detections, other), other)
    return [
        {"area": area.name} | {name: mean_of_known(result.precision[0, :, :, a]) for name, result in results.items()}
        for a, area in enumerate(protocol.bins)
    ]


def _curve_rows(protocol: APProtocol, arrays: APArrays) -> list[dict[str, Any]]:
    rows = []
    for a, area in enumerate(protocol.bins):
        known = (arrays.precision[0, :, :, a] > -1).all(0)
        mean = arrays.precision[0][:, known, a].mean(1).tolist() if known.any() else []
        rows.append(
            {"area": area.name, "iou": protocol.ious[0], "recall": [k / 100 for k in range(101)], "precision": mean}
        )
    return rows


def _error_text(rows: list[dict[str, Any]]) -> str:
    names = ("n_gt", "tp", *KINDS, "missed", "hidden")
    cells = [["", *names], *([row["area"], *(str(row[name]) for name in names)] for row in rows)]
    return f"errors at IoU {rows[0]['iou']:g} (hidden: under ignore regions, counts for nothing)\n{aligned(cells)}"


def _gain_text(rows: list[dict[str, Any]]) -> str:
    names = (*KINDS, "missed")
    cells = [["", "AP", *names]]
    for row in rows:
        gains = [f"+{100 * row['delta_ap'][name]:.2f}" if row["delta_ap"] else "—" for name in names]
        cells.append([row["area"], percent(row["ap"]), *gains])
    return f"AP, and what mending each kind of error would add (TIDE)\n{aligned(cells)}"


def _olrp_text(rows: list[dict[str, Any]]) -> str:
    names = {"value": "oLRP", "localisation": "1-IoU", "false_positive": "1-precision", "false_negative": "1-recall"}
    cells = [["", *names.values(), "score"]]
    cells += [[row["area"], *(percent(row[name]) for name in names), _score(row["score"])] for row in rows]
    return f"optimal LRP error (lower is better) and its parts at the best score\n{aligned(cells)}"


def _score(value: float | None) -> str:
    return "—" if value is None or value < 0 else f"{value:.3f}"


def _recall_text(rows: list[dict[str, Any]]) -> str:
    rates = list(dict.fromkeys(row["false_positives_per_image"] for row in rows))
    cells = [["", *(f"{rate:g} FP" for rate in rates)]]
    for area in dict.fromkeys(row["area"] for row in rows):
        cells.append([area, *(percent(row["value"]) for row in rows if row["area"] == area)])
    return f"recall at false positives per image\n{aligned(cells)}"


def _affinity_text(rows: list[dict[str, Any]]) -> str:
    cells = [["", "IoU", "centre", "NWD"]]
    cells += [[row["area"], percent(row["iou"]), percent(row["centre"]), percent(row["nwd"])] for row in rows]
    return f"AP with boxes matched by IoU, by centre distance (half a size) and by NWD 0.5; {NOISE}\n{aligned(cells)}"


def _border_text(rows: list[dict[str, Any]]) -> str:
    spans = list(dict.fromkeys((row["from"], row["to"]) for row in rows))
    cells = [["", *(f"{low:g}-{high:g} px" for low, high in spans)]]
    for area in dict.fromkeys(row["area"] for row in rows):
        cells.append([area, *(percent(row["value"]) for row in rows if row["area"] == area)])
    return f"recall by distance of the centre to the next tile border\n{aligned(cells)}"
