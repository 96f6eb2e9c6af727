"""Matching tiny boxes by something other than IoU.

Below about 12 px IoU measures label noise: a box of 6x6 px that is labelled one pixel off both ways has an IoU of 0.53 with
the truth, two pixels off 0.29. Two measures fall more gently:

* `centre`: 1 - |c_d - c_g| / s_g, with s_g the square root of the ground truth's area; at 0.5 the detection's centre is within
  half a size. It says nothing of the detection's own size.
* `nwd`: exp(-W / C), the normalised Gaussian Wasserstein distance (Wang et al., 2021, eq. 8 and 9), W^2 the squared distance
  of the centres plus a quarter of the squared differences of width and height, C = 12.7 px (the mean size in AI-TOD). It has
  a fixed scale in pixels: for boxes larger than C it is stricter than IoU.

Ignore regions stay measured by IoD.
"""

from __future__ import annotations

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.evaluate.matching import Pairs, overlapping_pairs

NWD_SCALE = 12.7
LEAST = 0.05  # pairs of a lower affinity are not looked for; thresholds must be above it


def nwd(boxes: np.ndarray, others: np.ndarray, scale: float = NWD_SCALE) -> np.ndarray:
    """Elementwise normalised Wasserstein distance in (0, 1], (N,), of two (N, 4) xyxy."""
    apart = ((box_algebra.center(boxes) - box_algebra.center(others)) ** 2).sum(-1)
    shape = ((boxes[:, 2:] - boxes[:, :2]) - (others[:, 2:] - others[:, :2])) / 2
    return np.exp(-np.sqrt(apart + (shape**2).sum(-1)) / scale)


def centre_affinity(boxes: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Elementwise 1 - distance of the centres / size of the ground truth, (N,); negative where farther than a size."""
    apart = np.sqrt(((box_algebra.center(boxes) - box_algebra.center(truths)) ** 2).sum(-1))
    return 1 - apart / np.maximum(box_algebra.size(truths), box_algebra.EPS)


def affinity_pairs(
    boxes: np.ndarray,
    group: np.ndarray,
    truth_boxes: np.ndarray,
    truth_group: np.ndarray,
    flagged: np.ndarray,
    overlapping: Pairs,
    affinity: str,
) -> Pairs:
    """`overlapping` with the pairs of objects measured by `affinity`, and near pairs that do not overlap added."""
    reach = box_algebra.size(truth_boxes) if affinity == "centre" else np.full(len(truth_boxes), NWD_SCALE)
    reach = reach * (1 - LEAST if affinity == "centre" else -np.log(LEAST))
    objects = np.flatnonzero(~flagged)
    middle, truth_middle = box_algebra.center(boxes), box_algebra.center(truth_boxes[objects])
    radius = reach[objects, None]
    dot = 1e-3
    near = overlapping_pairs(
        np.concatenate([middle - dot, middle + dot], 1),
        group,
        np.concatenate([truth_middle - radius, truth_middle + radius], 1),
        truth_group[objects],
    )
    detection, truth = near.detection, objects[near.truth]
    measure = centre_affinity if affinity == "centre" else nwd
    value = measure(boxes[detection], truth_boxes[truth])
    kept = overlapping.select(flagged[overlapping.truth])
    columns = (
        np.concatenate([detection, kept.detection]),
        np.concatenate([truth, kept.truth]),
        np.concatenate([value, kept.iou]),
        np.concatenate([np.zeros(len(value)), kept.iod]),
    )
    order = np.lexsort((columns[1], columns[0]))
    return Pairs(*(column[order] for column in columns))
