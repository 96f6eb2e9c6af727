"""A batch whose images take different factors: the prefix runs once on all, the rest once on each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flyspeck.models.detector import Detector, to_detections
from flyspeck.models.dynamic.pooling import find_switch, run_rest
from flyspeck.types import Detections, ImageBatch


@torch.no_grad()
def detect_groups(
    detectors: Mapping[int, Detector],
    before: Sequence[Tensor],
    shared: Tensor,
    images: ImageBatch,
    places: Sequence[int],
) -> list[Detections]:
    """What follows `run_prefix`, once for each group of images with the same place among the factors (largest first).

    `detectors` has the detector that runs a place: the same dynamic one for all, or one of a single factor each.
    """
    height, width = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
    found: dict[int, Detections] = {}
    for place in sorted(set(places)):
        detector = detectors[place]
        switch = find_switch(detector)
        members = [i for i, p in enumerate(places) if p == place]
        rows = torch.tensor(members, device=shared.device)
        sizes = [images.sizes[i] for i in members]
        with switch.use(switch.factors[place if len(switch.factors) > 1 else 0]):
            # A group that is the whole batch needs no copy of its maps.
            whole = len(members) == len(places)
            maps = run_rest(detector, before if whole else [m[rows] for m in before], shared if whole else shared[rows])
            raw = detector.detect_from(detector.neck(maps), (height, width), sizes)
        for i, own, size in zip(members, raw, sizes, strict=True):
            found[i] = to_detections(own, size, detector.classes)
    return [found[i] for i in range(len(places))]
