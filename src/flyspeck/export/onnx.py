"""A detector as one ONNX file: opset 18, standard operators only, sizes free, its description inside."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flyspeck import __version__
from flyspeck.errors import UserError, missing_extra
from flyspeck.export.graph import INPUT, OUTPUTS, DetectorGraph, stride_of
from flyspeck.export.operators import onnx_translations
from flyspeck.infer.exported import FORMAT, KEY
from flyspeck.models.detector import Detector

OPSET = 18
PIXELS = {8: "uint8", 16: "float32"}
_KEPT = ("training_size", "object_side_99", "enlarge", "protocol", "figures", "epoch", "data")


def trace(detector: Detector, *, bits: int = 8) -> Any:
    """The `onnx.ModelProto` of a detector for pictures of `bits` (8, or 16 which also takes 8) a channel."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export") from None
    graph = DetectorGraph(detector).eval()
    # Sizes that differ from each other and from every channel count: no two may be taken for one symbol.
    example = torch.zeros(2, 256, 320, graph.mean.shape[1], dtype=torch.uint8 if bits == 8 else torch.float32)
    free = torch.export.Dim.DYNAMIC
    with torch.no_grad(), warnings.catch_warnings(), _quiet("onnxscript"), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # about torch's own internals: what the graph computes is checked afterwards
        try:
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: free, 1: free, 2: free},),
                custom_translation_table=onnx_translations(),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise UserError(
                f"the network holds what ONNX has no operator for ({reason})", where="model", fix="use the run folder"
            ) from error
    assert program is not None
    return _tidy(program.model_proto)


def describe(detector: Detector, description: Mapping[str, Any], *, bits: int = 8) -> dict[str, Any]:
    """What an exported file says of itself, for JSON: enough to tile, run and judge it without the run folder."""
    norm, rule = detector.pixel_norm, detector.head.suppression
    model = description.get("model")
    return {
        "format": FORMAT,
        "flyspeck": __version__,
        "model": model.get("name", "") if isinstance(model, dict) else "",
        "classes": list(detector.classes),
        "channels": int(norm.mean.shape[1]),
        "pixels": PIXELS[bits],
        "normalisation": {
            "mean": [round(v, 6) for v in norm.mean.flatten().tolist()],
            "std": [round(v, 6) for v in norm.std.flatten().tolist()],
            "units": "shares of 1; done inside the graph",
        },
        "smallest_side": stride_of(detector),
        "suppression": {"score": rule.score, "iou": rule.iou, "max_detections": rule.max_detections},
        "precision": "fp32",
        **{key: description[key] for key in _KEPT if key in description},
    }


def write_onnx(model: Any, path: Path, description: Mapping[str, Any]) -> None:
    """The model as a file, with its description."""
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: json.dumps(description)})
    model.producer_name, model.producer_version = "flyspeck", __version__
    path.write_bytes(model.SerializeToString())


def _tidy(model: Any) -> Any:
    """Without what the exporter notes for its own developers: source lines and file names of this machine."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
    for value, name in zip(model.graph.input[0].type.tensor_type.shape.dim, ("batch", "height", "width"), strict=False):
        value.dim_param = name
    return model


class _quiet:
    """Errors only from a logger, for a while."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)
