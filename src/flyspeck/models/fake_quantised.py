"""Layers that train as INT8 will run them: what they take and their weights are rounded to 8 bits, and stay floats.

Quantisation-aware training (Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
inference, CVPR 2018, arXiv:1712.05877, sec. 3): the forward pass sees the rounding, the backward pass goes through it as if it
were not there (but not beyond the range). Weights are rounded by 127 steps either way of each output channel's largest; what a
layer takes by 256 steps over a range that holds 0 and follows the smallest and the largest value of the batches.

A batch norm behind a layer multiplies each of its channels, and so the step of that channel alone: folded into the weights, the
same integers come out. So the norms stay as they are while the layer trains, where the paper folds them first.

What is rounded are the convolutions and linear layers of backbone, neck and head but for the last ones, whose numbers are
scores and offsets: those that `flyspeck.export.quantize` puts in integers. It puts sums and concatenations there too, which
are floats here.

Why this and not a library's: NNCF 3.4 (Apache-2.0) installs beside PyTorch, but compiles its rounding in C++ when it is first
used, reports its use to its makers unless told not to, sees only what runs within `forward` (a detector trains by `losses`),
and a run could be loaded only where it is installed. The rounding itself is PyTorch's own operator.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flyspeck.errors import UserError
from flyspeck.models.depthwise import DepthwiseConv2d
from flyspeck.models.detector import Detector
from flyspeck.models.narrow_pointwise import NarrowPointwiseConv2d
from flyspeck.models.reparameterised import merge_branches

MOMENTUM = 0.05
"""Share of a batch in the range of what a layer takes."""
RANGE = "input_range"
_STEPS, _WEIGHT_STEPS = 255, 127
_LEAST_STEP = 1e-12


class FakeQuantised(nn.Module):
    """What the layers below have in common. A layer that nothing has passed in training yet rounds nothing."""

    input_range: Tensor
    """(2,) float32: the lowest and the highest value that the layer takes; both 0 before the first batch."""
    rounding = True

    def rounded_input(self, x: Tensor) -> Tensor:
        """`x` as 8 bits hold it; in training the range follows it first."""
        if not self.rounding or x.is_meta:
            return x
        if self.training and torch.is_grad_enabled():
            self._follow(x)
        elif not bool(self.input_range[1] > self.input_range[0]):
            return x
        return round_input(x, self.input_range)

    def rounded_weight(self, weight: Tensor) -> Tensor:
        """`weight` `(C, ...)` as 8 bits of each channel hold it."""
        if not self.rounding or weight.is_meta:
            return weight
        if not self.training and not bool(self.input_range[1] > self.input_range[0]):
            return weight
        return round_weight(weight)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        low, high = x.aminmax()
        seen = torch.stack([low.clamp(max=0), high.clamp(min=0)]).to(self.input_range)
        fresh = self.input_range[1] <= self.input_range[0]
        self.input_range.copy_(torch.where(fresh, seen, torch.lerp(self.input_range, seen, MOMENTUM)))


class FakeQuantisedConv2d(FakeQuantised, nn.Conv2d):
    """An `nn.Conv2d` of rounded input and weights."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(self.rounded_input(input), self.rounded_weight(weight), bias)


class FakeQuantisedNarrowConv2d(FakeQuantisedConv2d, NarrowPointwiseConv2d):
    """A `NarrowPointwiseConv2d` of rounded input and weights."""


class FakeQuantisedDepthwiseConv2d(FakeQuantisedConv2d, DepthwiseConv2d):
    """A `DepthwiseConv2d` of rounded input and weights."""


class FakeQuantisedLinear(FakeQuantised, nn.Linear):
    """An `nn.Linear` of rounded input and weights."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`."""
        return nn.functional.linear(self.rounded_input(input), self.rounded_weight(self.weight), self.bias)


_FORMS: dict[type[nn.Module], type[FakeQuantised]] = {
    nn.Conv2d: FakeQuantisedConv2d,
    NarrowPointwiseConv2d: FakeQuantisedNarrowConv2d,
    DepthwiseConv2d: FakeQuantisedDepthwiseConv2d,
    nn.Linear: FakeQuantisedLinear,
}


def round_input(x: Tensor, bounds: Tensor) -> Tensor:
    """`x` by 256 steps over `bounds` (low, high), low at most 0 and high at least 0; what is outside goes to the bound.

    The gradient is 1 within the bounds and 0 outside.
    """
    step = ((bounds[1] - bounds[0]) / _STEPS).clamp(min=_LEAST_STEP)
    zero = (-bounds[0] / step).round().clamp(0, _STEPS).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x.float(), step, zero, 0, _STEPS).to(x.dtype)


