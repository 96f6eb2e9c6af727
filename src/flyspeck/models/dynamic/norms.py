"""The Adaptive Normalization Module (DPNet, sec. III-B, Eq. 9): private norm layers for every down-sampling factor.

Maps that were resized by different factors have different statistics, and one norm layer averages them away. So every norm
layer gets a copy for each factor, with its own scale, shift and statistics; the convolutions stay shared.

Only what follows the resize can differ, and the factor may be chosen from the map before it: so norms before the resize are
shared by default. `everywhere` takes the paper's "all normalization layers" by its word; the copies before the resize then
learn from the same data, but a prefix that depends on the factor cannot be run once for all factors.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from flyspeck.errors import UserError
from flyspeck.models.backbones.freezing import FrozenNorm
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.factors import FactorSwitch
from flyspeck.models.dynamic.pooling import PooledStage, find_switch, staged_backbone
from flyspeck.models.layers import places

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    TorchvisionFrozenBatchNorm2d,
)


class SwitchedNorm(nn.Module):
    """One norm layer for each factor, of which the active factor's runs."""

    def __init__(self, norm: nn.Module, switch: FactorSwitch) -> None:
        super().__init__()
        self.switch = switch
        self.copies = nn.ModuleList(copy.deepcopy(norm) for _ in switch.factors)

    def forward(self, x: Tensor) -> Tensor:
        """As the norm layer that was copied."""
        return self.copies[self.switch.index](x)


def privatise_norms(detector: Detector, *, everywhere: bool = False) -> int:
    """Gives every norm layer after the resize a private copy for each factor, in place; returns how many layers.

    The detector has dynamic pooling already (`pool_dynamically`), and its switch selects the copies too. Copies start as
    the layer that they replace: pretrained weights are kept. Raises UserError where there is no norm layer, or where all
    are frozen, so that their copies would stay equal.
    """
    switch = find_switch(detector)
    found = [place for root in _parts(detector, everywhere) for place in places(root) if isinstance(place[2], NORMS)]
    if not found:
        raise UserError(
            "no norm layers to make private" + ("" if everywhere else " after the resize"),
            where="detector",
            fix="build it with norm layers in backbone, neck or head (norm: bn or gn)",
        )
    if not any(_learns(norm) for _, _, norm in found):
        raise UserError(
            "all norm layers are frozen: private copies of them would never differ",
            where="detector",
            fix="freeze only the stages before the resize (freeze_norms: false, frozen_stages: 1)",
        )
    replaced: dict[nn.Module, SwitchedNorm] = {}
    for parent, name, norm in found:
        if norm not in replaced:  # a layer that sits in two places stays one layer
            replaced[norm] = SwitchedNorm(norm, switch)
        setattr(parent, name, replaced[norm])
    return len(replaced)


def at_factor(detector: Detector, factor: float) -> Detector:
    """A copy of a dynamic detector for one factor alone: its pool is fixed, its private norms are that factor's.

    It is a plain detector: its norms fold into their convolutions (`models.fold`), and it can be exported.
    """
    twin = copy.deepcopy(detector)
    switch = find_switch(twin)
    place = switch.place(factor)
    names = [(name, m) for name, m in twin.named_modules(remove_duplicate=False) if isinstance(m, SwitchedNorm)]
    for name, norm in names:
        parent, _, child = name.rpartition(".")
        setattr(twin.get_submodule(parent), child, norm.copies[place])
    switch.factors, switch.default, switch.index = (factor,), factor, 0
    twin.router = None  # there is nothing left to choose
    return twin


def _parts(detector: Detector, everywhere: bool) -> list[nn.Module]:
    """What runs after the resize (or everything)."""
    stages = staged_backbone(detector).stages
    names = list(stages)
    first = next(i for i, name in enumerate(names) if isinstance(stages[name], PooledStage))
    return [*(stages[name] for name in names[0 if everywhere else first :]), detector.neck, detector.head]


def _learns(norm: nn.Module) -> bool:
    """Whether training changes the layer: its weights, or the statistics it keeps."""
    if any(p.requires_grad for p in norm.parameters()):
        return True
    keeps = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.track_running_stats
    return keeps and not isinstance(norm, FrozenNorm)
