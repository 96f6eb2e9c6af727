"""Structured pruning by the scale of norm layers (Liu et al., Learning efficient convolutional networks through network slimming,
ICCV 2017, arXiv:1708.06519): whole channels go, so that what is left is a smaller plain network, faster on any machine.

A channel that a batch norm multiplies by little is worth little: channels of all layers are ranked by |gamma|, and the lowest
share goes. Only inner channels are cut: those between two convolutions that nobody else sees, with a norm after the first and,
where there is one, a convolution of each channel with its norm between (bottlenecks, inverted residuals, the towers of heads).
Sums, concatenations and pyramids keep their widths, so that no other part of the detector has to know.

Nothing is taken on trust: a chain is cut only if the detector without some of its channels gives what it gives with those
channels' norms at 0, and if that is not what it gave before. What differs (an output that others read too) stays whole.

Deviations: no L1 penalty on gamma is trained before; with a convolution of each channel between, the scale is the geometric
mean of both norms'; no layer loses more than nine tenths, and widths are multiples of `multiple`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flyspeck.errors import UserError
from flyspeck.models.consumers import tensors_in
from flyspeck.models.follows import BATCH_NORMS
from flyspeck.models.narrow_pointwise import use_sound_pointwise

LEAST_SHARE = 0.1
"""Of its channels that a layer keeps whatever their scale."""
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Chain:
    """Two convolutions and what lies between: the channels that only they see. Names of modules."""

    first: str
    norms: tuple[str, ...]
    depthwise: tuple[str, ...]
    last: str


@dataclass(frozen=True)
class Pruning:
    """What `prune_channels` did."""

    kept: dict[str, int]
    """Channels left of each layer that lost some, by the name of its first convolution: a recipe's `model.pruned`."""
    before: int
    """Inner channels that could be cut."""
    after: int
    """Those that are left."""
    refused: tuple[str, ...]
    """First convolutions of chains whose channels others see too."""


