"""Dynamic pooling in a training: converts the detector as the recipe's section says, and gives it its objective and metrics.

The rows of DPNet's Table I are switches: `train: single, norms: shared` is SF, `mixed` with `shared` MF, with `private` ANM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.mixed import MixedTraining
from flyspeck.models.dynamic.norms import privatise_norms
from flyspeck.models.dynamic.pooling import find_switch, pool_dynamically
from flyspeck.models.dynamic.predictor import Decision
from flyspeck.models.dynamic.router import attach_predictor
from flyspeck.train.dynamic_config import DynamicConfig
from flyspeck.train.loop import DetectionObjective
from flyspeck.train.sections import TrainConfig
from flyspeck.types import ImageBatch, Targets

MEAN = "mean"
"""The suffix of a metric's mean over all factors: `ap50_tiny@mean`."""


def make_dynamic(detector: Detector, config: DynamicConfig | None) -> None:
    """Converts a detector in place as a recipe's section says; None leaves it as it is."""
    if config is None:
        return
    pool_dynamically(detector, config.factors, stage=config.stage, default=config.default, stride=config.stride)
    if config.norms != "shared":
        privatise_norms(detector, everywhere=config.norms == "all")


def restore_predictor(detector: Detector, described: Mapping[str, Any]) -> None:
    """Attaches the predictor that a checkpoint's description tells of, with random weights."""
    decision = Decision(described["rule"], float(described["threshold"]))
    attach_predictor(detector, widths=described["widths"], pool=int(described["pool"]), decision=decision)


class SingleFactor(nn.Module):
    """The detector's own losses at its default factor (SF in Table I)."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.switch = find_switch(detector)
        self.detector = detector

    def forward(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        with self.switch.use(self.switch.default):
            return self.detector.losses(images, targets)


def objective_of(detector: Detector, config: DynamicConfig | None) -> nn.Module:
    """What a run minimises."""
    if config is None:
        return DetectionObjective(detector)
    return MixedTraining(detector) if config.train == "mixed" else SingleFactor(detector)


def optimisation(train: TrainConfig, config: DynamicConfig | None) -> TrainConfig:
    """How the run is optimised: a mixed training, whose loss is a sum over factors, clips at as many times the bound."""
    if config is None or config.train == "single" or not config.scale_clip or train.clip_grad is None:
        return train
    return train.model_copy(update={"clip_grad": train.clip_grad * len(set(config.factors))})


def best_metric(name: str, config: DynamicConfig | None) -> str:
    """The metric that picks the best checkpoint: of a mixed training the mean over its factors."""
    return name if config is None or config.train == "single" or "@" in name else f"{name}@{MEAN}"


def variant(factor: float) -> str:
    """The name of a factor's files in a run folder: `detections-df0.33.json`."""
    return f"df{factor:g}"
