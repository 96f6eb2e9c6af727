"""What the predictor learns from: how well each factor does on an image (DPNet, sec. III-C, Algorithm 2, Eq. 10).

The guidance loss looks at what counts for AP: of each object the prediction that fits it best, and as many of the most
confident false alarms. It is computed from a detector's boxes and scores before suppression, so that any head takes part.

Deviations, where Algorithm 2 is silent: an object without any prediction of its class (or whose best one belongs to another
object) counts as found with the lowest score there is, at the largest box loss; otherwise a factor that finds nothing would
have no loss. Scores take the focal loss, boxes the smooth L1 loss (beta 0.11) in units of the object's size, clamped at 1.
An image without objects has the loss 0 at every factor, so that all are good enough and the cheapest is taken.

Algorithm 2 does not say when a prediction is a positive. `best`: the one that fits an object best before suppression, however
little. `matched`: suppression comes first, and a positive overlaps its object (IoU) by at least 0.5.

Eq. 10 looks at an image's mean loss, so one object counts as much alone as twenty together do. `total_labels` are another
rule: AP counts objects, so what a cheaper factor may add to the sum over an image's objects is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from flyspeck import boxes as box_algebra
from flyspeck.models.detector import Detector, Head
from flyspeck.models.dynamic.pooling import find_switch, run_prefix, run_rest
from flyspeck.models.losses import focal_loss
from flyspeck.models.postprocess import RawDetections
from flyspeck.types import ImageBatch, Targets

RATIO = 1.1
"""T of Eq. 10."""
SLACK = 1.0
"""Of `total_labels`: about half of what an object costs that is not found."""
MIN_SCORE = 1e-3
"""Predictions below it are not looked at; the score of an object that nothing was found of."""
Positives = Literal["best", "matched"]
"""Which predictions may be an object's, see the head of this file."""
_BETA = 0.11
_WORST_BOX = 1.0


def guidance_loss(
    found: RawDetections,
    target: Targets,
    *,
    positives: Positives = "best",
    foreground: float = 0.5,
    background: float = 0.4,
    nms: float = 0.5,
) -> float:
    """Algorithm 2, lines 4-13, for one image: `found` are the predictions before suppression.

    `positives` as in the head of this file: `matched` ones survive suppression at `nms` and overlap by at least `foreground`.

    Predictions that overlap an object of their class by less than `background` are negatives, unless they lie under an ignore
    region by more than `foreground` of their area.
    """
    objects, labels = target.objects, target.object_labels
    if len(objects) == 0:
        return 0.0
    if positives == "matched":
        kept = batched_nms(found.boxes.float(), found.scores.float(), found.labels, nms)
        found = RawDetections(found.boxes[kept], found.scores[kept], found.labels[kept])
    same = found.labels[:, None] == labels
    overlap = box_algebra.iou(found.boxes, objects) * same
    positive, missed = _best(overlap if positives == "best" else overlap * (overlap >= foreground))
    negative = _false_alarms(found, overlap, target, foreground=foreground, background=background, nms=nms)
    top = found.scores[negative][: len(objects)]  # k: one for each object
    right = torch.cat([found.scores[[p for p, _ in positive]], found.scores.new_full((missed,), MIN_SCORE)])
    loss = _focal(right, 1.0).sum() + _focal(top, 0.0).sum() + missed * _WORST_BOX
    for row, place in positive:
        unit = box_algebra.size(objects[place][None])
        error = (found.boxes[row] - objects[place]) / unit
        box = torch.nn.functional.smooth_l1_loss(error, torch.zeros_like(error), beta=_BETA, reduction="sum")
        loss = loss + box.clamp(max=_WORST_BOX)
    return float(loss / len(objects))


