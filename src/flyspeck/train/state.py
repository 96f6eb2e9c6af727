"""What a run needs to go on where it stopped: how far it is, and `state.pt`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flyspeck.errors import UserError
from flyspeck.files import UNREADABLE, renamed_keys
from flyspeck.train.checkpoint import load_run_state, save_state, save_weights
from flyspeck.train.ema import EMA

LENGTH = ("epochs", "minutes")
"""The fields of `train` that say how long a run is: they may change when it goes on."""
ENDING = (*LENGTH, "patience", "min_gain", "anneal")
"""Those, and what may end it before."""


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    epoch: int = 0
    """Epochs begun."""
    step_in_epoch: int = 0
    step: int = 0
    """Optimiser steps done."""
    best: float = -math.inf
    best_epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    seconds: float = 0.0
    """On the clock, evaluations and interrupted starts included."""
    share: float = 0.0
    """Of the schedule that is done."""
    planned: dict[str, float | None] = field(default_factory=dict)
    """`epochs` and `minutes` of the recipe."""
    end: float = 0.0
    """When the run ends: in steps, or by the clock in seconds."""
    origin: list[float] = field(default_factory=list)
    """Steps done (by the clock: seconds used) where the schedule was last begun or bent, and the share that was done then."""
    ended: bool = False
    """Whether the last evaluation is done."""
    mark: float = -math.inf
    """The evaluation that early stopping compares with."""
    stale: int = 0
    """Evaluations since, without a gain."""
    stopped: str = ""
    """Why the run ends before its time."""


def save_run(
    folder: Path,
    objective: nn.Module,
    detector: nn.Module,
    optimizer: Any,
    ema: EMA | None,
    progress: Progress,
    description: Mapping[str, Any],
    losses: Mapping[str, Any],
) -> None:
    """Writes `last.safetensors` and `state.pt`; `losses` are those of the epoch so far (`Meter.state`)."""
    kept = detector if ema is None else ema.model
    told = {**description, "epoch": progress.epoch, "metrics": progress.metrics}
    save_weights(folder / "last.safetensors", kept.state_dict(), told)
    state = {
        "description": dict(description),
        "progress": dict(vars(progress)),
        "objective": objective.state_dict(),
        "optimizer": optimizer.state_dict(),
        "losses": dict(losses),
        "ema": None if ema is None else {"model": ema.model.state_dict(), "updates": ema.updates},
    }
    save_state(folder / "state.pt", state)


def restore_run(
    path: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMA | None,
    description: Mapping[str, Any],
) -> tuple[Progress, dict[str, Any]]:
    """Loads a checkpoint into what it is given; where the run stands, and the losses of the epoch so far.

    Raises UserError where the run was started with another recipe; how long it is may differ.
    """
    state = load_run_state(path)
    before = state["description"]  # of an older version: what it did not note cannot differ
    compared = [key for key in description if key != "plugins"]  # they may change: reading the recipe warned of it
    differing = [key for key in compared if key in before and not agree(before[key], description[key])]
    old, new = (content.get("recipe", {}).get("dynamic") or {} for content in (before, description))
    if old and "stride" not in old and new.get("stride") != "replaced":
        raise UserError(
            "this run of version 0.1 replaced the backbone's stride", where=path, fix="set dynamic.stride to replaced"
        )
    if old and "scale_clip" not in old and new.get("train") == "mixed" and new.get("scale_clip"):
        raise UserError(
            "this run clipped the sum of its factors' gradients", where=path, fix="set dynamic.scale_clip to false"
        )
    if differing:
        raise UserError(
            f"this run was started with another {', '.join(differing)}",
            where=path,
            fix="resume with the recipe in the run folder, or start a new run",
        )
    try:
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        if ema is not None:
            ema.model.load_state_dict(state["ema"]["model"])
            ema.updates = int(state["ema"]["updates"])
        progress = Progress(**renamed_keys(state["progress"]))
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"not the training state of this run ({reason})", where=path, fix="restore the file, or start a new run"
        ) from None
    if not progress.planned:  # of a version that could not change it
        plan = before.get("recipe", {}).get("train", {})
        progress.planned = {"epochs": plan.get("epochs"), "minutes": plan.get("minutes")}
        progress.ended = progress.epoch >= (progress.planned["epochs"] or math.inf)
    return progress, state.get("losses", {})


def agree(before: Any, now: Any) -> bool:
    """Whether two descriptions agree in what both of them know: fields that came later cannot differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return all(agree(before[key], now[key]) for key in before.keys() & now.keys())
    return before == now
