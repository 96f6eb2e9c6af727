"""Optimiser, parameter groups and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from flyspeck.train.sections import TrainConfig

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(model: nn.Module, *, lr: float, weight_decay: float, backbone_lr: float = 1.0) -> list[dict]:
    """Trainable parameters in four groups: backbone or not, decayed or not (norm layers and biases are not).

    Every trainable parameter is in exactly one group; each group has its own `base_lr`.
    """
    plain = {
        id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_backbone = "backbone" in name.split(".")
        decayed = id(parameter) not in plain and parameter.ndim > 1
        groups.setdefault((in_backbone, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decayed else 0.0,
            "base_lr": lr * (backbone_lr if in_backbone else 1.0),
            "lr": lr * (backbone_lr if in_backbone else 1.0),
        }
        for (in_backbone, decayed), parameters in sorted(groups.items())
    ]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser a recipe names, over `parameter_groups`."""
    groups = parameter_groups(model, lr=config.lr, weight_decay=config.weight_decay, backbone_lr=config.backbone_lr)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    # One kernel for all weights: the update of a small network is otherwise a noticeable part of its step.
    return kind(groups, lr=config.lr, betas=(config.momentum, config.beta2), fused=True)


WARMUP_STEPS = 200
"""Of a warm-up that `train.warmup_steps` does not name."""
WARMUP_SHARE = 0.1
"""Such a one, and any in a run by the clock, takes no more: it may have fewer steps."""


def lr_factor(step: int, share: float, config: TrainConfig) -> float:
    """What the learning rate is multiplied by at `step` (0-based), where `share` of the run is done: warm-up times schedule."""
    steps = WARMUP_STEPS if config.warmup_steps is None else config.warmup_steps
    warmup = min(1.0, (step + 1) / steps) if steps else 1.0
    if config.minutes is not None or config.warmup_steps is None:
        warmup = min(1.0, max(warmup, share / WARMUP_SHARE))
    if config.schedule == "cosine_restarts":
        share = share * config.epochs / config.restart_epochs % 1
    if config.schedule in ("cosine", "cosine_restarts"):
        low = config.final_lr
        return warmup * (low + (1 - low) * (1 + math.cos(math.pi * share)) / 2)
    if config.schedule == "step":
        return warmup * 0.1 ** sum(share >= m for m in config.milestones)
    return warmup


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Gives every group its own base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
