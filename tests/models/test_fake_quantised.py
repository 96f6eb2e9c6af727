"""Training for INT8: rounding by hand, gradients, what is left alone, and that a folded detector computes the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from flyspeck.models.fake_quantised import (
    FakeQuantised,
    fake_quantise,
    input_ranges,
    is_fake_quantised,
    round_input,
    round_weight,
    without_rounding,
)
from flyspeck.models.fold import fold_norms, probe_images
from flyspeck.train.build import build_detector
from flyspeck.train.config import ModelConfig
from flyspeck.types import ImageBatch

PROBE = probe_images(1, 64)


def detector(name: str, **fields: object) -> nn.Module:
    torch.manual_seed(0)
    content = {"channels": 8, "width": 0.25, "norm": "bn", **fields}
    model = ModelConfig(name=name, **content)  # type: ignore[arg-type]
    return build_detector(model, classes=("a", "b"), mean=[0.5], std=[0.25], load=False)


def test_rounding_by_hand() -> None:
    # Over (-1, 4.1) a step is 5.1 / 255 = 0.02, and 0 is step 50: what is held is 0.02 n from -1 to 4.1.
    x = torch.tensor([-3.0, -1.0, -0.011, 0.0, 0.009, 0.011, 1.0, 4.1, 7.0], requires_grad=True)
    found = round_input(x, torch.tensor([-1.0, 4.1]))
    assert_close(found, torch.tensor([-1.0, -1.0, -0.02, 0.0, 0.0, 0.02, 1.0, 4.1, 4.1]))
    found.sum().backward()
    # The gradient passes within the bounds, and not beyond.
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]


def test_weights_are_rounded_channel_by_channel() -> None:
    # Steps 1.27 / 127 = 0.01 and 254 / 127 = 2; a channel of zeros stays.
    weight = torch.tensor([[1.27, 0.014, -0.016], [254.0, 0.9, -3.1], [0.0, 0.0, 0.0]], requires_grad=True)
    found = round_weight(weight)
    assert_close(found, torch.tensor([[1.27, 0.01, -0.02], [254.0, 0.0, -4.0], [0.0, 0.0, 0.0]]))
    found.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0] * 3] * 3


def test_the_range_follows_the_batches_and_holds_nought() -> None:
    model = detector("retinanet:mobilenet_v2", head={"depth": 1})
    fake_quantise(model)  # type: ignore[arg-type]
    layer = next(layer for layer in model.modules() if isinstance(layer, FakeQuantised)).train()
    x = torch.rand(1, 3, 8, 8) + 1
    layer.eval()(x)
    assert layer.input_range.tolist() == [0, 0]  # nothing seen: nothing rounded
    assert torch.equal(layer.rounded_input(x), x)
    layer.train()(x)
    first = float(x.max())
    assert_close(layer.input_range, torch.tensor([0.0, first]))  # all above 0: 0 is the lower bound
    layer(x - 3)
    low, high = float((x - 3).min()), max(0.0, float((x - 3).max()))
    assert_close(layer.input_range, torch.tensor([0.05 * low, 0.95 * first + 0.05 * high]))
    before = layer.input_range.clone()
    with torch.no_grad():
        layer(10 * x)  # a validation within training mode teaches nothing
    layer.eval()(10 * x)
    assert torch.equal(layer.input_range, before)


HOSTS = [
    ("retinanet:mobilenet_v2", {"head": {"depth": 1}}, {"class_logits", "box_deltas"}),
    (
        "faster_rcnn:shufflenet_v2",
        {"head": {"hidden": 16}},
        {"rpn.objectness", "rpn.box_deltas", "box_head.class_logits", "box_head.box_deltas"},
    ),
    ("fcos:resnet18", {"head": {"depth": 1}}, {"class_logits", "box_distances", "centerness"}),
    ("speck:specknet_n", {"channels": 16}, None),
    ("ssd:mobilenet_v1", {"levels": None}, None),
    ("cascade_rcnn:resnet18", {"head": {"hidden": 16}}, None),
    ("tinaface:resnet18", {}, None),
]


@pytest.mark.parametrize(("name", "fields", "last"), HOSTS, ids=[h[0] for h in HOSTS])
def test_last_layers_stay_plain(name: str, fields: dict, last: set[str] | None) -> None:
    model = detector(name, **fields)
    count = fake_quantise(model)  # type: ignore[arg-type]
    assert count == sum(isinstance(m, FakeQuantised) for m in model.modules())
    plain = {
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and not isinstance(m, FakeQuantised)
    }
    assert all(n.startswith("head.") for n in plain), plain
    # Those that give classes, boxes and what weighs them, as the head itself names them; towers before them round.
    rows = {f"head.{n}" for n in model.head.output_rows()}  # type: ignore[operator, union-attr]
    named = {n for n in plain if any(n == row or n.startswith(f"{row}.") for row in rows)}
    assert named
    if last is not None:
        assert plain == {f"head.{n}" for n in last}


@torch.no_grad()
def maps(model: nn.Module) -> list[Tensor]:
    return list(model.pyramid(PROBE))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["retinanet:mobilenet_v2", "faster_rcnn:shufflenet_v2", "speck:specknet_n"])
def test_it_rounds_learns_and_folds(name: str) -> None:
    model = detector(name, head={}, **({"channels": 16} if name.startswith("speck") else {}))
    fake_quantise(model)  # type: ignore[arg-type]
    assert is_fake_quantised(model)
    before = maps(model.eval())
    with without_rounding(model):
        assert all(torch.equal(a, b) for a, b in zip(maps(model), before, strict=True))  # nothing seen yet
    model.train()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()  # with random weights the statistics of a batch and those of the norms are far apart
    two = ImageBatch(torch.cat([PROBE.pixels, PROBE.pixels.flip(3)]), PROBE.sizes * 2)
    torch.stack([m.square().mean() for m in model.pyramid(two)]).sum().backward()  # type: ignore[operator]
    rounding = [m for n, m in model.named_modules() if isinstance(m, FakeQuantised) and not n.startswith("head.")]
    assert all(m.weight.grad is not None for m in rounding)  # type: ignore[union-attr]
    assert len(input_ranges(model)) == len(rounding)
    model.eval()
    rounded = maps(model)
    with without_rounding(model):
        plain = maps(model)
    apart = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(rounded, plain, strict=True)]
    assert 0 < max(apart) < 0.2
    # Folded norms multiply channels, whose steps go along: the same integers, but for the last digit of what is rounded.
    folded = copy.deepcopy(model)
    done = fold_norms(folded, lambda: maps(folded))
    assert done.folded or name.startswith("speck")
    for one, other in zip(maps(folded), rounded, strict=True):
        assert float((one - other).abs().mean()) < 0.02 * float(other.abs().max())
    # Weights and ranges are the state: another copy that loads them rounds alike.
    again = detector(name, head={}, **({"channels": 16} if name.startswith("speck") else {}))
    fake_quantise(again)  # type: ignore[arg-type]
    again.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(maps(again.eval()), rounded, strict=True))
