"""What a norm layer does after it has normalised (nothing, an activation, or more), as a module of its own.

Some libraries put norm and activation into one layer, a subclass of `nn.BatchNorm2d` (timm's `BatchNormAct2d`), and checkpoints
name its weights as the norm's. To fold such a layer into the convolution before it, what follows the normalisation must stay.
Its `forward` is traced once (`torch.fx`), the call of `F.batch_norm` is cut out of the graph, and the rest remains. A `forward`
that cannot be traced, or that uses its input for anything else, has no such rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

BATCH_NORMS = (nn.BatchNorm2d, TorchvisionFrozenBatchNorm2d)
"""Layers of maps that are, or begin with, a batch norm; their subclasses may go on from there."""

_BATCH_NORM_CALLS: tuple[Callable[..., Any], ...] = (F.batch_norm, torch.batch_norm)
_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def what_follows(norm: nn.Module) -> nn.Module | None:
    """The rest of `norm` after its normalisation: `nn.Identity()` for a plain batch norm; None where there is no telling.

    The modules in it (an activation, say) are those of `norm`, not copies. That the rest is right must be shown by comparing
    outputs: a subclass may normalise in another way than a batch norm of its statistics.
    """
    if type(norm) is TorchvisionFrozenBatchNorm2d or type(norm).forward is nn.BatchNorm2d.forward:
        return nn.Identity()
    try:
        with _evaluating(norm):
            graph = _Shallow().trace(norm)
        return _rest(norm, graph)
    except Exception:  # whatever a stranger's forward does with a traced value: it has no rest that could be named
        return None


class _Shallow(fx.Tracer):
    """Traces a layer's own `forward` and leaves the modules in it whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@contextmanager
def _evaluating(norm: nn.Module) -> Any:
    """In evaluation mode, without the check of the input's dimensions in `nn.BatchNorm2d.forward`: no traced value decides."""
    before = norm.training
    norm.training = False
    norm.__dict__["_check_input_dim"] = _accept
    try:
        yield
    finally:
        norm.training = before
        del norm.__dict__["_check_input_dim"]


def _accept(_: object) -> None:
    """Takes any input."""


def _rest(norm: nn.Module, graph: fx.Graph) -> nn.Module | None:
    graph.eliminate_dead_code(_acts)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    calls = [node for node in graph.nodes if node.op == "call_function" and node.target in _BATCH_NORM_CALLS]
    if len(inputs) != 1 or len(calls) != 1:
        return None
    (x,), (call,) = inputs, calls
    given = {**dict(zip(_ARGUMENTS, call.args, strict=False)), **call.kwargs}
    if given.get("input") is not x or set(x.users) != {call} or given.get("training", False) is not False:
        return None
    call.replace_all_uses_with(x)
    graph.erase_node(call)
    graph.eliminate_dead_code(_acts)
    chain = _chain(norm, [node for node in graph.nodes if node is not x])
    if chain is None:
        return fx.GraphModule(norm, graph)
    modules = [module for module in chain if not isinstance(module, nn.Identity)]
    return nn.Identity() if not modules else modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _acts(node: fx.Node) -> bool:
    """Whether a node whose value nobody takes must stay: all but the reading of attributes and the checks made of it."""
    if node.op != "call_function":
        return node.op != "get_attr"
    return node.target not in (getattr, torch._assert) and getattr(node.target, "__module__", "") != "_operator"


def _chain(norm: nn.Module, nodes: Iterable[fx.Node]) -> list[nn.Module] | None:
    """The modules of a graph that calls one after another and nothing else; None for any other graph."""
    modules: list[nn.Module] = []
    for node in nodes:
        if node.op == "output":
            continue
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs or len(node.users) != 1:
            return None
        modules.append(norm.get_submodule(str(node.target)))
    return modules


def tensor_of(norm: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of either kind of norm, None where it has none."""
    found = norm._parameters.get(name)
    return norm._buffers.get(name) if found is None else found
