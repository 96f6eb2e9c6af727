"""`evaluate`: ground truth and detections in, numbers under a named protocol out."""

from __future__ import annotations

from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.ap import average_precision, prepare, rows_of
from flyspeck.evaluate.catalogue import protocol_named
from flyspeck.evaluate.coco import coco_rows
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.miss_rate import miss_rate_rows
from flyspeck.evaluate.protocols import (
    APProtocol,
    DelegatedCOCO,
    MissRateProtocol,
    Protocol,
    VOCProtocol,
)
from flyspeck.evaluate.results import EvaluationResult


def evaluate(
    annotations: Annotations, detections: DetectionTable, protocol: Protocol | str = "flyspeck"
) -> EvaluationResult:
    """Score `detections` against `annotations` under `protocol`, a name or a value.

    The tables belong together: `detections.image_index` and `.labels` are rows of the annotation table's images and classes
    (`DetectionTable.from_list`, `.from_coco` see to it). No detections give 0; no ground truth in a bin gives -1.
    """
    if isinstance(protocol, str):
        protocol = protocol_named(protocol)
    return EvaluationResult(protocol, _rows(annotations, detections, protocol), detections.notes)


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
