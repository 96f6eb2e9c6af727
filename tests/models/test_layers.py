"""Modules that sit in two places: whoever replaces layers replaces them in both, and they stay one layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from flyspeck.models.backbones.freezing import FrozenNorm, freeze_norms
from flyspeck.models.deformable import replace_batch_norms
from flyspeck.models.dynamic.factors import FactorSwitch
from flyspeck.models.dynamic.pooling import PooledStage, _remove_stride
from flyspeck.models.layers import places


class Block(nn.Module):
    """One norm twice in one parent, and once more in another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.BatchNorm2d(4)
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), self.first)
        self.empty = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.inner(self.first(x)))

    @property
    def norms(self) -> set[nn.Module]:
        return {self.first, self.second, self.inner[1]}


def test_every_place_is_found_and_no_hole() -> None:
    block = Block()
    found = [(parent, name) for parent, name, child in places(block) if child is block.first]
    assert found == [(block, "first"), (block, "second"), (block.inner, "1")]
    assert [name for _, name, _ in places(block)] == ["first", "second", "inner", "0", "1"]


@pytest.mark.parametrize(
    ("replace", "kind"),
    [
        (freeze_norms, FrozenNorm),
        (lambda block: replace_batch_norms(block, lambda c: nn.GroupNorm(2, c)), nn.GroupNorm),
    ],
    ids=["freeze", "group norm"],
)
def test_a_norm_in_three_places_is_replaced_in_all(replace: Callable[[nn.Module], object], kind: type) -> None:
    block = Block().train()
    before = block.first
    replace(block)
    (norm,) = block.norms
    assert norm is not before
    assert isinstance(norm, kind)
    assert not [m for m in block.modules() if type(m) is nn.BatchNorm2d]
    x = torch.randn(2, 4, 5, 5)
    state = {name: value.clone() for name, value in block.state_dict().items()}
    block(x)
    for name, value in block.state_dict().items():  # nothing in it follows the batch any more
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_frozen_norms_are_counted_once() -> None:
    assert freeze_norms(Block()) == 1


def test_a_stage_keeps_a_module_that_stands_in_it_twice() -> None:
    conv = nn.Conv2d(4, 4, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(2 * torch.eye(4)[:, :, None, None])
    stage = PooledStage(nn.Sequential(conv, nn.Identity(), conv), FactorSwitch((0.5,), default=0.5), name="stage2")
    assert len(stage) == 3
    x = torch.ones(1, 4, 8, 8)
    torch.testing.assert_close(nn.Sequential.forward(stage, x), 4 * x)


def test_a_strided_pool_in_two_places_is_removed_from_both() -> None:
    pool = nn.MaxPool2d(2, 2)
    parent = nn.Sequential(pool, nn.Conv2d(1, 1, 1), pool)
    _remove_stride(parent, list(parent))
    assert not any(isinstance(m, nn.MaxPool2d) for m in parent.modules())
