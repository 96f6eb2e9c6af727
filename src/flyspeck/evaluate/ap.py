"""Average precision in the manner of COCO, for any bins, IoUs, maxDets and ignore rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.curves import area_under
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.matching import Matching
from flyspeck.evaluate.protocols import COCO_IOUS, MEAN_IOU, APProtocol, Bin
from flyspeck.evaluate.tables import RankedDetections, TruthTable, matcher, ranked, truth_table

# k * 0.01 as pycocotools' linspace gives it, not k / 100: ten of the 101 differ in the last bit, and a recall of exactly
# 57/100 does not reach 57 * 0.01.
RECALL_POINTS = np.arange(101) * 0.01
TINIEST = float(np.spacing(1))


@dataclass(frozen=True)
class Outcome:
    """What became of every ranked detection at one bin and threshold."""

    truth: np.ndarray
    """(N,) row of the truth table, -1 for none."""
    hit: np.ndarray
    """(N,) bool: true positive."""
    ignored: np.ndarray
    """(N,) bool: counts neither way."""
    counted: np.ndarray
    """(M,) bool: ground truths that count in this bin."""
    outside: np.ndarray
    """(N,) bool: the detection's own area is not in this bin."""


@dataclass(frozen=True)
class APInputs:
    """The sorted tables of one evaluation."""

    found: RankedDetections
    truths: TruthTable
    by_score: np.ndarray
    """(N,) order of the detections by class, then falling score over all images; ties by image, then file order."""
    class_bounds: np.ndarray
    """(K + 1,) where each class starts in `by_score`."""
    outcomes: dict[tuple[str, float], Outcome]


@dataclass(frozen=True)
class APArrays:
    """Precision at the recall points and final recall; -1 where a class has nothing to find."""

    precision: np.ndarray
    """(T, R, K, A): IoU, recall point, class, bin; at the last maxDets."""
    average: np.ndarray
    """(T, K, A): AP as the protocol averages it."""
    weights: np.ndarray
    """(K,) what each class counts in a mean over classes."""
    recall: np.ndarray
    """(T, K, A, D): with D values of maxDets."""
    counts: np.ndarray
    """(T, K, A, 5) int64: ground truths, ignored ground truths, TP, FP, ignored detections."""


def prepare(annotations: Annotations, detections: DetectionTable, protocol: APProtocol) -> APInputs:
    """Sort, cut and match everything that `protocol` asks for."""
    if protocol.drop_under_ignored is not None:
        annotations, detections = _drop_under_ignored(annotations, detections, protocol)
    per_class = protocol.max_dets_per == "class"
    found = ranked(detections, annotations, protocol.max_dets[-1], per_class=per_class)
    truths = truth_table(annotations, protocol.ignore, every_class=protocol.every_class)
    by_score = np.lexsort((-found.scores, found.label))
    bounds = np.searchsorted(found.label[by_score], np.arange(len(annotations.classes) + 1))
    known = matcher(found, truths, protocol.rule, protocol.affinity)
    unfindable = np.zeros(len(truths.ids), bool) if protocol.id_zero_matches else truths.ids == 0
    outcomes = {}
    for area in protocol.bins:
        ignored = truths.flagged | ~_within(truths.area, area)
        outside = ~_within(found.area, area)
        for iou, matching in zip(protocol.ious, known.at(ignored, protocol.ious), strict=True):
            outcomes[area.name, iou] = _outcome(matching, ignored, outside, unfindable)
    return APInputs(found, truths, by_score, bounds, outcomes)


def _within(areas: np.ndarray, area: Bin) -> np.ndarray:
    return (areas >= area.low) & (areas <= area.high)


def _outcome(matching: Matching, ignored: np.ndarray, outside: np.ndarray, unfindable: np.ndarray) -> Outcome:
    """A detection that matched nothing is ignored if its own area is outside the bin; one that matched counts anyway."""
    matched = matching.truth >= 0
    if unfindable.any():
        # The reference stores the matched annotation's id and tests it for being non-zero.
        matched[matched] = ~unfindable[matching.truth[matched]]
    hidden = matching.ignored | (~matched & outside)
    return Outcome(matching.truth, matched & ~hidden, hidden, ~ignored, outside)


def _drop_under_ignored(
    annotations: Annotations, detections: DetectionTable, protocol: APProtocol
) -> tuple[Annotations, DetectionTable]:
    """Without the boxes and detections that lie under the ignore regions of no class by the protocol's share."""
    share = protocol.drop_under_ignored
    assert share is not None
    regions = annotations.labels < 0
    if not regions.any():
        return annotations, detections
    keep_box, keep_detection = np.ones(annotations.num_boxes, bool), np.ones(len(detections), bool)
    for image in np.unique(annotations.image_index[regions]):
        rows = annotations.of_image(int(image))
        cover = annotations.boxes[rows][regions[rows]]
        keep_box[rows] = (_covered(annotations.boxes[rows], cover) < share) & ~regions[rows]
        mine = np.flatnonzero(detections.image_index == image)
        keep_detection[mine] = _covered(detections.boxes[mine], cover) < share
    return annotations.select_boxes(keep_box), detections.select(keep_detection)


