"""An exported file in a plain runtime takes any image and answers in its pixels, as `flyspeck predict` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.testing import assert_array_equal
from onnx import helper
from tiny_exports import RULE, Exports

from flyspeck.data.enlarge import Enlarge, resample
from flyspeck.export.frame import Frame, Nodes, _enlarged, framed
from flyspeck.export.onnx import write_onnx
from flyspeck.export.openvino import write_openvino
from flyspeck.infer.engines import open_exported
from flyspeck.infer.enlarging import RESAMPLE
from flyspeck.infer.exported import KEY
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.torch_model import TorchModel
from flyspeck.train.build import load_detector
from flyspeck.types import Detections
from same_detections import assert_same_detections

Run = Callable[[np.ndarray], Any]
RULES = [
    Enlarge(),
    Enlarge(1.5),
    Enlarge(2),
    Enlarge(0.6),
    Enlarge(short_side=80, long_side=150),
    Enlarge(squeeze=(96, 64)),
]
SIZES = [(64, 96), (131, 53), (33, 97), (20, 17), (101, 77)]


def noise(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (number, height, width, 3), np.uint8)


def in_openvino(model: Any) -> Run:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    # Processors that have bfloat16 use it unless they are told not to.
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: list(compiled(batch).values())


def in_onnxruntime(model: Any) -> Run:
    session = onnxruntime.InferenceSession(model)
    return lambda batch: session.run(None, {"windows": batch})


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.changes], ids=Enlarge.words)
def test_the_enlargement_inside_gives_the_very_pixels(rule: Enlarge) -> None:
    nodes = Nodes("test/")
    out = _enlarged(nodes, rule, nodes.sides("windows"), floats=False, switch=False)
    values = [
        helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, s)
        for n, s in (("windows", [None] * 3 + [3]), (out, None))
    ]
    graph = helper.make_graph(nodes.nodes, "g", values[:1], values[1:], nodes.values)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    for run in (in_onnxruntime(content), in_openvino(content)):
        for size in (*SIZES, (333, 250)):
            batch = noise(2, *size)
            for image, wanted in zip(run(batch)[0], batch, strict=True):
                assert_array_equal(image, resample(wanted, rule.size(size)), err_msg=f"{rule.words()}, {size}")


@pytest.mark.parametrize("rule", [Enlarge(1.5), Enlarge(2), Enlarge(squeeze=(96, 64))], ids=Enlarge.words)
def test_sixteen_bits_are_enlarged_within_half_a_step(rule: Enlarge) -> None:
    nodes = Nodes("test/")
    out = _enlarged(nodes, rule, nodes.sides("windows"), floats=True, switch=False)
    values = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("windows", [None] * 3 + [3]), (out, None))
    ]
    graph = helper.make_graph(nodes.nodes, "g", values[:1], values[1:], nodes.values)
    run = in_onnxruntime(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )
    for size in SIZES:
        pixels = np.random.default_rng(1).integers(0, 65536, (*size, 3)).astype(np.uint16)
        wanted = resample(pixels, rule.size(size)).astype(np.float32) / 257
        (found,) = run(pixels[None].astype(np.float32) / np.float32(257))[0]
        assert np.abs(found - wanted).max() < 0.51 / 257


@pytest.mark.parametrize(
    ("engine", "rule"),
    [*(("onnx", rule) for rule in RULES), ("openvino", RULES[0]), ("openvino", RULES[1]), ("openvino", RULES[-1])],
    ids=lambda value: value if isinstance(value, str) else value.words(),
)
def test_a_plain_runtime_finds_what_predict_finds(engine: str, rule: Enlarge, exports: Exports, tmp_path: Path) -> None:
    detector = load_detector(exports.run)
    frame, told = Frame.of(detector, rule), open_exported(exports.onnx).description
    if engine == "onnx":
        path = tmp_path / "model.onnx"
        write_onnx(framed(exports.core, frame), path, told)
        onnx.checker.check_model(onnx.load(path))
        run = in_onnxruntime(path)
    else:
        path = tmp_path / "model.xml"
        write_openvino(framed(exports.core, frame, switch=False), path, told)
        run = in_openvino(path)
    eager = TorchModel(detector)
    predictor = Predictor(eager, enlarge=rule, score_threshold=RULE.score)
    for number, size in zip((1, 2, 3, 7, 1), SIZES, strict=True):
        batch = noise(number, *size)
        boxes, scores, labels, counts = run(batch)
        found = [
            Detections(b[:n], s[:n], i[:n], size)
            for b, s, i, n in zip(boxes, scores, labels, counts.tolist(), strict=True)
        ]
        assert_same_detections(found, predictor.predict(list(batch)), box_px=0.02, score=2e-4, rule=RULE)
        assert sum(map(len, found)) > 2
        assert (boxes >= 0).all()
        assert (boxes <= np.array([size[1], size[0]] * 2)).all()
        assert (np.diff(scores, axis=1) <= 0).all()
    # The project's own way in takes windows as they are: it has enlarged them before it cut tiles.
    windows = list(noise(3, 75, 90))
    assert_same_detections(open_exported(path)(windows), eager(windows), box_px=0.02, score=2e-4, rule=RULE)


def test_an_enlargement_is_one_byte_and_nothing_else_changes(exports: Exports) -> None:
    """The file is not touched, and a reader of ONNX turns the same switch."""
    model = onnx.load(exports.onnx)
    (switch,) = [value for value in model.graph.initializer if value.name == RESAMPLE]
    assert onnx.numpy_helper.to_array(switch)
    switch.CopyFrom(onnx.numpy_helper.from_array(np.array(False), RESAMPLE))
    whole = in_onnxruntime(model.SerializeToString())
    mine = open_exported(exports.onnx)
    batch = noise(2, 64, 96)
    for one, other in zip(whole(batch), mine.run(batch), strict=True):  # type: ignore[attr-defined]
        assert_array_equal(one, other)


def test_files_of_format_1_are_padded_and_clipped_by_who_runs_them(exports: Exports, tmp_path: Path) -> None:
    told = {**open_exported(exports.onnx).description, "format": 1}
    write_onnx(exports.core, tmp_path / "old.onnx", told)
    old, eager = open_exported(tmp_path / "old.onnx"), TorchModel(load_detector(exports.run))
    for size in SIZES:
        windows = list(noise(3, *size))
        assert_same_detections(old(windows), eager(windows), box_px=0.02, score=2e-4, rule=RULE)


def test_a_file_without_padding_or_enlargement_has_no_frame_before_it(exports: Exports) -> None:
    bare = framed(exports.core, Frame(1, 1))
    before = [node for node in bare.graph.node if node.name.startswith("frame/before")]
    assert {node.op_type for node in before} <= {"Shape", "Slice"}
    (entry,) = [entry for entry in onnx.load(exports.onnx).metadata_props if entry.key == KEY]
    assert json.loads(entry.value)["format"] == 2