def _best(overlap: Tensor) -> tuple[list[tuple[int, int]], int]:
    """(prediction, object) of the prediction that fits each object best (lines 7-10), and the objects left without one.

    A prediction that is the best of several objects belongs to the one that it overlaps most.
    """
    if len(overlap) == 0:
        return [], overlap.shape[1]
    value, row = overlap.max(0)
    pairs: dict[int, tuple[float, int]] = {}
    for place, (v, r) in enumerate(zip(value.tolist(), row.tolist(), strict=True)):
        if v > 0 and v > pairs.get(r, (0.0, -1))[0]:
            pairs[r] = (v, place)
    return [(r, place) for r, (_, place) in pairs.items()], overlap.shape[1] - len(pairs)


def _false_alarms(
    found: RawDetections, overlap: Tensor, target: Targets, *, foreground: float, background: float, nms: float
) -> Tensor:
    """Rows of the negatives after NMS, best score first (line 5)."""
    negative = overlap.max(1).values < background if len(overlap) else torch.zeros(0, dtype=torch.bool)
    if len(target.ignored) and len(overlap):
        covered = box_algebra.iod(found.boxes, target.ignored).max(1).values
        negative = negative & (covered <= foreground)
    rows = torch.nonzero(negative).squeeze(1)
    kept = batched_nms(found.boxes[rows].float(), found.scores[rows].float(), found.labels[rows], nms)
    return rows[kept]


def _focal(scores: Tensor, wanted: float) -> Tensor:
    logits = torch.logit(scores.float().clamp(1e-6, 1 - 1e-6))
    return focal_loss(logits, torch.full_like(logits, wanted))


@contextmanager
def unsuppressed(head: Head) -> Iterator[None]:
    """Inside, `head.detect` returns its predictions before non-maximum suppression."""
    before = head.suppression
    head.suppression = replace(before, score=MIN_SCORE, iou=1.0, max_detections=1 << 30, soft=None, method="nms")
    try:
        yield
    finally:
        head.suppression = before


@torch.no_grad()
def factor_losses(
    detector: Detector,
    images: ImageBatch,
    targets: Sequence[Targets],
    *,
    guidance: bool = True,
    positives: Positives = "best",
) -> np.ndarray:
    """`(B, m)` L^(j) of each image at each factor; without `guidance` the detector's own losses. Evaluation mode."""
    switch = find_switch(detector)
    before, shared = run_prefix(detector, images)
    padded = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
    found = np.zeros((len(targets), len(switch.factors)))
    for place, factor in enumerate(switch.factors):
        with switch.use(factor):
            maps = run_rest(detector, before, shared)
            if guidance:
                with unsuppressed(detector.head):
                    raw = detector.detect_from(detector.neck(maps), padded, images.sizes)
                found[:, place] = [
                    guidance_loss(_float(r), t, positives=positives) for r, t in zip(raw, targets, strict=True)
                ]
                continue
            for i, target in enumerate(targets):
                one = ImageBatch(images.pixels[i : i + 1], images.sizes[i : i + 1])
                losses = detector.losses_from([m[i : i + 1] for m in maps], one, [target])
                found[i, place] = float(torch.stack(list(losses.values())).sum())
    return found


def _float(raw: RawDetections) -> RawDetections:
    return RawDetections(raw.boxes.float(), raw.scores.float(), raw.labels)


def factor_labels(losses: np.ndarray, *, ratio: float = RATIO) -> np.ndarray:
    """`(N, m)` bool, Eq. 10: which factors are good enough, from L^(j) `(N, m)`: at most `ratio` times the least."""
    least = losses.min(1, keepdims=True)
    return losses <= least * ratio


def total_labels(losses: np.ndarray, objects: np.ndarray, *, slack: float = SLACK) -> np.ndarray:
    """`(N, m)` bool, not in the paper: which factors add at most `slack` to the least sum of losses over the image's objects.

    `losses (N, m)` are means over the `objects (N,)` of each image. An object that one factor finds at the score 0.5 and
    another not at all adds 1.7 for its score and up to 1 for its box.
    """
    more = losses - losses.min(1, keepdims=True)
    return more * objects[:, None] <= slack
