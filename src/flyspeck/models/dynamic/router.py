"""A detector that chooses its factor: the predictor reads the map before the resize, every image takes its own way (Eq. 4)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from flyspeck.models.detector import Detector, Router
from flyspeck.models.dynamic.factors import FactorSwitch
from flyspeck.models.dynamic.norms import at_factor
from flyspeck.models.dynamic.pooling import PooledStage, find_switch, run_prefix, split_stage, staged_backbone
from flyspeck.models.dynamic.predictor import Decision, FactorPredictor
from flyspeck.models.dynamic.split import detect_groups
from flyspeck.models.fold import fold_norms, probe_images
from flyspeck.types import Detections, ImageBatch


class FactorRouter(Router):
    """The DFP and the decision that follows it. `taken` counts the images of each factor, largest first."""

    def __init__(self, predictor: FactorPredictor, switch: FactorSwitch, *, decision: Decision | None = None) -> None:
        super().__init__()
        self.predictor = predictor
        self.switch = switch
        self.decision = decision or Decision()
        self.taken = np.zeros(len(switch.factors), np.int64)
        self.always: int | None = None

    @torch.no_grad()
    def probabilities(self, shared: Tensor, images: ImageBatch) -> np.ndarray:
        """`(B, m)`, Eq. 3: how likely each factor is to be good enough. What pads an image is not looked at."""
        padded = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
        if all(size == images.sizes[0] for size in images.sizes):
            parts = [_without_padding(shared, images.sizes[0], padded)]
        else:
            parts = [_without_padding(shared[i : i + 1], size, padded) for i, size in enumerate(images.sizes)]
        # A choice should not hang on eight bits.
        quiet = (
            torch.autocast(shared.device.type, enabled=False)
            if torch.is_autocast_enabled(shared.device.type)
            else nullcontext()
        )
        with quiet:
            found = [self.predictor.probabilities(part.float()) for part in parts]
        return (found[0] if len(found) == 1 else torch.cat(found)).cpu().numpy()

    def choose_always(self, place: int | None) -> None:
        """Every image takes the factor at `place`, the predictor running all the same (for timing); None ends it."""
        self.always = place

    def places(self, shared: Tensor, images: ImageBatch) -> list[int]:
        """The place of each image's factor among the detector's factors."""
        chosen = self.decision.choose(self.probabilities(shared, images))
        if self.always is not None:
            chosen = np.full(len(chosen), self.always)
        places = chosen.tolist()
        for place in places:
            self.taken[place] += 1
        return places

    def detect(self, detector: Detector, images: ImageBatch) -> list[Detections]:
        """See `Router.detect`."""
        before, shared = run_prefix(detector, images)
        places = self.places(shared, images)
        return detect_groups(dict.fromkeys(range(len(self.taken)), detector), before, shared, images, places)


def _without_padding(shared: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """The cells of a map that an image of `size` in a batch of `padded` (H, W) covers."""
    height, width = (-(-cells * s // p) for cells, s, p in zip(shared.shape[-2:], size, padded, strict=True))
    return shared[..., :height, :width]


def attach_predictor(
    detector: Detector,
    *,
    widths: Sequence[int] | None = None,
    pool: int = 4,
    decision: Decision | None = None,
) -> FactorRouter:
    """Gives a dynamic detector a predictor with random weights, in place; from then on `detect` takes each image's factor."""
    switch = find_switch(detector)
    pooled = next(s for s in staged_backbone(detector).stages.values() if isinstance(s, PooledStage))
    channels = next(m.in_channels for m in pooled.modules() if isinstance(m, torch.nn.Conv2d))
    router = FactorRouter(
        FactorPredictor(channels, len(switch.factors), widths=widths, pool=pool), switch, decision=decision
    )
    detector.router = router
    return router


class FoldedFactors(torch.nn.Module):
    """A dynamic detector for inference: for every factor a plain detector whose norms are folded, behind one shared prefix.

    Made of a copy; it detects what the dynamic detector does, with its router's choices or, without a router, at the default.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        detector = copy.deepcopy(detector)
        switch = find_switch(detector)
        self.router = detector.router if isinstance(detector.router, FactorRouter) else None
        factors = switch.factors if self.router is not None else (switch.default,)
        twins = [at_factor(detector, factor) for factor in factors]
        stages = list(staged_backbone(twins[0]).stages)
        shared = stages[: stages.index(split_stage(twins[0])) + 1]
        channels = int(detector.pixel_norm.mean.shape[1])
        device = detector.pixel_norm.mean.device
        images = probe_images(channels, 128, device=device)
        for twin in twins:
            twin.router = None
            fold_norms(twin, lambda twin=twin: twin.pyramid(images))
        for twin in twins[1:]:
            for name in shared:
                staged_backbone(twin).stages[name] = staged_backbone(twins[0]).stages[name]
        if self.router is not None:
            predictor = self.router.predictor
            fold_norms(predictor, lambda: predictor(run_prefix(twins[0], images)[1]))
        self.twins = torch.nn.ModuleList(twins)
        self.divisor = detector.divisor

    def detect(self, images: ImageBatch) -> list[Detections]:
        """Detections of each image, in the frame of the batch."""
        first: Detector = self.twins[0]  # type: ignore[assignment]
        if self.router is None:
            return first.detect(images)
        before, shared = run_prefix(first, images)
        by_place: Mapping[int, Detector] = dict(enumerate(self.twins))  # type: ignore[arg-type]
        return detect_groups(by_place, before, shared, images, self.router.places(shared, images))
