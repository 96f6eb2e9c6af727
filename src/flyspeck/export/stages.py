"""A detector cut where its work depends on its data: plain networks of fixed shapes, and the few steps between them.

Runtimes of small boards have no suppression and no RoIAlign. `models.batch_decoding` writes these as operators of their own, so a
traced detector can be cut there: what lies before, between and behind them are networks that any runtime takes, and the operators
are run by `infer.array_operators`, or by whoever brings the file to a board. A dense detector has one network before its
suppression; one of two stages has another behind the proposals, and another behind RoIAlign.

The plan of a file says in which order: a list of steps as JSON, each `{"network": name, "inputs": [...], "outputs": [...]}` or
`{"operator": name, "inputs": [...], "outputs": [...]}`. Inputs are names of values, lists of such,
numbers, or constants `{"array": [...], "type": "int64"}`; an output that is not used is null.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from flyspeck.errors import UserError
from flyspeck.export.graph import INPUT, DetectorGraph

OPERATORS = {
    torch.ops.flyspeck.nms_mask.default: "nms_mask",
    torch.ops.flyspeck.pyramid_roi_align.default: "pyramid_roi_align",
    torch.ops.flyspeck.tiny_suppression.default: "tiny_suppression",
}


class Network(nn.Module):
    """One stage as a module of tensors to a tuple of tensors."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph_module = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """As the graph's."""
        return self.graph_module(*inputs)

    def train(self, mode: bool = True) -> Network:
        """A traced graph has one mode."""
        return self


@dataclass(frozen=True)
class Stages:
    """A detector for images of one size, one at a time, as networks and the plan that joins them."""

    networks: dict[str, Network]
    examples: dict[str, tuple[Tensor, ...]]
    """Inputs of each network, of the shapes and types that it takes."""
    steps: list[dict[str, Any]]
    result: list[str]
    """Names of the values that are boxes `(1, D, 4)`, scores `(1, D)`, labels `(1, D)` and counts `(1,)` (`export.graph`)."""
    size: tuple[int, int]
    """(H, W) of the one window `(1, H, W, C)` that goes in."""


def cut(graph: DetectorGraph, window: Tensor) -> Stages:
    """The stages of a detector for windows like `window (1, H, W, C)`, uint8 or float32.

    Raises UserError for a detector with operators that no plan knows.
    """
    with torch.no_grad():
        traced = torch.export.export(graph, (window,)).module()
    assert isinstance(traced, fx.GraphModule)
    return _Cutter(traced, window).stages()


