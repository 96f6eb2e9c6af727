"""By which mean and deviation a run normalises pixels: those that its weights were trained with, ImageNet's, or its own set's.

What is frozen cannot adapt, and what is pretrained begins where it was: both want the pixels that they have learnt from. Weights
say so themselves where this package has written them (`flyspeck pretrain`, a run); those of torchvision and timm are known.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from flyspeck.errors import UserError
from flyspeck.models.backbones.transformers_models import PIXELS
from flyspeck.models.names import find_backbone, parse_name, split_backbone
from flyspeck.models.start.snapshot import is_snapshot
from flyspeck.models.start.torchvision_names import DETECTORS, is_torchvision, parse
from flyspeck.models.weights import is_file_name
from flyspeck.models.zoo import imagenet_pixels
from flyspeck.train.checkpoint import KEY, load_run_state
from flyspeck.train.model_config import ModelConfig
from flyspeck.train.start_names import find_start

log = logging.getLogger("flyspeck")
Pixels = tuple[Sequence[float], Sequence[float]]
"""Mean and deviation of each channel, in units of full scale."""


def settled_pixels(model: ModelConfig, own: Pixels, *, bits: int = 8) -> tuple[ModelConfig, Pixels]:
    """The model with its `pixel_norm` filled in, and the statistics that this means; `own` are the training set's, of images of
    `bits`.

    Statistics of three channels become one for grey images: its value is an average of the three, and so are its mean and
    (as if they went together) its deviation.

    Raises:
        UserError: Where weights are asked for and there are none, or where they do not fit the images' channels.
    """
    word = model.pixel_norm or _default(model, channels=len(own[0]), bits=bits)
    found = own if word == "data" else imagenet_pixels() if word == "imagenet" else _of_weights(model)
    if word != "data":
        found = _for_channels(found, len(own[0]))
        log.info("pixels are normalised by %s (%s), the training set's are %s", _WORDS[word], _said(found), _said(own))
    return model.model_copy(update={"pixel_norm": word}), found


def pixels_of_older_run(model: ModelConfig, state: Path) -> ModelConfig:
    """The model of a run to be resumed from `state`: what nobody said is `data` where the run is older than the choice."""
    if model.pixel_norm is None and "pixel_norm" not in load_run_state(state)["description"].get("model", {}):
        return model.model_copy(update={"pixel_norm": "data"})
    return model


_WORDS = {"imagenet": "ImageNet's mean and deviation", "weights": "the weights' mean and deviation"}


def _default(model: ModelConfig, *, channels: int, bits: int) -> str:
    """`weights` where there are any and the images are like those that they have seen, else `data`.

    What is frozen at random has seen nothing; the values of 16 bits, or of a range, have nothing to do with a photograph's.
    """
    loaded = model.weights is not None or model.start is not None
    return "weights" if loaded and channels in (1, 3) and bits == 8 else "data"


def _of_weights(model: ModelConfig) -> Pixels:
    if model.start is not None:  # which replaces what `weights` loads
        if is_torchvision(model.start):
            return DETECTORS[parse(model.start)[0]].pixels
        if is_snapshot(model.start):
            return PIXELS
        return _stored(find_start(model.start).file) or _published(model, model.start)
    if model.weights is None:
        raise UserError(
            "there are no weights to take mean and deviation from",
            where="model.pixel_norm",
            fix="give model.weights or model.start, or choose data or imagenet",
        )
    return (_stored(Path(model.weights)) if is_file_name(model.weights) else None) or _published(model, None)


def _published(model: ModelConfig, file: str | None) -> Pixels:
    """Those of the backbone's published weights, also for a file that does not say."""
    backbone = split_backbone(parse_name(model.name).backbone)[0]
    source = file or (model.weights if model.weights is not None and is_file_name(model.weights) else None)
    if source is not None:
        log.warning(
            "%s does not say by what its pixels were normalised: taken as %s's published weights were", source, backbone
        )
    return find_backbone(backbone).pixels()


def _stored(path: Path) -> Pixels | None:
    """What a file that `flyspeck pretrain` or a run has written says; None where it does not say, or cannot be read here."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="np") as file:
            about: Mapping[str, str] = file.metadata() or {}
    except (OSError, SafetensorError):
        return None  # whoever loads the weights says what is wrong with the file
    try:
        said: Any = json.loads(about[KEY]) if KEY in about else about
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, Mapping):
        return None
    mean, std = (_numbers(said.get(name)) for name in ("mean", "std"))
    return (mean, std) if mean and std and len(mean) == len(std) else None


def _numbers(said: Any) -> list[float]:
    """A list of numbers, or text with blanks between them (`pretrain`'s)."""
    try:
        return [float(value) for value in (said.split() if isinstance(said, str) else said or [])]
    except (TypeError, ValueError):
        return []


def _for_channels(found: Pixels, channels: int) -> Pixels:
    mean, std = ([float(value) for value in values] for values in found)
    if len(mean) == channels:
        return mean, std
    if channels == 1:
        return [sum(mean) / len(mean)], [sum(std) / len(std)]
    if len(mean) == 1:
        return mean * channels, std * channels
    raise UserError(
        f"mean and deviation of {len(mean)} channels for images of {channels}",
        where="model.pixel_norm",
        fix="set it to data, or data.channels to 1 or 3",
    )


def _said(found: Pixels) -> str:
    return ", ".join(f"{mean:.3f} ± {std:.3f}" for mean, std in zip(*found, strict=True))
