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
"""A trained detector on that backbone at full width; which tier it is, and which tiers its backbone fits."""
WHOLE, FITS = ("large",), ("medium", "large", "largest")


def with_starts(machine: Machine) -> Machine:
    """The machine with the starts that it has; without ImageNet's, which file would be one and where it belongs."""
    url = get_model_weights(BACKBONE)[WEIGHTS].url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    name = url.rpartition("/")[2]
    if (folder / name).is_file():
        machine = replace(machine, start=WEIGHTS)
    else:
        machine = replace(machine, missing=f"{url} put into {folder} would be a start")
    found = shipped().get(TRAINED)
    if found is None:
        return machine
    licence = licence_of_card(found) or "see its card"
    return replace(machine, start_model=TRAINED, start_whole=WHOLE, start_fits=FITS, start_licence=licence)
