"""Batch norms folded into the convolutions before them: the same maps with less to do, for inference.

At inference `norm(conv(x))` is one affine map of `x`, so its scale and shift go into the convolution's weight and bias
(Jacob et al., 2018, arXiv:1712.05877, sec. 3.2). A norm that also activates (timm's `BatchNormAct2d`) keeps its activation.

Nothing is taken on trust. One pass shows which norms take the output of a convolution that nobody else takes, neither another
module nor an operator nor the caller (`consumers`). Each of those is folded, and the convolution with what is left of its norm
must give what the norm gave in that pass. Then the whole must give what it gave before; where it does not, the folds are
halved until those that change it are found. What differs is left as it was and said in the log. The proof is for the pass that
was shown: a model that takes other ways for other inputs must be shown them too.

Before all that, blocks that train with branches become the one convolution that they are (`reparameterised`), each shown to
give the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from flyspeck.models.consumers import Use, observe, tensors_in
from flyspeck.models.fake_quantised import without_rounding
from flyspeck.models.follows import tensor_of, what_follows
from flyspeck.models.reparameterised import merge_branches
from flyspeck.types import ImageBatch

log = logging.getLogger("flyspeck")

TOLERANCE = 1e-4
"""Largest difference of two outputs in float32 that is rounding, relative to the largest value."""
_COARSE_TOLERANCE = 2e-2
"""The same where weights have fewer bits."""


@dataclass(frozen=True)
class Folding:
    """What `fold_norms` did."""

    folded: tuple[str, ...]
    """Names of the norms that are gone."""
    kept: dict[str, str]
    """Names of the norms that stayed, and why."""


@torch.no_grad()
def fold_norms(model: nn.Module, forward: Callable[[], object]) -> Folding:
    """Folds the norms of `model` in place, as far as that changes nothing that `forward` gives.

    `forward` runs the model on an input like those it is meant for (not a blank one: differences would hide in it) and returns
    what must stay the same: tensors, in lists, tuples, mappings or dataclasses. It is run twice, more often where something
    differs, and must give the same each time. What it returns should be continuous in its input: a choice of the best boxes may
    turn over by rounding.

    The model must be in evaluation mode, and is of no use for training afterwards. Raises ValueError in training mode.
    """
    if model.training:
        raise ValueError("norms fold in evaluation mode only: call model.eval() first")
    names = {module: name for name, module in model.named_modules()}
    kept: dict[str, str] = {}
    with _exact(model), without_rounding(model):  # one step more or less of a rounded value is no proof of anything
        merged = tuple(names[norm] for norm in merge_branches(model))
        seen = observe(model, forward)
        folds: list[_Fold] = []
        for use in seen.uses.values():
            for norm in use.norms:
                reason = _obstacle(use, norm, seen.norm_calls[norm])
                fold = None if reason else _prepare(model, use, norm)
                if fold is None:
                    kept[names[norm]] = reason or "it cannot be told what follows its normalisation"
                elif not fold.holds():
                    kept[names[norm]] = _DIFFERS
                else:
                    folds.append(fold)
        before = [t.clone() for t in seen.outputs]
        done = _accept(folds, lambda: _same(forward, before))
        if folds and not done and not _same(forward, before):
            log.warning("no norms are folded: the model does not give the same twice")
    kept |= {names[fold.norm]: _DIFFERS for fold in folds if fold not in done}
    for norm in seen.norm_calls:
        if norm not in {fold.norm for fold in folds}:
            kept.setdefault(names[norm], "it does not take a convolution's output")
    folding = Folding((*merged, *(names[fold.norm] for fold in done)), kept)
    _say(folding)
    return folding


def probe_images(channels: int, side: int, *, device: torch.device | str = "cpu") -> ImageBatch:
    """One image `(1, channels, side, side)` in [0, 1] to show a detector: always the same, with structure of every size."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.zeros(1, channels, side, side)
    cells = 2
    while cells <= side:
        noise = torch.randn(1, channels, cells, cells, generator=generator)
        pixels += F.interpolate(noise, size=(side, side), mode="bilinear", align_corners=False)
        cells *= 2
    return ImageBatch(torch.sigmoid(pixels / 2).to(device), ((side, side),))


_DIFFERS = "the outputs would differ"


def _say(folding: Folding) -> None:
    differ = [name for name, reason in folding.kept.items() if reason == _DIFFERS]
    if differ:
        log.warning("%d norms stay as they are, folded their outputs would differ: %s", len(differ), ", ".join(differ))
    others = {name: reason for name, reason in folding.kept.items() if reason != _DIFFERS}
    if others:
        told = "; ".join(f"{name}: {reason}" for name, reason in others.items())
        log.debug("%d norms folded, %d not: %s", len(folding.folded), len(folding.kept), told)


