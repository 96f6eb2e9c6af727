"""What a run says of the weights that it started from: whether they are there, before anything is computed; then every tensor."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torchvision.models import get_model_weights

from flyspeck.errors import UserError
from flyspeck.files import write_json
from flyspeck.models.build import build_backbone
from flyspeck.models.detector import Detector
from flyspeck.models.names import parse_name
from flyspeck.models.weights import is_file_name, read_weights
from flyspeck.train.checkpoint import load_weights
from flyspeck.train.model_config import ModelConfig
from flyspeck.train.start_names import Start, find_start

log = logging.getLogger("flyspeck")
FILE = "start.json"
PUBLISHED = "IMAGENET1K_V1"


def check_at_hand(model: ModelConfig) -> None:
    """Raises UserError for weights that are not there, and names the file to bring, before anything else is done.

    Published weights of a backbone are fetched here, by the library that has them, if its cache does not hold them.
    """
    if model.start is not None:
        find_start(model.start)
    if model.weights is None:
        return
    if is_file_name(model.weights):
        read_weights(model.weights)
        return
    state = torch.get_rng_state()  # a backbone that is built for its weights alone draws numbers
    build_backbone(
        parse_name(model.name).backbone, width=model.width, weights=model.weights, **model.backbone.model_dump()
    )
    torch.set_rng_state(state)


def starts_of(model: ModelConfig, detector: Detector) -> dict[str, Any]:
    """For a checkpoint's description: what it started from, and the licences of that. Nothing at random."""
    names = [name for name in (model.weights, model.start) if name is not None]
    noted = [{"source": name, "licence": one.licence} for name, one in zip(names, detector.starts, strict=True)]
    if model.start is not None:
        noted += _passed_on(find_start(model.start))
    return {"starts": noted} if noted else {}


def _passed_on(start: Start) -> list[dict[str, Any]]:
    """What a start itself started from: its licences hold on."""
    return [] if start.is_foreign else list(load_weights(start.file)[1].get("starts", ()))


def write_starts(folder: Path, detector: Detector) -> None:
    """`start.json` of a run folder: every tensor of every source, and what became of it."""
    if detector.starts:
        write_json(folder / FILE, [report.to_dict() for report in detector.starts])
        log.info("what became of every tensor is in %s", folder / FILE)


def unused_weights(model: ModelConfig) -> str | None:
    """A line where the backbone begins at random and published weights of it lie on this machine; nothing is downloaded."""
    if model.weights is not None or model.start is not None or model.width != 1:
        return None
    try:
        published = get_model_weights(parse_name(model.name).backbone)[PUBLISHED]
    except (ValueError, KeyError, UserError):  # not one of torchvision's
        return None
    file = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]
    if not file.is_file():
        return None
    return f"the backbone begins at random; model.weights {PUBLISHED} is on this machine, and worth points in short trainings"
