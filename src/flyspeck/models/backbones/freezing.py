"""Freezing: what of a backbone does not learn. Applied from outside, so that no backbone knows about it.

The usual fine-tuning of ImageNet weights with two images a batch freezes the stem and stage 1 entirely and every
BatchNorm (statistics and affine): `freeze_stages(backbone, 1)` and `freeze_norms(backbone)`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from flyspeck.errors import UserError
from flyspeck.models.backbones.staged import StagedBackbone, need_stages
from flyspeck.models.layers import places


class FrozenNorm(nn.Module):
    """Marks a norm layer that uses its stored statistics in training too."""


class FrozenBatchNorm2d(FrozenNorm, nn.BatchNorm2d):
    """A BatchNorm that always uses its stored statistics, in training too; its state dict is a BatchNorm2d's."""

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape: `(x - running_mean) / sqrt(running_var + eps) * weight + bias`."""
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


@cache
def frozen_kind(kind: type[nn.BatchNorm2d]) -> type[nn.BatchNorm2d]:
    """A subclass of `kind`, a norm that does more than to normalise (it activates, say), which is never in training mode."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return super(frozen, self).train(False)  # type: ignore[misc]

    def reduce(self: nn.Module, _: int) -> tuple[Any, ...]:
        return _revived, (kind,), self.__dict__.copy()  # a class that is made here has no name to be found by

    frozen = type(f"Frozen{kind.__name__}", (FrozenNorm, kind), {"train": train, "__reduce_ex__": reduce})
    return frozen


def _revived(kind: type[nn.BatchNorm2d]) -> nn.Module:
    made = frozen_kind(kind)
    return made.__new__(made)


def freeze_norms(module: nn.Module) -> int:
    """Freezes every BatchNorm2d inside `module`, in place: its statistics, weight and bias.

    A subclass that does more than to normalise goes on doing it (timm's `BatchNormAct2d` keeps its activation). Returns how
    many. `module` itself must not be a BatchNorm2d (it could not be replaced from here).
    """
    if isinstance(module, nn.BatchNorm2d):
        raise ValueError("freeze_norms replaces the norms inside a module; give the module that holds the norm")
    made: dict[nn.Module, nn.BatchNorm2d] = {}
    for parent, name, child in list(places(module)):
        if isinstance(child, nn.BatchNorm2d):
            if child not in made:  # a norm that sits in two places stays one norm
                made[child] = child if isinstance(child, FrozenNorm) else _frozen(child)
            for parameter in made[child].parameters(recurse=False):
                parameter.requires_grad_(False)
            setattr(parent, name, made[child])
    return len(made)


def _frozen(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    if norm.running_mean is None:
        raise ValueError("a BatchNorm2d without running statistics cannot be frozen")
    if type(norm).forward is not nn.BatchNorm2d.forward:
        norm.__class__ = frozen_kind(type(norm))  # its parameters and what it does stay: only the mode is settled
        return norm.eval()
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps, affine=norm.affine, device=norm.running_mean.device)
    frozen.weight, frozen.bias = norm.weight, norm.bias  # shared, not copied: an optimizer may hold them already
    frozen.running_mean, frozen.running_var = norm.running_mean, norm.running_var
    frozen.num_batches_tracked = norm.num_batches_tracked
    return frozen


def freeze_stages(backbone: StagedBackbone, number: int) -> None:
    """Freezes the stem and stages 1..`number` in place (0: the stem alone; -1: nothing), their BatchNorms included."""
    backbone = need_stages(backbone, "freezing stages", where="frozen_stages")
    names = list(backbone.stages)
    if number >= 0 and names[0] in backbone.branches:
        raise UserError(
            "the backbone gives all its maps at once: it has no stages to freeze",
            where="frozen_stages",
            fix="give -1 (nothing), and freeze_norms if its norms should stay",
        )
    if not -1 <= number < len(names):
        raise UserError(
            f"cannot freeze {number} stages: the backbone has stages 0 (stem) to {len(names) - 1}",
            where="frozen_stages",
            fix=f"give a number from -1 (nothing) to {len(names) - 1}",
        )
    for name in names[: number + 1]:
        for parameter in backbone.stages[name].parameters():
            parameter.requires_grad_(False)
        freeze_norms(backbone.stages[name])
