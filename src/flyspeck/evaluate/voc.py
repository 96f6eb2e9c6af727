"""The PASCAL VOC rule and its descendants: the python devkit, mmdetection's `eval_map`, DOTA's Task 2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.curves import area_under
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import VOCProtocol
from flyspeck.evaluate.tables import RankedDetections, TruthTable, matcher, ranked, truth_table

ELEVEN_POINTS = np.arange(0.0, 1.1, 0.1)  # .30000000000000004 and the like, as the devkit has them


def voc_rows(annotations: Annotations, detections: DetectionTable, protocol: VOCProtocol) -> list[dict[str, Any]]:
    """AP of every class by the 11-point rule and by area, and their means."""
    found = ranked(detections, annotations, None)
    flags = ("crowd", "ignore", "uncertain") if protocol.difficult == "ignored" else ()
    truths = truth_table(annotations, flags)
    if protocol.single_precision:
        found = replace(found, boxes=found.boxes.astype(np.float32), sides=found.sides.astype(np.float32))
        truths = replace(truths, boxes=truths.boxes.astype(np.float32), sides=truths.sides.astype(np.float32))
    matchings = matcher(found, truths, protocol.rule).at(truths.flagged, protocol.ious)
    rows: list[dict[str, Any]] = []
    for iou, matching in zip(protocol.ious, matchings, strict=True):
        hit = (matching.truth >= 0) & ~matching.ignored
        names = protocol.classes or annotations.classes
        curves = {name: _curve(name, annotations, found, truths, hit, matching.ignored) for name in names}
        rows += _rows_at(iou, curves, protocol)
    return [{"protocol": protocol.name, **row} for row in rows]


def _rows_at(iou: float, curves: dict[str, Any], protocol: VOCProtocol) -> list[dict[str, Any]]:
    """AP of every class at one threshold, by both averages, and the means."""
    rows: list[dict[str, Any]] = []
    for metric, average in (("11point", eleven_point), ("area", area_under)):
        values = {}
        for name, (recall, precision, positives, count) in curves.items():
            values[name] = average(recall, precision) if positives or metric == "11point" else float("nan")
            row = {"metric": f"AP_{metric}", "iou": iou, "cls": name, "value": values[name]}
            row |= {"n_det": count, "n_pos": positives}
            if len(recall):
                row |= {"final_recall": float(recall[-1]), "final_precision": float(precision[-1])}
            if not positives and protocol.absent_class == "excluded":
                row["value"] = -1.0
            rows.append(row)
        rows.append({"metric": f"mAP_{metric}", "iou": iou, "value": _mean(values, curves, protocol)})
    return rows


def _curve(
    name: str,
    annotations: Annotations,
    found: RankedDetections,
    truths: TruthTable,
    hit: np.ndarray,
    ignored: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Recall and precision (N,) over the detections of a class by falling score, its ground truths, its detections."""
    if name not in annotations.classes:
        return np.zeros(0), np.zeros(0), 0, 0
    label = annotations.classes.index(name)
    rows = np.flatnonzero(found.label == label)
    rows = rows[np.lexsort((found.row[rows], -found.scores[rows]))]
    positives = int(((truths.label == label) & ~truths.flagged).sum())
    tp, fp = np.cumsum(hit[rows]), np.cumsum(~hit[rows] & ~ignored[rows])
    precision = tp / np.maximum(tp + fp, np.finfo(np.float64).eps)
    return tp / max(positives, 1), precision, positives, len(rows)


def eleven_point(recall: np.ndarray, precision: np.ndarray) -> float:
    """Mean of the largest precision at a recall of at least 0, .1, … 1."""
    total = 0.0
    for point in ELEVEN_POINTS:
        total += precision[recall >= point].max(initial=0.0) / 11.0
    return float(total)


def _mean(values: dict[str, float], curves: dict[str, Any], protocol: VOCProtocol) -> float:
    if protocol.absent_class == "zero":
        return float(np.mean(list(values.values()))) if values else -1.0
    known = [value for name, value in values.items() if curves[name][2]]
    return float(np.mean(known)) if known else -1.0
