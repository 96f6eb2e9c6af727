"""`evaluate`: ground truth and detections in, numbers under a named protocol out."""

from __future__ import annotations

from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.evaluate.ap import average_precision, prepare, rows_of
from flyspeck.evaluate.catalogue import protocol_named
from flyspeck.evaluate.checks import lone_objects
from flyspeck.evaluate.coco import coco_rows
from flyspeck.evaluate.counting import count
from flyspeck.evaluate.counts import Counts
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.miss_rate import miss_rate_rows
from flyspeck.evaluate.protocols import (
    COCO_BINS,
    APProtocol,
    DelegatedCOCO,
    MissRateProtocol,
    Protocol,
    VOCProtocol,
)
from flyspeck.evaluate.results import EvaluationResult


def evaluate(
    annotations: Annotations,
    detections: DetectionTable,
    protocol: Protocol | str = "flyspeck",
    *,
    score: float | None = None,
) -> EvaluationResult:
    """Score `detections` against `annotations` under `protocol`, a name or a value.

    The tables belong together: `detections.image_index` and `.labels` are rows of the annotation table's images and classes
    (`DetectionTable.from_list`, `.from_coco` see to it). No detections give 0; no ground truth in a bin gives -1.

    Where the protocol is an AP of COCO's kind, doubles and counts (`evaluate.counting`) stand beside it, from the score threshold
    `score` on; None is that of the best F1 on this set.
    """
    if isinstance(protocol, str):
        protocol = protocol_named(protocol)
    rows = _rows(annotations, detections, protocol)
    notes = (*detections.notes, *lone_objects(annotations, protocol))
    return EvaluationResult(protocol, rows, notes, counts=_counts(annotations, detections, protocol, score=score))


def _counts(
    annotations: Annotations, detections: DetectionTable, protocol: Protocol, *, score: float | None
) -> Counts | None:
    if isinstance(protocol, DelegatedCOCO):
        protocol = APProtocol(protocol.name, protocol.source, COCO_BINS, (0.5,), protocol.max_dets)
    if not isinstance(protocol, APProtocol):
        if score is not None:
            raise UserError(
                f"nothing is counted from a score on under '{protocol.name}'",
                where="score",
                fix="leave it out, or use an AP protocol of COCO's kind, such as flyspeck",
            )
        return None
    return count(annotations, detections, protocol, score=score)


def _rows(annotations: Annotations, detections: DetectionTable, protocol: Protocol) -> list[dict[str, Any]]:
    match protocol:
        case APProtocol():
            arrays = average_precision(prepare(annotations, detections, protocol), protocol)
            return rows_of(arrays, protocol, annotations)
        case DelegatedCOCO():
            return coco_rows(annotations, detections, protocol)
        case MissRateProtocol():
            return miss_rate_rows(annotations, detections, protocol)
        case VOCProtocol():
            from flyspeck.evaluate.voc import voc_rows

            return voc_rows(annotations, detections, protocol)
        case _:
            from flyspeck.evaluate.widerface import wider_rows

            return wider_rows(annotations, detections, protocol)
