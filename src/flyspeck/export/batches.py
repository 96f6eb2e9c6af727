"""A file that is exported runs at every batch, not only at those it was traced with: before it is kept, it shows so.

A number that tracing took for a constant (`len(tensor)` is one) makes a graph for that batch alone, or for its multiples:
the file then finds the right boxes in a folder of 664 tiles and ends in an error on the last of 665.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flyspeck.errors import UserError
from flyspeck.export.check_images import ImageSet, tiles_of
from flyspeck.export.parity import Difference, Rule, compare
from flyspeck.infer.predictor import Model
from flyspeck.types import Detections

BATCHES = (1, 2, 3, 7)
"""Windows at once: one, what it was traced with, and two that are odd and no multiples of another."""


def windows_of(images: ImageSet, description: Mapping[str, Any]) -> list[np.ndarray]:
    """As many windows (H, W, C) of one size as the largest batch holds, repeated where the images give fewer."""
    found = tiles_of(images, description, limit=max(BATCHES))
    (shape, _), *_ = Counter(window.shape for window in found).most_common(1)
    same = [window for window in found if window.shape == shape]
    return [same[i % len(same)] for i in range(max(BATCHES))]


def compare_batches(eager: Model, exported: Model, windows: Sequence[np.ndarray], rule: Rule) -> Difference:
    """The exported model at each of `BATCHES` against the detector window by window; raises UserError where it does not run."""
    reference = [found for window in windows for found in eager([window])]
    wanted: list[Detections] = []
    answers: list[Detections] = []
    for number in BATCHES:
        try:
            found = exported(list(windows[:number]))
        except UserError as error:
            raise UserError(
                f"not exported: the file does not run on {number} windows at once ({error.what})",
                where="model",
                fix="a head's decode_batch must take every batch (see flyspeck.models.batch_decoding)",
            ) from error
        if len(found) != number:
            raise UserError(f"not exported: {number} windows at once give {len(found)} results", where="model")
        wanted += reference[:number]
        answers += found
    return compare(wanted, answers, rule)
