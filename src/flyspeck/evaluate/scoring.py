"""`evaluate`: files or tables of ground truth and detections to numbers under a named protocol."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.evaluate.catalogue import customised, protocol_named
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.evaluation import evaluate as evaluate_tables
from flyspeck.evaluate.layouts import read_pair
from flyspeck.evaluate.protocols import APProtocol, DelegatedCOCO, MissRateProtocol, Protocol
from flyspeck.evaluate.results import EvaluationResult
from flyspeck.types import Detections

AnyPath = str | os.PathLike[str]


def evaluate(
    *,
    ground_truth: AnyPath | Annotations,
    detections: AnyPath | DetectionTable | Iterable[Detections],
    protocol: str | Protocol = "flyspeck",
    bins: Sequence[float] | None = None,
    max_dets: int | None = None,
    ious: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    any_score: bool = False,
    score: float | None = None,
) -> EvaluationResult:
    """Score detections against ground truth.

    Args:
        ground_truth: Annotations in any format read (a COCO json, or the protocol's own layout), or their table.
        detections: A COCO results json, a folder that holds one as `detections.json` (a run, or what `predict` wrote), the
            protocol's own layout, a table, or one `Detections` an image, in the order of the ground truth's images or with
            their ids.
        protocol: Its name, as listed by `flyspeck eval --list`, or a value of one.
        bins: Sizes in pixels that bound the bins, such as `(2, 8, 12, 20, 32)`; None: the protocol's own.
        max_dets: Detections kept per image and class; None: the protocol's own.
        ious: IoU thresholds; None: the protocol's own.
        classes: Score only these classes; None: all. For files.
        any_score: Allow scores outside [0, 1], of which only the order counts.
        score: Score threshold from which doubles and objects are counted; None: that of the best F1 on these images.

    Returns:
        The numbers: `.table()` as text, `.value(metric="AP", iou=0.5, area="tiny")`, `.rows`, `.write(path)`; `.counts` are
        doubles and errors of the count by size (`.counts.row("tiny").doubles`); `.notes` say what was odd. Shares from
        0 to 1, -1 where there is no ground truth.

    Raises:
        UserError: For files that are not there or broken, detections on images or with boxes that cannot be, a protocol that
            does not exist or has no such setting.
    """
    named = protocol_named(protocol) if isinstance(protocol, str) else protocol
    chosen = customised(
        named,
        size_edges=None if bins is None else tuple(bins),
        max_dets=max_dets,
        ious=None if ious is None else tuple(ious),
    )
    if isinstance(ground_truth, str | os.PathLike) and isinstance(detections, str | os.PathLike):
        found = _results_file(Path(detections), chosen)
        truth, table = read_pair(Path(ground_truth), found, chosen, any_score=any_score, classes=classes)
        return evaluate_tables(truth, table, chosen, score=score)
    if isinstance(ground_truth, Annotations):
        if classes is not None:
            raise UserError("classes are chosen when ground truth is read", where="classes", fix="give its file")
        truth = ground_truth
    else:
        truth = read_annotations(Path(ground_truth), classes=classes, for_evaluation=True)
    if isinstance(detections, str | os.PathLike):
        table = DetectionTable.from_coco(_results_file(Path(detections), chosen), truth, any_score=any_score)
    elif isinstance(detections, DetectionTable):
        table = detections
    else:
        table = DetectionTable.from_list(detections, truth)
    return evaluate_tables(truth, table, chosen, score=score)


def _results_file(path: Path, protocol: Protocol) -> Path:
    """A run's or a prediction's `detections.json` in place of its folder, for the protocols that read COCO results only."""
    inside = path / "detections.json"
    reads_coco = isinstance(protocol, APProtocol | MissRateProtocol | DelegatedCOCO)
    return inside if reads_coco and inside.is_file() else path