class _Cutter:
    """`stage[node]`: how many operators of a plan lie before a value, on the longest way from the input."""

    def __init__(self, traced: fx.GraphModule, window: Tensor) -> None:
        self.traced, self.window = traced, window
        _without_checks(traced)
        self.stage: dict[fx.Node, int] = {}
        self.operators: list[fx.Node] = []
        for node in traced.graph.nodes:
            before = [self.stage[one] for one in node.all_input_nodes if one in self.stage]
            if node.op == "placeholder":
                self.stage[node] = -1
            elif node.op == "call_function" and node.target in OPERATORS:
                self.operators.append(node)
                self.stage[node] = max(before) + 1
            elif node.op == "call_function" and str(node.target).startswith("flyspeck."):
                raise UserError(
                    f"no runtime of small boards has the operator {node.target}", where="model", fix="export to ONNX"
                )
            elif before and node.op != "output":
                self.stage[node] = self.stage[node.args[0]] if _is_part(node) else max(0, *before)
        self.outputs = list(next(n for n in traced.graph.nodes if n.op == "output").args[0])

    def stages(self) -> Stages:
        """Each stage's network, followed by the operators whose inputs it completes."""
        networks, steps = {}, []
        last = max(self.stage.values())
        for number in range(last + 1):
            wanted = self._wanted(number)
            if wanted:
                name = f"stage{number}"
                module, inputs = self._network(number, wanted)
                networks[name] = module
                steps.append({"network": name, "inputs": inputs, "outputs": [self._name(node) for node in wanted]})
            for node in self.operators:
                if self.stage[node] == number + 1:
                    steps.append(self._operator(node))
        size = (int(self.window.shape[1]), int(self.window.shape[2]))
        result = [self._name(node) for node in self.outputs]
        return Stages(networks, self._examples(networks, steps), steps, result, size)

    def _wanted(self, number: int) -> list[fx.Node]:
        """Values of a stage that are needed outside it."""
        mine = [n for n, stage in self.stage.items() if stage == number and not self._from_operator(n)]
        return [node for node in mine if node in self.outputs or any(self._is_outside(u, number) for u in node.users)]

    def _is_outside(self, user: fx.Node, number: int) -> bool:
        """Whether something that is kept takes a value to an operator or a later stage."""
        return user.target in OPERATORS or self.stage.get(user, number) > number

    def _from_operator(self, node: fx.Node) -> bool:
        """Whether a value, or the tuple that it is a part of, comes from an operator."""
        return node.target in OPERATORS or (_is_part(node) and node.args[0].target in OPERATORS)  # type: ignore[union-attr]

    def _network(self, number: int, wanted: list[fx.Node]) -> tuple[Network, list[str]]:
        """The nodes that `wanted` hang on within the stage; constants are built where they are used."""
        graph, copied = fx.Graph(), {}
        inside = set(
            _needed(wanted, lambda node: self.stage.get(node, number) == number and not self._from_operator(node))
        )
        outside = [node for node in self.stage if node not in inside and any(user in inside for user in node.users)]
        for node in outside:
            copied[node] = graph.placeholder(node.name)
        for node in self.traced.graph.nodes:
            if node in inside:
                copied[node] = graph.node_copy(node, lambda old: copied[old])
        graph.output(tuple(copied[node] for node in wanted))
        return Network(fx.GraphModule(self.traced, graph)), [self._name(node) for node in outside]

    def _operator(self, node: fx.Node) -> dict[str, Any]:
        """A step of the plan; an operator of several results names those that are used."""
        inputs = [map_arg(value, self._given) for value in node.args]
        parts = [user for user in node.users if _is_part(user)]
        outputs: list[str | None] = [node.name]
        if parts:
            outputs = [None] * len(node.meta["val"])
            for part in parts:
                outputs[part.args[1]] = part.name  # type: ignore[index, call-overload]
        return {"operator": OPERATORS[node.target], "inputs": [_plain(v) for v in inputs], "outputs": outputs}  # type: ignore[index]

    def _given(self, node: fx.Node) -> Any:
        """The name of a value, or a constant itself."""
        if node in self.stage:
            return self._name(node)
        graph, copied = fx.Graph(), {}
        inside = set(_needed([node], lambda _: True))
        for one in self.traced.graph.nodes:
            if one in inside:
                copied[one] = graph.node_copy(one, lambda old: copied[old])
        graph.output(copied[node])
        value = fx.GraphModule(self.traced, graph)()
        return {"array": value.tolist(), "type": str(value.dtype).removeprefix("torch.")}

    def _name(self, node: fx.Node) -> str:
        return INPUT if node.op == "placeholder" else node.name

    def _examples(self, networks: dict[str, Network], steps: list[dict[str, Any]]) -> dict[str, tuple[Tensor, ...]]:
        """Blank inputs of each network."""
        shapes = {self._name(node): node.meta["val"] for node in self.stage if "val" in node.meta}
        examples: dict[str, tuple[Tensor, ...]] = {}
        for step in steps:
            if step.get("network") in networks:
                blank = [shapes[name] for name in step["inputs"]]
                examples[step["network"]] = tuple(torch.zeros(list(v.shape), dtype=v.dtype) for v in blank)
        return examples


def _without_checks(traced: fx.GraphModule) -> None:
    """Takes out what checks shapes and types at run time: a plan holds for one size."""
    for node in reversed(traced.graph.nodes):
        if not node.users and (node.op == "call_module" or "_assert" in str(node.target)):
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()


def _is_part(node: fx.Node) -> bool:
    """Whether a node takes one of several results of an operator."""
    return node.target is operator.getitem and node.args[0].target in OPERATORS  # type: ignore[union-attr]


def _needed(ends: Iterable[fx.Node], belongs: Any) -> list[fx.Node]:
    """The nodes that `ends` hang on, themselves among them, as far as they belong."""
    found: dict[fx.Node, None] = {}
    waiting = [node for node in ends]
    while waiting:
        node = waiting.pop()
        if node not in found and belongs(node):
            found[node] = None
            waiting.extend(node.all_input_nodes)
    return list(found)


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
