"""Who takes a convolution's output: observed in one pass, operator by operator, so that nothing functional is missed.

Hooks on modules see a norm, but neither `x + y`, a view, `F.relu` nor an operator that works in place. Here every operator
that reaches PyTorch's dispatcher is looked at: one that takes memory of a convolution's output is a consumer of it, and one
that takes its weight outside of its own call is a second user of the weight. What only Python sees (an output that is returned,
or that a hook keeps) is looked for apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from flyspeck.models.follows import BATCH_NORMS

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(eq=False)
class Use:
    """What was seen of one convolution."""

    conv: nn.Module
    calls: int = 0
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    """Of its first call, as they were then: what is given to a module may be overwritten later."""
    norms: dict[nn.Module, int] = field(default_factory=dict)
    """Norm layers that took an output of it whole, and how often."""
    normed: Tensor | None = None
    """What the norm made of the first call's output."""
    others: list[str] = field(default_factory=list)
    """Operators other than a norm's own that took an output or, from outside, the weight."""


@dataclass
class Seen:
    """What one pass showed."""

    uses: dict[nn.Module, Use]
    norm_calls: dict[nn.Module, int]
    outputs: list[Tensor]
    """The tensors that the pass returned, in their order."""


def observe(model: nn.Module, forward: Callable[[], object]) -> Seen:
    """Runs `forward` once and says who took the output of each convolution of `model`."""
    watch = _Watch(model)
    handles = watch.attach(model)
    try:
        with watch:
            result = forward()
    finally:
        for handle in handles:
            handle.remove()
    outputs = list(tensors_in(result))
    for tensor in outputs:
        if (owner := watch.owners.get(_memory(tensor))) is not None:
            owner.others.append("the result")
    return Seen(watch.uses, watch.norm_calls, outputs)


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor in lists, tuples, mappings and dataclasses, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            yield from tensors_in(getattr(value, part.name))


def _memory(tensor: Tensor) -> int:
    """Where a tensor's memory begins; its views have the same. 0 for an empty one."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


class _Watch(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.uses: dict[nn.Module, Use] = {m: Use(m) for m in model.modules() if isinstance(m, CONVOLUTIONS)}
        self.owners: dict[int, Use] = {}
        """Memory of an output to its convolution."""
        self.weights: dict[int, set[nn.Module]] = {}
        """Memory of a weight or bias to the convolutions that have it."""
        self.norm_calls: dict[nn.Module, int] = {}
        self._outputs: dict[int, Tensor] = {}
        """By identity, and kept alive: memory that is freed could be given out again within the pass."""
        self._first: dict[Use, Tensor] = {}
        self._inside: list[nn.Module] = []
        self._looking = True
        for conv in self.uses:
            for parameter in conv.parameters(recurse=False):
                if parameter.numel():
                    self.weights.setdefault(_memory(parameter), set()).add(conv)

    def attach(self, model: nn.Module) -> list[Any]:
        """Hooks that say which convolution or norm is running."""
        handles: list[Any] = []
        for module in model.modules():
            if isinstance(module, CONVOLUTIONS):
                handles.append(module.register_forward_pre_hook(self._before_conv, with_kwargs=True))
                handles.append(module.register_forward_hook(self._after_conv))
            elif isinstance(module, BATCH_NORMS):
                handles.append(module.register_forward_pre_hook(self._before_norm, with_kwargs=True))
                handles.append(module.register_forward_hook(self._after_norm))
        return handles

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._looking:
            for tensor in tree_leaves((args, kwargs or {})):
                if isinstance(tensor, Tensor):
                    self._note(_memory(tensor), func)
        return func(*args, **(kwargs or {}))

    def _note(self, memory: int, operator: Any) -> None:
        owner = self.owners.get(memory)
        if owner is not None and not any(m in owner.norms for m in self._inside):
            owner.others.append(str(operator))
        conflicts = self.weights.get(memory, set())
        if conflicts and not conflicts & set(self._inside):
            for conv in conflicts:
                self.uses[conv].others.append(f"{operator} on its weight")

    def _copied(self, value: Any) -> Any:
        """A copy that nobody is said to have made."""
        self._looking = False
        try:
            return tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, value)
        finally:
            self._looking = True

    def _before_conv(self, conv: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        use = self.uses[conv]
        use.calls += 1
        if use.arguments is None:
            use.arguments = self._copied((args, kwargs))
        self._inside.append(conv)

    def _after_conv(self, conv: nn.Module, _: object, output: Any) -> None:
        self._inside.pop()
        use = self.uses[conv]
        if not isinstance(output, Tensor) or not output.numel():
            use.others.append("no map as its output")
            return
        before = self.owners.setdefault(_memory(output), use)
        if id(output) in self._outputs or before is not use:  # it gives back what it was given, or a part of it
            for both in (before, use):
                both.others.append("another convolution's output in the same memory")
        self._outputs[id(output)] = output
        self._first.setdefault(use, output)

    def _before_norm(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.norm_calls[norm] = self.norm_calls.get(norm, 0) + 1
        self._inside.append(norm)
        if len(args) == 1 and not kwargs and id(args[0]) in self._outputs:
            use = self.owners[_memory(args[0])]
            use.norms[norm] = use.norms.get(norm, 0) + 1

    def _after_norm(self, norm: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._inside.pop()
        use = self.owners.get(_memory(args[0])) if args and isinstance(args[0], Tensor) else None
        if use is not None and use.normed is None and args[0] is self._first.get(use) and isinstance(output, Tensor):
            use.normed = self._copied(output)
