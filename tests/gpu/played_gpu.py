"""A GPU that this machine has not got, played by the processor: what CUDA refuses, it refuses.

Within `played_gpu()` a tensor can be on the device `played`. It holds its values in the processor's memory; an operator that
mixes it with a tensor of the processor raises RuntimeError as CUDA does, but for a number (0 axes) and for an index. What a
kernel computes, how exactly and how fast, only a GPU can tell; that every tensor is made where it is needed can be told
anywhere. The name is registered for the whole process: use it in one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class _Module(_DummyBackendModule):
    """What `torch.played` is: `torch.autocast` asks it."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("played", backend_module=_Module())
DEVICE = torch.device("played", 0)
_MIXING = {
    "aten::_to_copy",
    "aten::copy_",
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
}


class Played(Tensor):
    """A tensor that says it lies on `DEVICE`; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Played:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
            requires_grad=False,
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Played({self.held!r})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees also the calls that have no tensor of ours among their arguments: those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among an operator's arguments, in lists too. Nothing else holds any there; PyTorch's own walks take far longer."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value in which every tensor is what `change` makes of it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([_changed(one, change) for one in value])
    return value


def _held(value: Tensor) -> Tensor:
    return value.held if isinstance(value, Played) else value


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func._schema.name
    given = list(_tensors((*args, *kwargs.values())))
    ours = [value for value in given if isinstance(value, Played)]
    theirs = [value for value in given if not isinstance(value, Played)]
    if ours and name not in _MIXING and any(value.dim() for value in theirs):
        shapes = [tuple(value.shape) for value in theirs if value.dim()]
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {shapes} on the cpu")
    if name.startswith("aten::index") and ours and not isinstance(args[0], Played):
        raise RuntimeError(f"{name}: a tensor of the cpu cannot be indexed by one of {DEVICE}")
    named = kwargs.get("device")
    on_gpu = torch.device(named).type == DEVICE.type if named is not None else bool(ours)
    if name == "aten::copy_":
        on_gpu = isinstance(args[0], Played)
    plain = {key: _changed(value, _held) for key, value in kwargs.items()}
    if named is not None:
        plain["device"] = torch.device("cpu")
    if "pin_memory" in plain:
        plain["pin_memory"] = False
    result = func(*[_changed(value, _held) for value in args], **plain)
    if not on_gpu:
        return result
    # In place: the very tensor that came in.
    same = {id(value.held): value for value in ours}

    def wrap(value: Tensor) -> Tensor:
        return value if isinstance(value, Played) else same[id(value)] if id(value) in same else Played(value)

    return _changed(result, wrap)


@contextmanager
def played_gpu() -> Iterator[torch.device]:
    """Within it, tensors can be on `played`."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Mode():
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
