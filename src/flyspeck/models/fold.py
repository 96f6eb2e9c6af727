"""Batch norms folded into the convolutions before them: the same boxes with less to do, for inference.

At inference `norm(conv(x))` is one affine map of `x`, so its scale and shift go into the convolution's weight and bias
(Jacob et al., 2018, arXiv:1712.05877, sec. 3.2). Which norm follows which convolution is observed in one forward pass, so
any architecture works. A convolution that several norms share (a tower over pyramid levels, private copies per factor)
keeps them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

Norm = nn.BatchNorm2d | FrozenBatchNorm2d


@torch.no_grad()
def fold_norms(model: nn.Module, forward: Callable[[], object]) -> int:
    """Folds the norms of `model` in place and returns how many; `forward` runs it once, on any input.

    The model must be in evaluation mode, and is of no use for training afterwards.
    """
    if model.training:
        raise ValueError("norms fold in evaluation mode only: call model.eval() first")
    pairs = _observe(model, forward)
    names = {module: name for name, module in model.named_modules()}
    for norm, conv in pairs.items():
        _fold(conv, norm)
        parent, _, child = names[norm].rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    return len(pairs)


def _observe(model: nn.Module, forward: Callable[[], object]) -> dict[Norm, nn.Conv2d]:
    """Norms whose input is always the output of one convolution, which feeds nothing else that is a norm."""
    produced: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    calls: dict[nn.Module, int] = {}
    feeds: dict[nn.Conv2d, set[nn.Module]] = {}

    def after_conv(conv: nn.Module, _: object, output: Tensor) -> None:
        calls[conv] = calls.get(conv, 0) + 1
        assert isinstance(conv, nn.Conv2d)
        produced[id(output)] = (conv, output)  # holding the tensor keeps its id from being used again

    def before_norm(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        calls[norm] = calls.get(norm, 0) + 1
        if id(inputs[0]) in produced:
            feeds.setdefault(produced[id(inputs[0])][0], set()).add(norm)

    handles = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return {
        norm: conv
        for conv, norms in feeds.items()
        for norm in norms
        if len(norms) == 1 and calls[conv] == calls[norm] and isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
    }


def _fold(conv: nn.Conv2d, norm: Norm) -> None:
    mean, var, weight, bias = (_tensor(norm, name) for name in ("running_mean", "running_var", "weight", "bias"))
    if mean is None or var is None:
        raise ValueError("a norm without running statistics cannot be folded")
    scale = (var + norm.eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    conv.weight.mul_(scale[:, None, None, None])
    conv.bias = nn.Parameter(shift.clone(), requires_grad=False)


def _tensor(norm: Norm, name: str) -> Tensor | None:
    """A parameter or buffer of either kind of norm."""
    return {**dict(norm.named_parameters(recurse=False)), **dict(norm.named_buffers(recurse=False))}.get(name)
