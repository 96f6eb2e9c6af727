"""Norms as others write them: some activate too, some do more. And an input `X` of four channels to try them on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

X = torch.randn(2, 4, 12, 10, generator=torch.Generator().manual_seed(3))


def shake(model: nn.Module) -> nn.Module:
    """Norms with statistics and weights of their own."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | TorchvisionFrozenBatchNorm2d):
            tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
            for name, tensor in tensors.items():
                if name in ("running_mean", "bias"):
                    tensor.data.normal_(0, 0.3, generator=generator)
                elif name in ("running_var", "weight"):
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


class ActNorm(nn.BatchNorm2d):
    """Activates by a module, as timm's BatchNormAct2d does."""

    def __init__(self, channels: int, act: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act or nn.ReLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        torch._assert(input.ndim == 4, f"expected 4 dimensions, got {input.ndim}")
        y = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )
        return self.act(self.drop(y))


class FunctionalActNorm(nn.BatchNorm2d):
    """Activates by functions."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y * torch.sigmoid(1.5 * y) - 0.25


class ResidualNorm(nn.BatchNorm2d):
    """Uses its input twice."""

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


class BoostedNorm(nn.BatchNorm2d):
    """Normalises in another way than its statistics say."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.weight is not None
        scale = self.weight + 1
        return F.batch_norm(input, self.running_mean, self.running_var, scale, self.bias, False, 0.1, self.eps)


class BranchingNorm(nn.BatchNorm2d):
    """Cannot be traced."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y if float(y.sum()) > 1e9 else F.relu(y)