def _covered(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """(N,) share of each box that lies under the union of `regions` (exact, by the grid of their edges)."""
    xs, ys = np.unique(regions[:, 0::2]), np.unique(regions[:, 1::2])
    cells = np.stack(np.meshgrid(np.arange(len(xs) - 1), np.arange(len(ys) - 1), indexing="ij"), -1).reshape(-1, 2)
    if not len(cells):
        return np.zeros(len(boxes))
    grid = np.stack([xs[cells[:, 0]], ys[cells[:, 1]], xs[cells[:, 0] + 1], ys[cells[:, 1] + 1]], 1)
    middle = box_algebra.center(grid)
    inside = ((middle[:, None, :] > regions[None, :, :2]) & (middle[:, None, :] < regions[None, :, 2:])).all(-1).any(1)
    return box_algebra.iod(boxes, grid[inside]).sum(1)


def average_precision(inputs: APInputs, protocol: APProtocol) -> APArrays:
    """Precision and recall of every class, bin and IoU."""
    classes = len(inputs.class_bounds) - 1
    shape = (len(protocol.ious), classes, len(protocol.bins))
    precision = np.full((shape[0], len(RECALL_POINTS), *shape[1:]), -1.0)
    recall = np.full((*shape, len(protocol.max_dets)), -1.0)
    average = np.full(shape, -1.0)
    counts = np.zeros((*shape, 5), np.int64)
    place = inputs.found.place[inputs.by_score]
    # Of ten thousand classes, most are neither annotated nor found here: nothing is to be counted.
    there = np.bincount(inputs.truths.label, minlength=classes) + np.diff(inputs.class_bounds)
    present = np.flatnonzero(there).tolist()
    for a, area in enumerate(protocol.bins):
        for t, iou in enumerate(protocol.ious):
            outcome = inputs.outcomes[area.name, iou]
            totals = np.bincount(inputs.truths.label[outcome.counted], minlength=classes)
            hidden = np.bincount(inputs.truths.label[~outcome.counted], minlength=classes)
            hit, ignored = outcome.hit[inputs.by_score], outcome.ignored[inputs.by_score]
            for k in present:
                rows = slice(inputs.class_bounds[k], inputs.class_bounds[k + 1])
                counted = ~ignored[rows]
                hits = hit[rows][counted]
                counts[t, k, a] = totals[k], hidden[k], hits.sum(), len(hits) - hits.sum(), len(counted) - len(hits)
                if totals[k] == 0:
                    continue
                precision[t, :, k, a] = precision_at_recall(hits, int(totals[k]))
                average[t, k, a] = precision[t, :, k, a].mean()
                if protocol.interpolation == "area":
                    found = np.cumsum(hits)
                    average[t, k, a] = area_under(found / totals[k], found / np.arange(1, len(hits) + 1))
                for d, limit in enumerate(protocol.max_dets):
                    recall[t, k, a, d] = (hits & (place[rows][counted] < limit)).sum() / totals[k]
    return APArrays(precision, average, _class_weights(inputs, protocol, classes), recall, counts)


def _class_weights(inputs: APInputs, protocol: APProtocol, classes: int) -> np.ndarray:
    if protocol.class_weights == "equal":
        return np.ones(classes)
    images = np.unique(np.stack([inputs.truths.label, inputs.truths.image]), axis=1)
    return np.bincount(images[0], minlength=classes).astype(np.float64)


def precision_at_recall(hits: np.ndarray, total: int) -> np.ndarray:
    """(R,) interpolated precision at the recall points, of `hits` (N,) bool in order of falling score."""
    found = np.cumsum(hits, dtype=np.float64)
    precision = found / (np.arange(1, len(hits) + 1) + TINIEST)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(found / total, RECALL_POINTS, side="left")
    return np.r_[envelope, 0.0][reached]


def mean_of_known(values: np.ndarray) -> float:
    """Mean over the entries that are not -1; -1 if there is none."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def rows_of(arrays: APArrays, protocol: APProtocol, annotations: Annotations) -> list[dict[str, Any]]:
    """The rows that the protocol reports."""
    report = {"tinybenchmark": _tinybenchmark_rows, "sizes": _size_rows, "coco": _coco_rows}[protocol.report]
    return [{"protocol": protocol.name, **row} for row in report(arrays, protocol, annotations)]


def _tinybenchmark_rows(arrays: APArrays, protocol: APProtocol, annotations: Annotations) -> list[dict[str, Any]]:
    overall, by_class = [], []
    for t, iou in enumerate(protocol.ious):
        for a, area in enumerate(protocol.bins):
            key = {
                "iou": iou,
                "area": area.name,
                "area_range": [area.low, area.high],
                "max_dets": protocol.max_dets[-1],
            }
            ap, ar = mean_of_known(arrays.precision[t, :, :, a]), mean_of_known(arrays.recall[t, :, a, -1])
            overall += [{"metric": "AP", **key, "value": ap}, {"metric": "AR_max_recall", **key, "value": ar}]
            if len(annotations.classes) == 1:
                continue  # it would say the same again
            del key["area_range"]
            by_class += [
                {"metric": "AP_per_class", "category_id": category, "class_name": name, **key}
                | {"value": mean_of_known(arrays.precision[t, :, k, a])}
                for k, (category, name) in enumerate(zip(annotations.category_ids, annotations.classes, strict=True))
            ]
    return overall + by_class


def _size_rows(arrays: APArrays, protocol: APProtocol, annotations: Annotations) -> list[dict[str, Any]]:
    """AP at each IoU worth a row and its mean over the IoUs, for every bin; then by class."""
    shown: list[tuple[float | str, list[int]]] = [(iou, [t]) for t, iou in enumerate(protocol.ious)]
    if protocol.ious == COCO_IOUS:
        shown = [(iou, chosen) for iou, chosen in shown if iou in (0.5, 0.75)]
    if protocol.ious == COCO_IOUS:
        shown.append((MEAN_IOU, list(range(len(COCO_IOUS)))))
    rows = []
    for iou, chosen in shown:
        for a, area in enumerate(protocol.bins):
            key = {"iou": iou, "area": area.name, "max_dets": protocol.max_dets[-1]}
            truths = int(arrays.counts[0, :, a, 0].sum())
            known = np.any(arrays.precision[chosen, 0, :, a] > -1, axis=0)
            rows.append(
                {"metric": "AP", **key, "value": mean_of_known(arrays.precision[chosen, :, :, a])} | {"n_gt": truths}
            )
            rows.append({"metric": "AR", **key, "value": mean_of_known(arrays.recall[chosen, :, a, -1])})
            rows += [
                {"metric": "AP_per_class", "category_id": category, "class_name": name, **key}
                | {"value": mean_of_known(arrays.precision[chosen, :, k, a]) if known[k] else -1.0}
                | {"n_gt": int(arrays.counts[0, k, a, 0])}
                for k, (category, name) in enumerate(zip(annotations.category_ids, annotations.classes, strict=True))
            ]
    return rows


def _coco_rows(arrays: APArrays, protocol: APProtocol, annotations: Annotations) -> list[dict[str, Any]]:
    """COCO's summary: AP over all IoUs, at .5 and .75, by bin; recall by maxDets and by bin."""
    last, bins = protocol.max_dets[-1], list(enumerate(protocol.bins))
    ap, ar, everything = arrays.average, arrays.recall, slice(None)
    chosen = [("AP", MEAN_IOU, everything)]
    chosen += [(f"AP{round(100 * iou)}", iou, protocol.ious.index(iou)) for iou in (0.5, 0.75) if iou in protocol.ious]
    rows: list[dict[str, Any]] = [
        {"metric": name, "iou": iou, "area": "all", "max_dets": last, "value": _over_classes(ap[at, :, 0], arrays)}
        for name, iou, at in chosen
    ]
    rows += [
        {"metric": f"AP_{area.name}", "iou": MEAN_IOU, "area": area.name, "max_dets": last}
        | {"value": _over_classes(ap[:, :, a], arrays)}
        for a, area in bins[1:]
    ]
    rows += [
        {"metric": f"AR{limit}", "iou": MEAN_IOU, "area": "all", "max_dets": limit}
        | {"value": _over_classes(ar[:, :, 0, d], arrays)}
        for d, limit in enumerate(protocol.max_dets)
    ]
    rows += [
        {"metric": f"AR_{area.name}", "iou": MEAN_IOU, "area": area.name, "max_dets": last}
        | {"value": _over_classes(ar[:, :, a, -1], arrays)}
        for a, area in bins[1:]
    ]
    for k, (category, name) in enumerate(zip(annotations.category_ids, annotations.classes, strict=True)):
        value = mean_of_known(ap[:, k, 0])
        rows.append(
            {"metric": "AP_per_class", "category_id": category, "class_name": name, "iou": MEAN_IOU, "value": value}
        )
    return rows


def _over_classes(values: np.ndarray, arrays: APArrays) -> float:
    """Mean of (…, K) values over the classes with ground truth, weighted as the protocol does; -1 if there are none."""
    known = values > -1
    weights = np.broadcast_to(arrays.weights, values.shape)[known]
    return float(np.average(values[known], weights=weights)) if weights.sum() > 0 else -1.0
