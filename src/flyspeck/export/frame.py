"""What stands around the network's graph in a file, so that it takes any image and answers in that image's pixels.

Before it: the enlargement or squeeze of the training (`flyspeck.data.enlarge`: Pillow's bilinear filter, side by side, whole
numbers of 8-bit pixels between), and the mean of each band up to the sides that `Detector.divisor` and `.smallest_side` ask
for. After it: boxes back in pixels of the image, clipped to it, those without area gone, best first. All of it in standard
operators: a plain runtime gives what `flyspeck predict` gives of one tile. An image that needs no padding goes through as it is.

`predict` cuts tiles in enlarged pixels and so enlarges by itself: it turns off what is inside (`flyspeck.infer.enlarging`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flyspeck.data.enlarge import Enlarge
from flyspeck.export.graph import INPUT, OUTPUTS
from flyspeck.infer.enlarging import RESAMPLE, RESAMPLED
from flyspeck.infer.padding import BLACK, Fill
from flyspeck.models.detector import Detector

PREFIX = "frame/"
"""Begins the names of what is added here."""
_BOOL, _FLOAT, _DOUBLE, _UINT8, _INT64 = 9, 1, 11, 2, 7  # onnx.TensorProto's numbers
_DIGIT = 2048.0
"""Pillow's weights of 8-bit pixels add up to 2^22: two digits of 11 bits."""


@dataclass(frozen=True)
class Frame:
    """What the network asks of its input."""

    divisor: int
    smallest: int
    fill: Fill = BLACK
    """What pads, see `flyspeck.infer.padding.extended`."""
    enlarge: Enlarge = field(default_factory=Enlarge)
    """How the training saw its images."""

    @classmethod
    def of(cls, detector: Detector, enlarge: Enlarge) -> Frame:
        """That of a detector."""
        return cls(detector.divisor, detector.smallest_side, detector.pixel_norm.fill, enlarge)


