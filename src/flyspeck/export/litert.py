"""A detector for small boards: one `.tflite` file for LiteRT, in float32 or with INT8 networks, that finds the same boxes.

LiteRT compiles for one size, so the file takes one window of one size at a time, and it has no suppression and no RoIAlign: the
detector is cut there (`export.stages`) and the file's plan says what is run between its networks. It is converted by
litert-torch, and quantised, where asked for, by the quantiser that comes with it: activations and weights in INT8, ranges
measured on tiles, weights scaled per channel. As in ONNX (`export.quantize`), what is quantised is the network up to, and
without, the convolutions that give scores and offsets.

The parity rule is that of every format: no file is kept that finds other boxes than the detector. What it is held to is the
detector on the same padded windows, since a file of one size pads what is smaller.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyspeck.data.bands import rule_of
from flyspeck.data.images import match_channels
from flyspeck.data.padding import padded_side
from flyspeck.errors import UserError, counted, missing_extra
from flyspeck.export.check_images import detect, tiles_of
from flyspeck.export.graph import DetectorGraph
from flyspeck.export.onnx import describe
from flyspeck.export.parity import ap_table, compare
from flyspeck.export.proof import (
    Exported,
    ExportOptions,
    accuracy,
    check_options,
    detector_rule,
    image_sets,
    prepared,
    require_parity,
)
from flyspeck.export.stages import Stages, cut
from flyspeck.export.undecided import asked_again
from flyspeck.infer.engines import open_exported
from flyspeck.infer.litert_model import ENTRY, LABELS, LiteRTModel
from flyspeck.infer.padding import extended
from flyspeck.infer.shown import KEY as SHOWN
from flyspeck.infer.shown import Showing
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.router import FactorRouter
from flyspeck.train.build import load_for_use
from flyspeck.types import Detections, ImageBatch

Say = Callable[[str], None]
KINDS = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "ADD",
    "CONCATENATION",
    "MAX_POOL_2D",
    "RELU",
    "PAD",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
)
"""Operators with integer kernels, or through which integers pass."""
_WITH_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D")


def export_litert(run: Path, out: Path, options: ExportOptions, *, say: Say = print) -> Exported:
    """Writes `out` if it finds the detector's boxes on real images; else raises UserError and leaves nothing.

    INT8 finds other boxes by its nature: it is written after the float32 file has passed, with what it costs by size bin.
    """
    check_options(out, options)
    _require_converter(options.int8)
    detector, description = load_for_use(run, options.suppression)
    detector = prepared(detector, options)
    if isinstance(detector.router, FactorRouter):
        raise UserError(
            "a detector that chooses its factor has no LiteRT form",
            where="--to litert",
            fix="add --factor, as in --factor 0.5",
        )
    checked, calibrated = image_sets(run, options, detector.classes)
    rule, bits = detector_rule(detector), options.bits or rule_of(description).bits
    size = _size(detector, options.tile or description["training_size"])
    description = {**description, "training_size": list(options.tile or description["training_size"])}
    showing = Showing.of(description)
    if showing is not None:
        description[SHOWN] = showing.within(size, description).to_dict()
    say(f"cutting {description.get('model', {}).get('name') or 'the detector'} for windows of {size[0]}x{size[1]}")
    stages = cut_detector(detector, size, bits=bits)
    told = {**describe(detector, description, bits=bits), "batch": 1, "size": list(size)}
    told |= {"steps": stages.steps, "result": stages.result}
    say("converting to LiteRT")
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.part{out.suffix}")
    try:
        network = convert(stages)
        write_litert(network, temporary, told)
        say(f"checking on {counted(len(checked.paths), 'image')} of {checked.name}")
        model = PaddedModel(detector, size)

        def look() -> tuple[list[Detections], list[Detections]]:
            return detect(model, checked, description, score=rule.score)

        eager, reference = look()
        found, windows = detect(open_exported(temporary, device="cpu"), checked, description, score=rule.score)
        difference = compare(reference, windows, rule, again=lambda: asked_again(model.detector, lambda: look()[1]))
        ap = accuracy(checked, eager=eager, exported=found)
        say(difference.text)
        require_parity(difference, difference, ap, out)
        told["parity"] = {"images": len(checked.paths), "sizes": [list(size)], **difference.to_dict(), "ap50": ap}
        if options.int8:
            tiles = tiles_of(calibrated, told, limit=options.calibration_tiles)
            say(f"calibrating INT8 on {counted(len(tiles), 'tile')} of {calibrated.name}")
            network = quantise(network, _seen_by_networks(temporary, tiles))
            told |= {"precision": "int8", "calibration_tiles": len(tiles)}
            write_litert(network, temporary, told)
            found, _ = detect(open_exported(temporary, device="cpu"), checked, description, score=rule.score)
            ap = accuracy(checked, eager=eager, int8=found)
            say(f"INT8 finds {counted(sum(map(len, found)), 'box')} where float32 finds {sum(map(len, eager))}")
            if ap:
                told["int8_ap50"] = ap
        say(ap_table(ap) if ap else "accuracy cannot be stated: the images have no annotations")
        write_litert(network, temporary, told)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(out, difference, ap)


class PaddedModel(TorchModel):
    """The detector on windows that are padded to one size: what a file of that size is held to."""

    def __init__(self, detector: Detector, size: tuple[int, int]) -> None:
        super().__init__(detector, device="cpu")
        self._size = size

    def to_images(self, windows: list[np.ndarray]) -> ImageBatch:
        """See `TorchModel.to_images`."""
        height, width = self._size
        whole = [
            extended(match_channels(w, self.channels), ((0, height - w.shape[0]), (0, width - w.shape[1])), self.fill)
            for w in windows
        ]
        return super().to_images(whole)


def _size(detector: Detector, tile: Sequence[int]) -> tuple[int, int]:
    """(H, W) of the window: the tile, padded as the detector wants it."""
    height, width = (padded_side(int(s), divisor=detector.divisor, smallest=detector.smallest_side) for s in tile)
    return height, width


def cut_detector(detector: Detector, size: tuple[int, int], *, bits: int = 8) -> Stages:
    """The networks and the plan of a detector for one window of `size` (H, W)."""
    graph = DetectorGraph(detector).eval()
    dtype = torch.uint8 if bits == 8 else torch.float32
    return cut(graph, torch.zeros(1, *size, graph.mean.shape[1], dtype=dtype))


def _require_converter(int8: bool) -> None:
    try:
        with _quiet():
            import litert_torch  # noqa: F401

            if int8:
                import ai_edge_quantizer  # noqa: F401
    except ImportError as error:
        raise missing_extra((error.name or "litert_torch").replace("_", "-"), "litert") from None


def convert(stages: Stages) -> bytes:
    """The networks as the bytes of one LiteRT model, each a signature of its name.

    Raises UserError for what has no operator there.
    """
    import litert_torch

    converter: Any = None
    for name, network in stages.networks.items():
        add = litert_torch.signature if converter is None else converter.signature
        converter = add(name, network, stages.examples[name])
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.tflite"
        try:
            converter.convert().export(str(path))
        except Exception as error:  # the converter has no common base of its errors
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the network holds what LiteRT has no operator for ({reason})", where="model", fix="export to ONNX"
            ) from error
        return path.read_bytes()


def write_litert(network: bytes, path: Path, description: Mapping[str, Any]) -> None:
    """The model as a file, with its description and its classes in a zip archive behind it, as associated files are stored."""
    try:
        path.write_bytes(network)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(ENTRY, json.dumps(description))
            archive.writestr(LABELS, "".join(f"{name}\n" for name in description["classes"]))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"could not be written ({reason})", where=path.parent, fix="free some space") from error


def _seen_by_networks(path: Path, tiles: Sequence[np.ndarray]) -> dict[str, list[dict[str, np.ndarray]]]:
    """What each network of a file takes while it looks at `tiles`."""
    model = open_exported(path, device="cpu")
    assert isinstance(model, LiteRTModel)
    seen: dict[str, list[dict[str, np.ndarray]]] = {}
    model.watch = lambda name, inputs: seen.setdefault(name, []).append(inputs)
    for tile in tiles:
        model([tile])
    return seen


def quantise(network: bytes, seen: Mapping[str, list[dict[str, np.ndarray]]]) -> bytes:
    """The INT8 form of a LiteRT model, calibrated on the inputs that its networks have seen."""
    from ai_edge_quantizer import qtyping, quantizer

    if not any(seen.values()):
        raise UserError("no images to calibrate on", fix="give some with --calibrate")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.tflite"
        path.write_bytes(network)
        job = quantizer.Quantizer(str(path))
        for kind, scope in _quantised_operators(network):
            job.add_static_config(scope, qtyping.TFLOperationName(kind), activation_num_bits=8, weight_num_bits=8)
        measured = job.calibrate({name: list(inputs) for name, inputs in seen.items()}, num_threads=1)
        return bytes(job.quantize(measured, enable_progress_report=False).quantized_model)


def _quantised_operators(network: bytes) -> list[tuple[str, str]]:
    """Kind and scope (a pattern of the names of its outputs) of each operator to quantise.

    Of the kinds above those whose result still goes through a convolution, and the linear layers whose result still goes through
    another.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    model = schema.Model.GetRootAsModel(network, 0)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    kinds = [names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes]
    chosen = []
    for number in range(model.SubgraphsLength()):
        part = model.Subgraphs(number)
        rows = [part.Operators(i) for i in range(part.OperatorsLength())]
        nodes = [(kinds[r.OpcodeIndex()], set(r.InputsAsNumpy().tolist()), r.OutputsAsNumpy().tolist()) for r in rows]
        producer = {output: node for node in nodes for output in node[2]}
        convolved = _before([n for n in nodes if n[0] in _WITH_WEIGHTS], producer)
        linear = _before([n for n in nodes if n[0] == "FULLY_CONNECTED"], producer)
        for kind, _, outputs in nodes:
            if kind in KINDS and (outputs[0] in convolved or (kind == "FULLY_CONNECTED" and outputs[0] in linear)):
                scope = ";".join(part.Tensors(output).Name().decode() for output in outputs)
                chosen.append((kind, f"^{re.escape(scope)};?$"))
    return chosen


def _before(ends: Sequence[Any], producer: Mapping[int, Any]) -> set[int]:
    """Values that some of the operators `ends` depends on."""
    found: set[int] = set()
    waiting = [value for _, inputs, _ in ends for value in inputs]
    while waiting:
        value = waiting.pop()
        if value in producer and value not in found:
            found.add(value)
            waiting.extend(producer[value][1])
    return found


@contextlib.contextmanager
def _quiet() -> Any:
    """What the converter says of its own steps is about itself; what it makes is checked afterwards."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
