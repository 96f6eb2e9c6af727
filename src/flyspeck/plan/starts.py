"""Which pretrained weights are on this machine: nothing is downloaded for a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torchvision.models import get_model_weights

from flyspeck.plan.choices import Machine
from flyspeck.train.start_names import licence_of_card, shipped

BACKBONE, WEIGHTS = "mobilenet_v2", "IMAGENET1K_V1"
"""Of the tiers that can be pretrained."""
TRAINED = "hituav_half"
"""A trained detector on that backbone at full width, and which tiers its backbone fits."""
FITS = ("medium", "large", "largest")


def with_starts(machine: Machine) -> Machine:
    """The machine with the start that it has; without one, which file would be one and where it belongs."""
    url = get_model_weights(BACKBONE)[WEIGHTS].url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    name = url.rpartition("/")[2]
    if (folder / name).is_file():
        return replace(machine, start=WEIGHTS)
    missing = f"{url} put into {folder} would be a start"
    found = shipped().get(TRAINED)
    if found is None:
        return replace(machine, missing=missing)
    licence = licence_of_card(found) or "see its card"
    return replace(machine, start_model=TRAINED, start_fits=FITS, start_licence=licence, missing=missing)
