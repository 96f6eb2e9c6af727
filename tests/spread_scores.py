"""Scores of random weights, spread out as a trained detector's are: else nothing is found, or everything ties."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from flyspeck.models.detector import Detector
from flyspeck.types import ImageBatch


@torch.no_grad()
def spread_scores(detector: Detector) -> None:
    """Scales every layer that gives scores so that logits deviate by 1.5: no two scores are equal, none is saturated."""

    def scale(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        if layer not in done:
            done.add(layer)
            layer.weight.mul_(1.5 / output.std().clamp(min=1e-6))
        return output

    done: set[nn.Module] = set()
    words = ("class_logits", "class_out", "objectness", "class_embed", "enc_score_head")
    named = dict(detector.named_modules()).items()
    layers = [m for key, m in named if isinstance(m, nn.Conv2d | nn.Linear) and any(w in key for w in words)]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 300, 300), np.uint8))
    detector.detect(ImageBatch(pixels, ((300, 300),)))
    for hook in hooks:
        hook.remove()
