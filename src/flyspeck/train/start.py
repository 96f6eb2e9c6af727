"""Fine-tuning: a detector that starts from another run's weights, as far as the two have the same layers."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from flyspeck.errors import UserError
from flyspeck.models.bands import RGB, input_conv, widened
from flyspeck.models.detector import Detector
from flyspeck.models.weights import levels_from_shared
from flyspeck.train.checkpoint import load_weights, weights_file

log = logging.getLogger("flyspeck")


def take_over(detector: Detector, path: Path | str) -> int:
    """Gives `detector` every tensor of the run folder or weights file `path` that it has by name and shape; returns how many.

    What depends on the classes (the last layers) and on the images (mean and deviation) stays as it is, as the two sets have
    their own. Raises UserError unless the whole backbone fits.
    """
    file = weights_file(path)
    state, _ = load_weights(file)
    own = detector.state_dict()
    state = _widened(levels_from_shared(state, own), detector)
    fits = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith("pixel_norm.") and name in own and own[name].shape == tensor.shape
    }
    missing = next((name for name in own if name.startswith("backbone.") and name not in fits), None)
    if missing is not None:
        raise UserError(
            f"weights of another backbone: '{missing}' does not fit",
            where=file,
            fix="give model.start a run of the same model.name and width",
        )
    detector.load_state_dict(fits, strict=False)
    kept = [name for name in own if name not in fits and not name.startswith("pixel_norm.")]
    log.info(
        "started from %s: %d tensors taken over, %d left as they were (%s)", file, len(fits), len(kept), _some(kept)
    )
    return len(fits)


def _widened(state: dict[str, Tensor], detector: Detector) -> dict[str, Tensor]:
    """With the first convolution of a run on one or three bands widened to this detector's, by the rule of `models.bands`."""
    bands = detector.pixel_norm.channels
    if bands == RGB:
        return state
    name = f"backbone.{input_conv(detector.backbone)[0]}.weight"
    if name not in state or state[name].ndim != 4 or state[name].shape[1] != RGB:
        return state
    log.info("started from a run of %d bands: its first convolution is widened to %d", RGB, bands)
    return {**state, name: widened(state[name], bands)}


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "") if names else "none"