def _obstacle(use: Use, norm: nn.Module, norm_calls: int) -> str | None:
    """Why the norm cannot be folded, by what was seen; None where it may be."""
    conv = use.conv
    if len(use.norms) > 1:
        return "its convolution feeds several norms"
    if use.others:
        return f"its convolution's output is taken by something else ({use.others[0]})"
    if use.calls != use.norms[norm] or norm_calls != use.norms[norm]:
        return "it or its convolution is used elsewhere too"
    if norm.training:
        return "it is in training mode"
    if tensor_of(norm, "running_mean") is None or tensor_of(norm, "running_var") is None:
        return "it has no running statistics"
    if any((conv._forward_hooks, conv._forward_pre_hooks, norm._forward_hooks, norm._forward_pre_hooks)):
        return "it or its convolution has hooks"
    if "weight" not in conv._parameters or parametrize.is_parametrized(conv):
        return "its convolution's weight is computed"
    return None


class _Fold:
    """One norm and its convolution, and both ways of having them."""

    def __init__(self, model: nn.Module, use: Use, norm: nn.Module, rest: nn.Module) -> None:
        self.conv, self.norm, self.rest, self.use = use.conv, norm, rest, use
        self.places = [(m, key) for m in model.modules() for key, child in m._modules.items() if child is norm]
        self.before = (use.conv._parameters["weight"], use.conv._parameters.get("bias"))
        weight, bias = _folded(use.conv, norm)
        self.after = (nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False))

    def apply(self) -> None:
        self._set(self.after, self.rest)

    def undo(self) -> None:
        self._set(self.before, self.norm)

    def _set(self, parameters: Sequence[nn.Parameter | None], module: nn.Module) -> None:
        self.conv._parameters["weight"], self.conv._parameters["bias"] = parameters
        for parent, key in self.places:
            parent._modules[key] = module

    def holds(self) -> bool:
        """Whether the folded convolution gives what the norm gave in the first call."""
        if self.use.arguments is None or self.use.normed is None:
            return False
        (args, kwargs), expected = self.use.arguments, self.use.normed
        self.apply()
        try:
            return _same(lambda: self.rest(self.conv(*args, **kwargs)), [expected])
        finally:
            self.undo()


def _prepare(model: nn.Module, use: Use, norm: nn.Module) -> _Fold | None:
    rest = what_follows(norm)
    return None if rest is None else _Fold(model, use, norm, rest.eval())


def _folded(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with the norm's scale and shift in them, computed in double precision."""
    mean, var, scale, shift, bias, weight = (
        None if tensor is None else tensor.detach().cpu().double()
        for tensor in (
            *(tensor_of(norm, name) for name in ("running_mean", "running_var", "weight", "bias")),
            conv._parameters.get("bias"),
            conv._parameters["weight"],
        )
    )
    assert mean is not None
    assert var is not None
    assert weight is not None
    factor = (var + norm.eps).rsqrt()  # type: ignore[operator]
    factor = factor if scale is None else factor * scale
    offset = (0 if bias is None else bias) - mean
    offset = offset * factor if shift is None else offset * factor + shift
    if isinstance(conv, nn.ConvTranspose2d):  # (in, out / groups, k, k): the inputs of a group make its outputs
        per_input = factor.view(conv.groups, 1, -1).expand(-1, weight.shape[0] // conv.groups, -1)
        weight = weight * per_input.reshape(weight.shape[0], -1)[..., None, None]
    else:
        weight = weight * factor[:, None, None, None]
    like = conv._parameters["weight"]
    assert like is not None
    return weight.to(like), offset.to(like)


def _accept(folds: Sequence[_Fold], same: Callable[[], bool]) -> list[_Fold]:
    """Applies as many of the folds as leave the whole the same; a group that does not is undone and halved."""
    if not folds:
        return []
    for fold in folds:
        fold.apply()
    if same():
        return list(folds)
    for fold in folds:
        fold.undo()
    if len(folds) == 1:
        return []
    half = len(folds) // 2
    first = _accept(folds[:half], same)
    return first + _accept(folds[half:], same)


def _same(run: Callable[[], object], expected: Sequence[Tensor]) -> bool:
    """Whether `run` gives `expected` to rounding; a model that no longer runs gives something else."""
    try:
        found = list(tensors_in(run()))
    except Exception as error:  # a module that reads a norm's attributes, say: whatever it is, it did run before
        log.debug("a folded model failed: %s", error)
        return False
    return len(found) == len(expected) and all(_close(a, b) for a, b in zip(found, expected, strict=True))


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    return not found.is_floating_point() or relative_difference(found, expected) <= _tolerance(found.dtype)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two tensors of one shape, divided by the largest value of `expected`; NaN where either has one."""
    if not expected.numel():
        return 0.0
    difference = float((found.cpu().double() - expected.cpu().double()).abs().max())
    return difference if difference == 0 else float(difference / expected.abs().max().cpu().double())


def _tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE if torch.finfo(dtype).bits >= 32 else _COARSE_TOLERANCE


def _exact(model: nn.Module) -> Any:
    """Without the shortened products of some GPUs (TF32), whose rounding is larger than what is looked for."""
    if any(p.device.type == "cuda" for p in model.parameters()):
        return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
    return nullcontext()