def round_weight(weight: Tensor) -> Tensor:
    """`weight` `(C, ...)` by 127 steps from 0 to the largest of each of its C channels, to either side. The gradient is 1."""
    step = (weight.detach().float().abs().flatten(1).amax(1) / _WEIGHT_STEPS).clamp(min=_LEAST_STEP)
    zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    steps = (-_WEIGHT_STEPS, _WEIGHT_STEPS)
    return torch.fake_quantize_per_channel_affine(weight.float(), step, zero, 0, *steps).to(weight.dtype)


def fake_quantise(detector: Detector) -> int:
    """Makes the layers of `detector` that INT8 puts in integers round from now on, in place; returns how many they are.

    Blocks that train as branches become the one convolution that they are in a file, for the integers are that one's. Of a head
    whose rows are queries nothing is taken. Raises UserError where there is no such layer.
    """
    training = detector.training
    merge_branches(detector.eval())
    detector.train(training)
    plain = _last_layers(detector)
    found: list[nn.Module] = [
        layer for name, layer in detector.named_modules() if type(layer) in _FORMS and name not in plain
    ]
    if not found:
        raise UserError("it has no convolution or linear layer that INT8 puts in integers", where="model")
    for layer in found:
        # The same parameters: only what they are multiplied with differs.
        layer.__class__ = _FORMS[type(layer)]  # type: ignore[assignment]
        layer.register_buffer(RANGE, torch.zeros(2, device=next(layer.parameters()).device))
    return len(found)


def _last_layers(detector: Detector) -> set[str]:
    """Names of the head's layers whose outputs no other of its layers takes; all its layers where its rows are queries, or where
    it cannot be run without values (`Head.run_layers`).

    A pass on PyTorch's meta device shows it: what a layer takes was, or was not, made of what another gave.
    """
    layers = {f"head.{name}": layer for name, layer in detector.head.named_modules() if type(layer) in _FORMS}
    if detector.head.implements("dense_pairs"):
        return set(layers)
    head = copy.deepcopy(detector.head).to("meta").eval().requires_grad_(True)
    gave: dict[Any, str] = {}
    taken: list[Any] = []
    for name, layer in head.named_modules():
        if f"head.{name}" in layers:
            layer.register_forward_pre_hook(lambda _, given: taken.append(given[0].grad_fn))
            layer.register_forward_hook(lambda *call, name=name: gave.update({call[2].grad_fn: f"head.{name}"}))
    sides = [2 ** (len(detector.features) - level) for level in range(len(detector.features))]
    maps = [torch.zeros(1, f.channels, s, s, device="meta") for f, s in zip(detector.features, sides, strict=True)]
    with torch.enable_grad(), torch.device("meta"):
        try:
            head.run_layers(maps, proposals=1)
        except (UserError, RuntimeError):  # a head from outside need not have that
            return set(layers)
    seen: set[Any] = set()
    waiting = [step for step in taken if step is not None]
    while waiting:
        step = waiting.pop()
        if step not in seen:
            seen.add(step)
            waiting += [before for before, _ in step.next_functions if before is not None]
    return set(layers) - {name for step, name in gave.items() if step in seen}


def is_fake_quantised(model: nn.Module) -> bool:
    """Whether layers of `model` round."""
    return any(isinstance(layer, FakeQuantised) for layer in model.modules())


def set_rounding(model: nn.Module, on: bool) -> None:
    """Lets the layers of `model` round, or compute as if they were plain."""
    for layer in model.modules():
        if isinstance(layer, FakeQuantised):
            layer.rounding = on


@contextmanager
def without_rounding(model: nn.Module) -> Iterator[None]:
    """The layers of `model` compute as if they were plain until the block is done."""
    layers = [layer for layer in model.modules() if isinstance(layer, FakeQuantised) and layer.rounding]
    for layer in layers:
        layer.rounding = False
    try:
        yield
    finally:
        for layer in layers:
            layer.rounding = True


def input_ranges(model: nn.Module) -> dict[str, tuple[float, float]]:
    """What each rounding layer of `model` takes, (low, high), by the layer's name; of those that training has passed."""
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, FakeQuantised))
    bounds = {name: layer.input_range.tolist() for name, layer in layers}
    return {name: (low, high) for name, (low, high) in bounds.items() if high > low}
