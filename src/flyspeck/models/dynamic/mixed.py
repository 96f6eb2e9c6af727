"""Mixed down-sampling factor training (DPNet, sec. III-A, Algorithm 1): one batch at every factor, one sum of losses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.pooling import find_switch, run_prefix, run_rest
from flyspeck.types import ImageBatch, Targets


def mixed_losses(detector: Detector, images: ImageBatch, targets: Sequence[Targets]) -> dict[float, dict[str, Tensor]]:
    """The losses of one batch at every factor (mixed training, Eq. 1); the prefix runs once. Their sum is Eq. 2."""
    switch = find_switch(detector)
    before, shared = run_prefix(detector, images)
    found = {}
    for factor in switch.factors:
        with switch.use(factor):
            found[factor] = detector.losses_from(run_rest(detector, before, shared), images, targets)
    return found
