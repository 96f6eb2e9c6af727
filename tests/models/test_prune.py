"""Pruning by norm scale: the channels that go are the least, what is left computes the same, and nobody else's are touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.detector import Detector
from flyspeck.models.fold import fold_norms, probe_images
from flyspeck.models.prune import find_chains, narrow_channels, prune_channels
from flyspeck.train.build import build_detector
from flyspeck.train.config import ModelConfig
from flyspeck.types import ImageBatch

PROBE = probe_images(1, 64)


def detector(name: str, **fields: object) -> Detector:
    """With norms as a trained detector has them: scales, shifts and statistics that differ."""
    torch.manual_seed(0)
    model = ModelConfig(name=name, channels=8, width=0.25, **fields)  # type: ignore[arg-type]
    found = build_detector(model, classes=("a", "b"), mean=[0.5], std=[0.25], load=False).eval()
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return found


@torch.no_grad()
def outputs(model: nn.Module) -> list[Tensor]:
    assert isinstance(model, Detector)
    maps = model.pyramid(PROBE)
    return [*maps, *(t for t in _flat(model.head.dense_part()(maps)))]


def _flat(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, list | tuple)
        else vars(value).values()
    )
    return [t for part in parts for t in _flat(part)]


NAMES = [
    ("retinanet:mobilenet_v2", {"norm": "bn", "head": {"depth": 1}}),
    ("faster_rcnn:shufflenet_v2", {}),
    ("fcos:resnet18", {"head": {"depth": 1}}),
]


@pytest.mark.parametrize(("name", "fields"), NAMES, ids=[n for n, _ in NAMES])
def test_what_is_left_is_the_detector_with_the_least_channels_at_nought(name: str, fields: dict) -> None:
    whole = detector(name, **fields)
    pruned, quiet = copy.deepcopy(whole), copy.deepcopy(whole)
    done = prune_channels(pruned, outputs, share=0.4, multiple=2)
    assert done.kept
    chains = find_chains(whole)
    gone = 0
    for layer, width in done.kept.items():
        norms = [quiet.get_submodule(n) for n in chains[layer].norms]
        scale = torch.stack([n.weight.detach().abs().log() for n in norms]).mean(0)  # type: ignore[operator]
        least = scale.argsort()[: len(scale) - width]
        gone += len(least)
        for norm in norms:
            for values in (norm.weight, norm.bias):
                values.data[least] = 0  # type: ignore[union-attr, index]
        assert width % 2 == 0
        assert width >= 0.1 * len(scale)
    assert (done.before - done.after) == gone
    assert 0.25 * done.before < gone <= 0.4 * done.before + 1
    for one, other, before in zip(outputs(pruned), outputs(quiet), outputs(whole), strict=True):
        assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert one.shape == before.shape
    count = [sum(p.numel() for p in m.parameters()) for m in (whole, pruned)]
    assert count[1] < count[0]
    # The widths alone make the same network of a new one.
    new = detector(name, **fields)
    narrow_channels(new, done.kept)
    new.load_state_dict(pruned.state_dict())
    for one, other in zip(outputs(new), outputs(pruned), strict=True):
        assert_close(one, other)


def test_a_pruned_detector_trains_detects_and_folds() -> None:
    pruned = detector("retinanet:mobilenet_v2", norm="bn", head={"depth": 1})
    prune_channels(pruned, outputs, share=0.5)
    fresh = copy.deepcopy(pruned)
    assert pruned.detect(PROBE)[0].image_size == (64, 64)
    before = outputs(pruned)
    two = ImageBatch(torch.cat([PROBE.pixels, PROBE.pixels.flip(3)]), PROBE.sizes * 2)
    maps = pruned.train().pyramid(two)
    torch.stack([m.square().mean() for m in maps]).sum().backward()
    assert all(p.grad is not None for p in pruned.backbone.stages["stage2"].parameters())  # type: ignore[index]
    folding = fold_norms(fresh, lambda: outputs(fresh))
    assert len(folding.folded) > 20
    for one, other in zip(outputs(fresh), before, strict=True):
        assert_close(one, other, atol=1e-3, rtol=1e-3)


class Shared(nn.Module):
    """The output of the first layer is added to the last one's too: its channels are not only the second one's."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.shared = shared
        nn.init.uniform_(self.norm.weight, 0.1, 1.0)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm(self.first(x)))
        return self.last(inner) + inner if self.shared else self.last(inner)


def test_channels_that_others_see_stay() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, 4)
    alone = Shared(False).eval()
    assert prune_channels(alone, lambda m: m(x), share=0.5).kept == {"first": 4}
    with pytest.raises(UserError, match="no layer has channels that only it and the next one see"):
        prune_channels(Shared(True).eval(), lambda m: m(x), share=0.5)
    # A layer that the forward pass does not reach is not proven by it.
    with pytest.raises(UserError, match="no layer"):
        prune_channels(Shared(False).eval(), lambda m: x, share=0.5)


def test_the_threshold_is_one_for_all_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Shared(False), nn.Conv2d(8, 3, 1), Shared(False)).eval()
    with torch.no_grad():
        model[0].norm.weight.copy_(torch.linspace(1.0, 2.0, 8))  # type: ignore[union-attr, operator]
        model[2].norm.weight.copy_(torch.linspace(0.1, 0.9, 8))  # type: ignore[union-attr, operator]
    x = torch.randn(1, 3, 4, 4)
    # Half of 16 channels: all of the second layer's are the least, of which a tenth stays: 1, as a multiple of 2.
    done = prune_channels(model, lambda m: m(x), share=0.5, multiple=2)
    assert done.kept == {"2.first": 2}
    assert (done.before, done.after) == (16, 10)
    assert_close(model[2].norm.weight.detach(), torch.linspace(0.1, 0.9, 8)[6:])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"backbone.nothing": 4}, "no layer of this detector that can be pruned"),
        ({"FIRST": 4000}, "channels, not 4000"),
    ],
)
def test_widths_of_another_detector_are_refused(kept: dict[str, int], message: str) -> None:
    whole = detector("fcos:resnet18", head={"depth": 1})
    first = next(iter(find_chains(whole)))
    with pytest.raises(UserError, match=message):
        narrow_channels(whole, {name.replace("FIRST", first): width for name, width in kept.items()})
