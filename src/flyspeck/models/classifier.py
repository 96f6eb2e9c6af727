"""A backbone as a classifier: for pre-training, and for weights that come with one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flyspeck.models.backbones.staged import StagedBackbone


class Classifier(nn.Module):
    """Global average of the last map (of all maps, where the last stage has branches), then a linear layer."""

    def __init__(self, backbone: StagedBackbone, *, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        last = list(backbone.stages)[-1]
        self.num_maps = len(backbone.branches[last]) if last in backbone.branches else 1
        self.fc = nn.Linear(sum(f.channels for f in backbone.features[-self.num_maps :]), num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, 3, H, W)`, normalised, to logits `(B, num_classes)`."""
        maps = self.backbone(x)[-self.num_maps :]
        return self.fc(torch.cat([m.mean((2, 3)) for m in maps], 1))