def framed(core: Any, frame: Frame, *, switch: bool = True) -> Any:
    """A copy of an `onnx.ModelProto`, its `windows` and, where it has them, its `graph.OUTPUTS` in their frame.

    `switch`: the enlargement is a branch, taken where the constant `RESAMPLE` says so.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(core)
    graph = model.graph
    outputs = [value.name for value in graph.output]
    own, before, after = list(graph.node), Nodes("before/"), Nodes("after/")
    image, enlarges = INPUT, frame.enlarge.changes
    native = before.sides(INPUT)
    floats = graph.input[0].type.tensor_type.elem_type == _FLOAT
    if enlarges:
        image = _enlarged(before, frame.enlarge, native, floats=floats, switch=switch)
    seen = before.sides(image) if enlarges else native
    if frame.divisor > 1 or frame.smallest > 1:
        image = _padded(before, frame, image, seen, floats=floats)
    renamed = {INPUT: image} if image != INPUT else {}
    if tuple(outputs) == OUTPUTS:
        renamed |= {name: f"{PREFIX}inner/{name}" for name in OUTPUTS}
        _answer(after, native, seen if enlarges else None)
    for node in own:
        _rename(node, renamed)
    del graph.node[:]
    graph.node.extend(_needed([*before.nodes, *own, *after.nodes], outputs))
    graph.initializer.extend([*before.values, *after.values])
    if enlarges and switch:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), RESAMPLE))
    del graph.value_info[:]  # they tell of the sizes that the network had without a frame
    return model


class Nodes:
    """ONNX nodes by calls: `nodes("Add", a, b)` is the name of the sum of what is named `a` and `b`."""

    def __init__(self, scope: str) -> None:
        self.nodes: list[Any] = []
        self.values: list[Any] = []
        self._scope = PREFIX + scope

    def __call__(self, kind: str, *inputs: str | int | float, name: str = "", **attributes: Any) -> str:
        """What comes out of a node; whole numbers among the inputs are int64 constants, others float32 ones."""
        import onnx

        names = [value if isinstance(value, str) else self.value(value) for value in inputs]
        output = name or f"{self._scope}{kind}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, names, [output], name=output, **attributes))
        return output

    def value(self, given: Any) -> str:
        """A constant: an array, numbers, or one number."""
        import onnx

        array = np.asarray(given)
        kept = array.astype(np.float32) if isinstance(given, float) else array
        name = f"{self._scope}value{len(self.values)}"
        self.values.append(onnx.numpy_helper.from_array(kept, name))
        return name

    def whole(self, value: str, by: str | int) -> str:
        """A quotient of whole numbers, rounded down: the remainder goes first, since engines round what is left otherwise."""
        return self("Div", self("Sub", value, self("Mod", value, by)), by)

    def sides(self, image: str) -> str:
        """`(2,)` int64, height and width of `(B, H, W, C)`."""
        return self("Slice", self("Shape", image), self.value([1]), self.value([3]))


def _enlarged(nodes: Nodes, rule: Enlarge, native: str, *, floats: bool, switch: bool) -> str:
    """The windows as large as the training saw them, of their own type."""
    import onnx

    inner = Nodes("resample/") if switch else nodes
    sizes = _sizes(inner, rule, native)
    # Whole factors have Pillow's very numbers in ONNX's own operator, which knows its smoothing filter otherwise.
    plain = rule.squeeze is None and rule.short_side is None and rule.factor >= 1 and rule.factor == int(rule.factor)
    image = inner("Cast", INPUT, to=_FLOAT)
    for axis in (2, 1):  # as Pillow goes: rows first
        before, side = _part(inner, native, axis - 1), sizes[axis - 1]
        if plain:
            how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "axes": [axis]}
            image = inner("Resize", image, "", "", side, **how)
            image = image if floats else inner("Floor", inner("Add", image, 0.5))
        else:
            image = _filtered(inner, image, before, side, axis, floats=floats)
    name = RESAMPLED if not switch else ""
    image = inner("Cast", image, to=_FLOAT if floats else _UINT8, name=name)
    if not switch:
        return image

    def branch(title: str, part: Nodes, output: str) -> Any:
        told = onnx.helper.make_empty_tensor_value_info(output)
        return onnx.helper.make_graph(part.nodes, title, [], [told], part.values)

    as_it_is = Nodes("whole/")
    left = as_it_is("Identity", INPUT)
    branches = {"then_branch": branch("resampled", inner, image), "else_branch": branch("whole", as_it_is, left)}
    return nodes("If", RESAMPLE, name=RESAMPLED, **branches)


def _part(nodes: Nodes, sides: str, place: int) -> str:
    """`(1,)`, one of two sides."""
    return nodes("Slice", sides, nodes.value([place]), nodes.value([place + 1]))


def _sizes(nodes: Nodes, rule: Enlarge, native: str) -> tuple[str, str]:
    """Height and width, `(1,)` int64 each, that `Enlarge.size` gives for the sides `native`: the same operations in float64."""
    if rule.squeeze is not None:
        return nodes.value([rule.squeeze[0]]), nodes.value([rule.squeeze[1]])
    if rule.short_side is None and rule.factor == int(rule.factor):
        larger = nodes("Mul", native, int(rule.factor))  # exact, whatever precision an engine takes for fractions
        return _part(nodes, larger, 0), _part(nodes, larger, 1)
    sides = nodes("Cast", native, to=_DOUBLE)
    scale = nodes.value(np.array([rule.factor], np.float64))
    if rule.short_side is not None:
        scale = nodes("Div", nodes.value(np.array([rule.short_side], np.float64)), nodes("ReduceMin", sides))
        if rule.long_side is not None:
            other = nodes("Div", nodes.value(np.array([rule.long_side], np.float64)), nodes("ReduceMax", sides))
            scale = nodes("Min", scale, other)
    rounded = nodes("Cast", nodes("Round", nodes("Mul", sides, scale)), to=_INT64)
    least = nodes("Max", rounded, 1)
    return _part(nodes, least, 0), _part(nodes, least, 1)


def _filtered(nodes: Nodes, image: str, before: str, after: str, axis: int, *, floats: bool) -> str:
    """`(B, H, W, C)` float32, `after (1,)` cells in place of `before (1,)` along an axis: a triangle as wide as a cell, or wider.

    Cell o of the new side has its middle at (2 o + 1) before / (2 after) and looks `wide = max(before, after) / after` to
    either side. Positions are whole numbers, in units of 1 / (2 after): no precision that an engine may choose moves them. The
    weights of 8-bit pixels are whole numbers of 1 / 2^22, as Pillow's, so that halves are rounded as it rounds them.
    """
    wide = nodes("Max", before, after)
    unit = nodes("Mul", after, 2)
    zero, one = nodes.value(0), nodes.value(1)
    cells = nodes("Range", zero, nodes("Squeeze", after), one)
    middle = nodes("Mul", nodes("Add", nodes("Mul", cells, 2), 1), before)  # (after,)
    first = nodes.whole(nodes("Sub", middle, nodes("Mul", wide, 2)), unit)
    spread = nodes.whole(nodes("Mul", wide, 2), after)  # both sides in cells, rounded down
    number = nodes("Add", nodes("Squeeze", spread), 2)
    taps = nodes("Add", nodes("Unsqueeze", first, nodes.value([1])), nodes("Range", zero, number, one))  # (after, k)
    place = nodes("Mul", nodes("Add", nodes("Mul", taps, 2), 1), after)
    away = nodes("Abs", nodes("Sub", place, nodes("Unsqueeze", middle, nodes.value([1]))))
    weight = nodes("Max", nodes("Sub", nodes("Mul", wide, 2), away), 0)
    last = nodes("Sub", before, 1)
    inside = nodes("Min", nodes("Max", taps, 0), last)
    weight = nodes("Cast", nodes("Where", nodes("Equal", inside, taps), weight, 0), to=_FLOAT)
    total = nodes("ReduceSum", weight, nodes.value([1]))
    taken, ahead = nodes("Gather", image, inside, axis=axis), [2] if axis == 2 else [2, 3]

    def mixed(weights: str) -> str:
        product = nodes("Mul", taken, nodes("Unsqueeze", weights, nodes.value(ahead)))
        return nodes("ReduceSum", product, nodes.value([axis + 1]), keepdims=0)

    if floats:
        return mixed(nodes("Div", weight, total))
    # Both digits of a weight, and their sums, are whole numbers that float32 holds.
    scaled = nodes("Mul", weight, _DIGIT)
    high = nodes("Floor", nodes("Div", scaled, total))
    left = nodes("Mul", nodes("Sub", scaled, nodes("Mul", high, total)), _DIGIT)
    low = nodes("Floor", nodes("Div", nodes("Add", left, nodes("Mul", total, 0.5)), total))
    carry = nodes("Floor", nodes("Mul", mixed(low), 1 / _DIGIT))
    return nodes("Floor", nodes("Mul", nodes("Add", nodes("Add", mixed(high), _DIGIT / 2), carry), 1 / _DIGIT))


def _padded(nodes: Nodes, frame: Frame, image: str, sides: str, *, floats: bool) -> str:
    """See `flyspeck.data.padding.padded_side` and `flyspeck.infer.padding.extended`."""
    least = nodes("Max", sides, frame.smallest) if frame.smallest > 1 else sides
    whole = nodes("Mul", nodes.whole(nodes("Add", least, frame.divisor - 1), frame.divisor), frame.divisor)
    none = nodes.value([0])
    pads = nodes("Concat", nodes.value([0] * 5), nodes("Sub", whole, sides), none, axis=0)
    # As 16-bit windows are padded before they come here as floats in units of 8 bits.
    fill = (
        (np.round(257 * np.array(frame.fill)) / 257).astype(np.float32)
        if floats
        else np.round(frame.fill).astype(np.uint8)
    )
    if len(set(fill.tolist())) == 1:
        return nodes("Pad", image, pads, nodes.value(fill[0]), mode="constant")
    bands = []
    for band, value in enumerate(fill):  # the operator has one value for all
        one = nodes("Slice", image, nodes.value([band]), nodes.value([band + 1]), nodes.value([3]))
        bands.append(nodes("Pad", one, pads, nodes.value(value), mode="constant"))
    return nodes("Concat", *bands, axis=3)


def _answer(nodes: Nodes, native: str, seen: str | None) -> None:
    """The network's outputs in pixels of the image, `native` (H, W) large and `seen` as `seen`: see `infer.padding.within`."""
    boxes, scores, labels, _ = (f"{PREFIX}inner/{name}" for name in OUTPUTS)
    swapped = nodes("Gather", native, nodes.value([1, 0, 1, 0]))
    limits = nodes("Cast", swapped, to=_FLOAT)
    if seen is not None:
        other = nodes("Cast", nodes("Gather", seen, nodes.value([1, 0, 1, 0])), to=_FLOAT)
        boxes = nodes("Mul", boxes, nodes("Div", limits, other))
    boxes = nodes("Min", nodes("Max", boxes, 0.0), limits)
    start, end = (nodes("Slice", boxes, *map(nodes.value, ([low], [low + 2], [2]))) for low in (0, 2))
    empty = nodes("Cast", nodes("LessOrEqual", end, start), to=_FLOAT)
    gone = nodes("Cast", nodes("ReduceMax", empty, nodes.value([2]), keepdims=0), to=_BOOL)
    scores = nodes("Where", gone, 0.0, scores)
    number = nodes("Shape", scores, start=1, end=2)
    order = f"{PREFIX}after/order"
    import onnx

    nodes.nodes.append(onnx.helper.make_node("TopK", [scores, number], ["scores", order], name="scores", axis=1))
    corners = nodes("Expand", nodes("Unsqueeze", order, nodes.value([2])), nodes.value([1, 1, 4]))
    nodes("GatherElements", boxes, corners, axis=1, name="boxes")
    nodes("GatherElements", labels, order, axis=1, name="labels")
    positive = nodes("Cast", nodes("Greater", "scores", 0.0), to=_INT64)
    nodes("ReduceSum", positive, nodes.value([1]), keepdims=0, name="counts")


def _rename(node: Any, names: Mapping[str, str]) -> None:
    """In place: what a node takes and gives."""
    for side in (node.input, node.output):
        for i, value in enumerate(side):
            side[i] = names.get(value, value)


def _needed(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """Those of `nodes`, in their order, that `outputs` depend on."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(_taken(node))
            kept.append(node)
    return kept[::-1]


def _taken(node: Any) -> Iterator[str]:
    """What a node takes, its branches included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _taken(inner)
