"""INT8 by static quantisation: ranges of activations are measured on tiles, weights are scaled per channel.

What is quantised is the network up to, and without, the convolutions that give scores and offsets: their numbers are what a
threshold and a box are made of, and they cost next to nothing. Decoding stays in fp32. The result is the same ONNX graph with
QuantizeLinear and DequantizeLinear pairs, which ONNX Runtime, OpenVINO and TensorRT all turn into integer kernels.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.errors import UserError, missing_extra
from flyspeck.export.graph import INPUT

KINDS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "Resize", "Concat", "Clip")
"""Operators with integer kernels, or through which integers pass."""
_PASSING = ("Relu", "Clip", "MaxPool", "Resize")


def quantise(
    model: Any, batches: Sequence[np.ndarray], *, ranges: Mapping[str, tuple[float, float]] | None = None
) -> Any:
    """The INT8 form of an `onnx.ModelProto`, calibrated on `batches`, each `(B, H, W, C)` as the graph takes them.

    `ranges` has what layers take, (low, high), by the name of the layer's weight, where training has learnt it
    (`models.fake_quantised`): it holds in the place of what the batches show.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise missing_extra(error.name or "onnxruntime", "export") from None
    if not batches:
        raise UserError("no images to calibrate on", fix="give some with --calibrate")
    reader: Any = _Tiles(batches)  # by its methods: the base class is in the extra
    with tempfile.TemporaryDirectory() as folder, _errors_only():
        before, prepared, after = (Path(folder) / f"{name}.onnx" for name in ("before", "prepared", "after"))
        before.write_bytes(model.SerializeToString())
        quant_pre_process(before, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared)
        quantize_static(
            prepared,
            after,
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_quantize=network_nodes(graph),
            op_types_to_quantize=list(KINDS),
            extra_options={
                "CalibMovingAverage": True,
                "TensorQuantOverrides": {
                    name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
                    for name, (low, high) in learnt_ranges(graph, ranges or {}).items()
                },
            },
        )
        return onnx.load(after)


def network_nodes(model: Any) -> list[str]:
    """Names of the nodes to quantise: of the kinds above, those whose result still goes through a convolution, and the
    linear layers whose result still goes through another.
    """
    nodes = list(model.graph.node)
    producer = {name: node for node in nodes for name in node.output}
    convolved = _ancestors([n for n in nodes if n.op_type == "Conv"], producer)
    linear = [n for n in nodes if n.op_type in ("Gemm", "MatMul")]
    before_linear = _ancestors(linear, producer)
    chosen = [n for n in nodes if n.op_type in KINDS and n.name in convolved]
    chosen += [n for n in linear if n.name in before_linear and n.name not in convolved]
    return [n.name for n in chosen]


def learnt_ranges(model: Any, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Name of the tensor that a layer takes to its range; `ranges` are by the name of the layer's weight.

    Layers that take the same tensor have seen the same of it but for their own calls: the widest holds. Before a pooling or a
    resize the quantiser has the range of what comes out, and it does without a ReLU whose range ends at 0: what goes into these,
    and to nobody else, has the range of what comes out.
    """
    found: dict[str, tuple[float, float]] = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in ranges:
            continue
        (low, high), name = ranges[node.input[1]], node.input[0]
        before = found.get(name, (low, high))
        found[name] = (min(low, before[0]), max(high, before[1]))
    readers = Counter(name for node in model.graph.node for name in node.input)
    for node in reversed(model.graph.node):
        if node.op_type in _PASSING and node.output[0] in found and readers[node.input[0]] == 1:
            found.setdefault(node.input[0], found[node.output[0]])
    return found


def _ancestors(ends: Sequence[Any], producer: dict[str, Any]) -> set[str]:
    """Names of all nodes that some of `ends` depends on (an end only if another depends on it)."""
    found: set[str] = set()
    waiting = [name for node in ends for name in node.input]
    while waiting:
        node = producer.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting.extend(node.input)
    return found


class _Tiles:
    """What the calibration reads: one batch after another."""

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self._batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}

    def __len__(self) -> int:
        return 1


class _errors_only:
    """The quantiser logs through the root logger, in other people's runs too."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before)
