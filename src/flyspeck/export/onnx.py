"""A detector as one ONNX file: opset 18, standard operators only, sizes free, its description inside."""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flyspeck.data.bands import KEY as KEY_OF_RULE
from flyspeck.data.ground import KEY as GROUND
from flyspeck.errors import UserError, missing_extra
from flyspeck.evaluate.score_curve import KEY as KEY_OF_SCORES
from flyspeck.export.factors import FactorGraph, PrefixGraph
from flyspeck.export.graph import INPUT, OUTPUTS, DetectorGraph
from flyspeck.export.metadata import conventions
from flyspeck.export.operators import onnx_translations
from flyspeck.infer.exported import ANY_BATCH, FORMAT, KEY
from flyspeck.infer.shown import KEY as KEY_OF_SHOWING
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.router import FactorRouter
from flyspeck.version import VERSION

OPSET = 18
AXES = {
    INPUT: ("batch", "height", "width"),
    **dict.fromkeys(OUTPUTS, ("batch", "detections")),
    "probabilities": ("batch",),
}
"""Names of the free sides of what goes in and comes out; the exporter's are formulas of its symbols."""
PIXELS = {8: "uint8", 16: "float32"}
_KEPT = (
    KEY_OF_RULE,
    "training_size",
    "object_side_99",
    GROUND,
    "enlarge",
    KEY_OF_SHOWING,
    "protocol",
    "metrics",
    KEY_OF_SCORES,
    "epoch",
    "data",
    "plugins",
)


def trace(detector: Detector, *, bits: int = 8) -> Any:
    """The `onnx.ModelProto` of a detector for images of `bits` (8, or 16 which also takes 8) a channel."""
    graph = DetectorGraph(detector).eval()
    return as_onnx(graph, [_example(graph, bits)], inputs=[INPUT], outputs=OUTPUTS)


def trace_factors(detector: Detector, *, bits: int = 8) -> tuple[Any, dict[float, Any]]:
    """The graphs of a detector that chooses its factor: what no factor changes, and one that goes on from it by factor."""
    router = detector.router
    assert isinstance(router, FactorRouter)
    first, rest = PrefixGraph(detector).eval(), {f: FactorGraph(detector, f).eval() for f in router.switch.factors}
    example = _example(first, bits)
    with torch.no_grad():
        _, *maps = first(example)
    names = [f"map{number}" for number in range(len(maps))]
    made = as_onnx(first, [example], inputs=[INPUT], outputs=["probabilities", *names])
    going_on = {
        factor: as_onnx(graph, [example, *maps], inputs=[INPUT, *names], outputs=OUTPUTS)
        for factor, graph in rest.items()
    }
    return made, going_on


def _example(graph: DetectorGraph | PrefixGraph, bits: int) -> torch.Tensor:
    """Sizes that differ from each other and from every channel count: no two may be taken for one symbol."""
    return torch.zeros(2, 256, 320, graph.mean.shape[1], dtype=torch.uint8 if bits == 8 else torch.float32)


def as_onnx(
    graph: torch.nn.Module, examples: Sequence[torch.Tensor], *, inputs: Sequence[str], outputs: Sequence[str]
) -> Any:
    """A module as an `onnx.ModelProto`; of windows batch, height and width are free, of maps all but the channels."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export") from None
    free = torch.export.Dim.DYNAMIC
    shapes = [{0: free, 1: free, 2: free} if name == INPUT else {0: free, 2: free, 3: free} for name in inputs]
    with torch.no_grad(), warnings.catch_warnings(), _quiet("onnxscript"), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # about torch's own internals: what the graph computes is checked afterwards
        try:
            program = torch.onnx.export(
                graph,
                tuple(examples),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=_as_taken(graph, shapes),
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


def _as_taken(graph: torch.nn.Module, shapes: list[dict[int, Any]]) -> tuple[Any, ...]:
    """As the arguments of `forward` are: a starred one (`*maps`) takes all that follow."""
    kinds = [parameter.kind for parameter in inspect.signature(graph.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], tuple(shapes[first:]))


def describe(detector: Detector, description: Mapping[str, Any], *, bits: int = 8) -> dict[str, Any]:
    """What an exported file says of itself, for JSON: enough to tile, run and judge it without the run folder."""
    norm, rule = detector.pixel_norm, detector.head.suppression
    model = description.get("model")
    return {
        "format": FORMAT,
        "flyspeck": VERSION,
        "model": model.get("name", "") if isinstance(model, dict) else "",
        "classes": list(detector.classes),
        "channels": int(norm.mean.shape[1]),
        "pixels": PIXELS[bits],
        "batch": ANY_BATCH,
        "normalisation": {
            "mean": [round(v, 6) for v in norm.mean.flatten().tolist()],
            "std": [round(v, 6) for v in norm.std.flatten().tolist()],
            "units": "shares of 1; done inside the graph",
        },
        "divisor": detector.divisor,
        "smallest_side": detector.smallest_side,
        "fill": [round(value, 3) for value in norm.fill],
        "suppression": {
            "score": rule.score,
            "iou": rule.iou,
            "max_detections": rule.max_detections,
            "method": rule.method,
        },
        "counts_area": detector.counts_area,
        "precision": "fp32",
        **_factors(detector),
        **{key: description[key] for key in _KEPT if key in description},
        **({KEY_OF_RULE: {**description[KEY_OF_RULE], "bits": 8}} if bits == 8 and KEY_OF_RULE in description else {}),
    }


def _factors(detector: Detector) -> dict[str, Any]:
    """What the driver of a detector that chooses its factor has to know."""
    router = detector.router
    if not isinstance(router, FactorRouter):
        return {}
    rule = router.decision
    return {"factors": {"factors": list(router.switch.factors), "rule": rule.rule, "threshold": rule.threshold}}


def write_onnx(model: Any, path: Path, description: Mapping[str, Any]) -> None:
    """The model as a file, with its description."""
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: json.dumps(description), **conventions(description)})
    model.producer_name, model.producer_version = "flyspeck", VERSION
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
    for value in (*model.graph.input, *model.graph.output):
        sides = ("batch", "", f"{value.name}_height", f"{value.name}_width")  # of maps
        for axis, name in zip(value.type.tensor_type.shape.dim, AXES.get(value.name, sides), strict=False):
            if name and not axis.HasField("dim_value"):
                axis.dim_param = name
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
