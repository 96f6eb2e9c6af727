"""Which pretrained weights are on this machine: nothing is downloaded for a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torchvision.models import get_model_weights

from flyspeck.plan.choices import Machine

BACKBONE, WEIGHTS = "mobilenet_v2", "IMAGENET1K_V1"
"""Of the tiers that can be pretrained."""


def with_starts(machine: Machine) -> Machine:
    """The machine with the start that it has; without one, which file would be one and where it belongs."""
    url = get_model_weights(BACKBONE)[WEIGHTS].url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    name = url.rpartition("/")[2]
    if (folder / name).is_file():
        return replace(machine, start=WEIGHTS)
    return replace(machine, missing=f"{url} put into {folder} would be a start")