def find_chains(model: nn.Module) -> dict[str, Chain]:
    """Chains by the name of their first convolution, as the order of the layers suggests; none is proven yet."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, *BATCH_NORMS))]
    found: dict[str, Chain] = {}
    for i, (name, conv) in enumerate(layers):
        if not isinstance(conv, nn.Conv2d) or conv.groups != 1:
            continue
        norms, depthwise, at = [], [], i + 1
        while at + 1 < len(layers) and _is_norm(layers[at][1], conv.out_channels):
            norms.append(layers[at][0])
            follower = layers[at + 1][1]
            if not isinstance(follower, nn.Conv2d) or follower.in_channels != conv.out_channels:
                break
            if follower.groups == 1:
                found[name] = Chain(name, tuple(norms), tuple(depthwise), layers[at + 1][0])
                break
            if follower.groups != conv.out_channels or follower.out_channels != conv.out_channels:
                break
            depthwise.append(layers[at + 1][0])
            at += 2
    return found


@torch.no_grad()
def prune_channels(
    model: nn.Module, forward: Callable[[nn.Module], object], *, share: float, multiple: int = 4
) -> Pruning:
    """Cuts about `share` of the inner channels of `model` in place, those with the lowest norm scales.

    Args:
        model: In evaluation mode.
        forward: Runs a model of this kind on one input like those it is meant for, and gives what must not change.
        share: Above 0, below 1.
        multiple: Of which the widths that are left are multiples.

    Raises:
        UserError: If nothing can be cut: the detector has no batch norm between two convolutions, or others see all of them.
    """
    chains = find_chains(model)
    whole = list(tensors_in(forward(model)))
    proven = {name: chain for name, chain in chains.items() if _holds(model, chain, forward, whole)}
    refused = tuple(name for name in chains if name not in proven)
    if not proven:
        raise UserError(
            "no layer has channels that only it and the next one see, with a batch norm between",
            where="model",
            fix="prune a detector whose backbone has batch norms (mobilenet_v2, shufflenet_v2, resnet50)",
        )
    scales = {name: _scales(model, chain) for name, chain in proven.items()}
    kept = _widths(scales, share=share, multiple=multiple)
    before = sum(len(s) for s in scales.values())
    for name, width in kept.items():
        best = scales[name].argsort(descending=True, stable=True)[:width].sort().values
        _cut(model, proven[name], best)
    use_sound_pointwise(model)
    after = before - sum(len(scales[name]) - width for name, width in kept.items())
    return Pruning(kept, before, after, refused)


@torch.no_grad()
def narrow_channels(model: nn.Module, kept: Mapping[str, int]) -> None:
    """Gives `model` the widths of a pruned one, in place: the first channels stay. Its weights are then loaded or taken over.

    Raises UserError for a layer that there is not, or that is narrower already.
    """
    chains = find_chains(model)
    for name, width in kept.items():
        chain = chains.get(name)
        if chain is None:
            raise UserError(f"'{name}' is no layer of this detector that can be pruned", where="model.pruned")
        have = _conv(model, name).out_channels
        if width > have:
            raise UserError(f"'{name}' has {have} channels, not {width} or more", where="model.pruned")
        _cut(model, chain, torch.arange(width))
    use_sound_pointwise(model)


def _is_norm(module: nn.Module, channels: int) -> bool:
    scale = getattr(module, "weight", None)
    return isinstance(module, BATCH_NORMS) and isinstance(scale, Tensor) and len(scale) == channels


def _scales(model: nn.Module, chain: Chain) -> Tensor:
    gammas = [model.get_submodule(name).weight.abs() for name in chain.norms]  # type: ignore[operator]
    return torch.stack([g.float() for g in gammas]).clamp(min=1e-30).log().mean(0).exp()


def _widths(scales: Mapping[str, Tensor], *, share: float, multiple: int) -> dict[str, int]:
    """Channels left of each layer that loses some, by one threshold for all of them."""
    every = torch.cat(list(scales.values()))
    threshold = every.sort().values[min(round(share * len(every)), len(every) - 1)]
    found = {}
    for name, own in scales.items():
        wanted = max(int((own >= threshold).sum()), math.ceil(LEAST_SHARE * len(own)), 1)
        width = min(len(own), math.ceil(wanted / multiple) * multiple)
        if width < len(own):
            found[name] = width
    return found


def _holds(model: nn.Module, chain: Chain, forward: Callable[[nn.Module], object], whole: Sequence[Tensor]) -> bool:
    """Whether the model without some channels is the model with those at 0, and is not what it was, which gave `whole`."""
    channels = _conv(model, chain.first).out_channels
    if channels < 2:
        return False
    keep = torch.arange(channels)[::2]  # every other one: whoever mixes them up is found out
    gone = torch.ones(channels, dtype=torch.bool)
    gone[keep] = False
    with _restored(model, chain):
        for name in chain.norms:
            norm = model.get_submodule(name)
            _put(norm, {key: torch.where(gone, 0.0, _tensor(norm, key)) for key in ("weight", "bias")})
        quiet = list(tensors_in(forward(model)))
    if _alike(quiet, whole):  # the pass does not come by, or these channels are worth nothing: nothing would be shown
        return False
    with _restored(model, chain):
        _cut(model, chain, keep)
        try:
            return _alike(quiet, list(tensors_in(forward(model))))
        except RuntimeError:  # somebody else expects the width that it had
            return False


@contextmanager
def _restored(model: nn.Module, chain: Chain) -> Iterator[None]:
    """The layers of `chain` as they were, once the block is done; their tensors are replaced in it, never written to."""
    layers = [model.get_submodule(n) for n in (chain.first, *chain.norms, *chain.depthwise, chain.last)]
    widths = ("in_channels", "out_channels", "groups", "num_features")
    before = [
        (dict(m._parameters), dict(m._buffers), {w: getattr(m, w) for w in widths if hasattr(m, w)}) for m in layers
    ]
    try:
        yield
    finally:
        for module, (parameters, buffers, sizes) in zip(layers, before, strict=True):
            module._parameters.update(parameters)
            module._buffers.update(buffers)
            for name, value in sizes.items():
                setattr(module, name, value)


def _tensor(module: nn.Module, name: str) -> Tensor:
    found = getattr(module, name)
    assert isinstance(found, Tensor)
    return found


def _alike(these: Sequence[Tensor], those: Sequence[Tensor]) -> bool:
    if [t.shape for t in these] != [t.shape for t in those]:
        return False
    return all(
        float((a.float() - b.float()).abs().max()) <= _TOLERANCE * max(float(a.float().abs().max()), 1e-12)
        for a, b in zip(these, those, strict=True)
        if a.numel()
    )


def _cut(model: nn.Module, chain: Chain, keep: Tensor) -> None:
    first, last = _conv(model, chain.first), _conv(model, chain.last)
    _take(first, ("weight", "bias"), keep)
    first.out_channels = len(keep)
    for name in chain.norms:
        norm = model.get_submodule(name)
        _take(norm, ("weight", "bias", "running_mean", "running_var"), keep)
        if hasattr(norm, "num_features"):
            norm.num_features = len(keep)  # type: ignore[assignment]
    for name in chain.depthwise:
        conv = _conv(model, name)
        _take(conv, ("weight", "bias"), keep)
        conv.in_channels = conv.out_channels = conv.groups = len(keep)
    _take(last, ("weight",), keep, axis=1)
    last.in_channels = len(keep)


def _take(module: nn.Module, names: Sequence[str], keep: Tensor, *, axis: int = 0) -> None:
    """Keeps the rows (or columns) `keep` of parameters and buffers."""
    there = {name: value for name in names if isinstance(value := getattr(module, name, None), Tensor)}
    _put(module, {name: value.detach().index_select(axis, keep.to(value.device)) for name, value in there.items()})


def _put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """New tensors in the place of parameters and buffers."""
    for name, tensor in tensors.items():
        old = getattr(module, name)
        new = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
        setattr(module, name, new)


def _conv(model: nn.Module, name: str) -> nn.Conv2d:
    found = model.get_submodule(name)
    assert isinstance(found, nn.Conv2d)
    return found
