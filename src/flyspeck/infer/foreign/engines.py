"""The engines that run other programs' graphs: ONNX Runtime and OpenVINO, through the sessions of exported models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.infer.exported import Session
from flyspeck.infer.foreign.graph_ports import Graph, Port, Ports
from flyspeck.infer.onnx_model import OnnxSession
from flyspeck.infer.openvino_model import OpenVinoSession

_SAME = {"pred_logits": "logits"}
"""Names that some exports give to what others call otherwise (D-FINE, RT-DETR)."""
_ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
_OPENVINO_TYPES = {"f32": "float32", "f16": "float16", "f64": "float64", "u8": "uint8", "i64": "int64", "i32": "int32"}


class SessionGraph(Graph):
    """A graph that is open in an engine."""

    def __init__(self, session: Session) -> None:
        self._session, self.path = session, session.path
        if isinstance(session, OnnxSession):
            self.ports = _onnx_ports(session)
        elif isinstance(session, OpenVinoSession):
            self.ports = _openvino_ports(session)
        else:
            raise TypeError(f"no ports of a {type(session).__name__}")
        self.threads = session.threads

    def split(self, passes: int) -> None:
        """See `Graph.split`."""
        self._session.split(passes)

    def take_bytes(self, *, scale: float, mean: Sequence[float], std: Sequence[float]) -> bool:
        """See `Graph.take_bytes`; OpenVINO builds it in."""
        session, image = self._session, self.ports.image
        if not isinstance(session, OpenVinoSession) or len(image.shape) != 4 or image.dtype != np.float32:
            return False
        place = self.ports.inputs.index(image)
        session.take_bytes(place, channels_last=self.ports.channels_last, scale=scale, mean=mean, std=std)
        self.ports = _openvino_ports(session, names=[port.name for port in self.ports.inputs])
        return True

    def run(self, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """See `Graph.run`."""
        found = self._session.run(inputs)
        return {port.name: array for port, array in zip(self.ports.outputs, found, strict=True)}


def _onnx_ports(session: OnnxSession) -> Ports:
    engine = session.engine

    def port(value: Any) -> Port:
        sides = tuple(side if isinstance(side, int) else None for side in value.shape)
        return Port(str(_SAME.get(value.name, value.name)), sides, np.dtype(_ONNX_TYPES.get(value.type, "float32")))

    return Ports(
        inputs=tuple(map(port, engine.get_inputs())),
        outputs=tuple(map(port, engine.get_outputs())),
        metadata=dict(engine.get_modelmeta().custom_metadata_map),
        operators=_operators(session.path),
    )


def _operators(path: Path) -> frozenset[str]:
    """Kinds of operators in an ONNX file; none where the package `onnx` is not installed."""
    try:
        import onnx
    except ImportError:
        return frozenset()
    return frozenset(node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node)


def _openvino_ports(session: OpenVinoSession, names: Sequence[str] = ()) -> Ports:
    """`names` of the inputs, where they are known from before."""
    model = session.model

    def port(value: Any, number: int, kind: str) -> Port:
        name = next(iter(sorted(value.get_names())), f"{kind} {number}")
        sides = tuple(side.get_length() if side.is_static else None for side in value.get_partial_shape())
        return Port(
            _SAME.get(name, name),
            sides,
            np.dtype(_OPENVINO_TYPES.get(value.get_element_type().get_type_name(), "float32")),
        )

    metadata = {}
    for key in ("names", "imgsz", "stride", "task"):
        for section in ([key], ["model_info", key], ["framework", key]):
            if model.has_rt_info(section):
                metadata[key] = str(model.get_rt_info(section).astype(str))
                break
    return Ports(
        inputs=tuple(
            replace(port(value, number, "input"), **({"name": names[number]} if names else {}))
            for number, value in enumerate(model.inputs)
        ),
        outputs=tuple(port(value, number, "output") for number, value in enumerate(model.outputs)),
        metadata=metadata,
        operators=frozenset(operation.get_type_name() for operation in model.get_ops()),
    )
