"""A part whose maps are not what it promises is refused when it is built, in one line, and otherwise left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flyspeck
from flyspeck import FeatureSpec, UserError
from flyspeck.models.backbones.freezing import freeze_stages
from flyspeck.models.build import build
from flyspeck.models.dynamic.pooling import pool_dynamically
from flyspeck.models.necks.fpn import FPN
from flyspeck.models.receptive import receptive_fields


class Shrinks(nn.Module):
    """Maps of strides 4 to 32 by averaging; what it promises can be told to be something else."""

    def __init__(self, *, channels=8, strides=(4, 8, 16, 32), promise=None, forward=None):
        super().__init__()
        self.strides, self.special = strides, forward
        self.layer, self.norm = nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels)
        self.features = tuple(FeatureSpec(channels, s) for s in strides) if promise is None else promise

    def forward(self, x):
        if self.special is not None:
            return self.special(self, x)
        x = self.norm(self.layer(x))
        return [F.avg_pool2d(x, s, ceil_mode=True) for s in self.strides]


def registered(**shape) -> None:
    flyspeck.register_backbone("shrinks", lambda *, width=1.0, weights=None: Shrinks(**shape))


def specs(*strides: int, channels: int = 8) -> tuple[FeatureSpec, ...]:
    return tuple(FeatureSpec(channels, s) for s in strides)


SPECS = specs(4, 8, 16, 32)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"promise": specs(4, 8, 16, 32, channels=16)}, "map 0 is said to have 16 channels at stride 4, and has 8"),
        ({"promise": specs(4, 8, 16, 64)}, r"map 3 is said to have 8 channels at stride 64, .* 4x4 from 128x128"),
        ({"promise": specs(2, 8, 16, 32)}, r"map 0 is said to have 8 channels at stride 2, .* 16x16 from 64x64"),
        ({"promise": SPECS[:3]}, "returns 4 maps where its features are 3"),
        ({"promise": SPECS[::-1]}, "has no `features`: FeatureSpecs of its maps, finest first"),
        ({"promise": ()}, "has no `features`"),
        ({"promise": [4, 8, 16, 32]}, "has no `features`"),
        ({"forward": lambda self, x: x}, "returns no list of maps"),
        ({"forward": lambda self, x: {"a": x}}, "returns no list of maps"),
        ({"forward": lambda self, x: 1 // 0}, r"fails on a small image \(ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_backbone_that_breaks_its_word_is_refused(shape, words):
    registered(**shape)
    with pytest.raises(UserError, match=f"plugin test_contracts: the backbone 'shrinks'.*{words}"):
        build("retinanet:shrinks")
    with pytest.raises(UserError, match=words):
        build("shrinks")


@pytest.mark.parametrize("ceil", [True, False])
def test_sides_may_be_rounded_either_way(ceil):
    registered(forward=lambda self, x: [F.avg_pool2d(self.layer(x), s, ceil_mode=ceil) for s in self.strides])
    assert build("retinanet:shrinks", channels=16).features[0] == FeatureSpec(16, 4)


def test_the_look_leaves_no_trace():
    flyspeck.register_backbone("shrinks", lambda *, width=1.0, weights=None: Shrinks().train())
    torch.manual_seed(0)
    made = Shrinks()
    after = torch.rand(3)
    torch.manual_seed(0)
    backbone = build("shrinks")
    torch.testing.assert_close(torch.rand(3), after, rtol=0, atol=0)
    assert all(module.training for module in backbone.modules())
    for key, value in made.state_dict().items():
        torch.testing.assert_close(backbone.state_dict()[key], value, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_a_model_that_is_only_counted_can_be_looked_at_too():
    registered()
    with torch.device("meta"):
        assert build("retinanet:shrinks", channels=16).features[-1].stride == 64


class Keeps(nn.Module):
    """A neck that is a pyramid, or says it is."""

    def __init__(self, features, *, channels, num_extra, norm=None, fewer=0, stride=1):
        super().__init__()
        self.inner = FPN(features, channels=channels, num_extra=num_extra - fewer, norm=norm)
        self.features = tuple(FeatureSpec(f.channels, f.stride * stride) for f in self.inner.features)

    def forward(self, maps):
        return self.inner(maps)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"fewer": 1}, "must have 5 maps of 16 channels, its features are 16 at stride 4, .* 16 at stride 32$"),
        ({"stride": 2}, "map 0 is said to have 16 channels at stride 8, and has 16 channels at 64x64 from 256x256"),
    ],
)
def test_a_neck_that_breaks_its_word_is_refused(wrong, words):
    flyspeck.register_neck("keeps", lambda features, **rest: Keeps(features, **rest, **wrong))
    with pytest.raises(UserError, match=f"plugin test_contracts: the neck 'keeps'.*{words.removesuffix('$')}"):
        build("retinanet:resnet18:keeps", channels=16)


def test_a_neck_that_keeps_its_word_builds():
    flyspeck.register_neck("keeps", Keeps)
    assert [f.stride for f in build("retinanet:resnet18:keeps", channels=16).features] == [4, 8, 16, 32, 64]


def test_what_needs_stages_says_so_of_a_backbone_without():
    registered()
    backbone = build("shrinks")
    with pytest.raises(UserError, match="freezing stages needs a backbone that is a chain of stages"):
        freeze_stages(backbone, 1)  # type: ignore[arg-type]
    assert len(receptive_fields(backbone, [4, 8])) == 2  # type: ignore[arg-type]
    for name, words in (
        ("retinanet:shrinks-S1L0", "eliminating a stride needs"),
        ("ssd:shrinks", "SSD needs"),
        ("tinaface_gn_dcn:shrinks", "deformable convolution needs"),
    ):
        with pytest.raises(UserError, match=words):
            build(name)
    with pytest.raises(UserError, match="dynamic pooling needs a backbone that is a chain"):
        pool_dynamically(build("retinanet:shrinks", channels=16))  # type: ignore[arg-type]
