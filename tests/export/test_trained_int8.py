"""A run that was trained for INT8 becomes the integers that it was trained with, in ONNX and in OpenVINO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_exports import make_detector, write_run

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.export.graph import DetectorGraph
from flyspeck.export.onnx import trace
from flyspeck.export.proof import ExportOptions, prepared, require_trained_int8
from flyspeck.export.quantize import quantise
from flyspeck.infer.exported import KEY
from flyspeck.models.detector import Detector
from flyspeck.models.fake_quantised import FakeQuantised, fake_quantise, input_ranges, is_fake_quantised
from flyspeck.train.build import load_described
from flyspeck.train.checkpoint import save_weights
from flyspeck.types import ImageBatch

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a detector that rounds, whose ranges are those of one batch."""
    folder = write_run(tmp_path_factory.mktemp("int8") / "run", "fcos:resnet18", norm="bn", head={"depth": 1})
    detector, description = load_described(folder)
    fake_quantise(detector)
    see(detector)
    description["model"] = {**description["model"], "quantised": True}
    save_weights(folder / "best.safetensors", detector.state_dict(), description)
    return folder


def see(detector: Detector) -> None:
    """Lets the layers that round, and nothing else, take in what a batch shows."""
    for layer in detector.eval().modules():
        if isinstance(layer, FakeQuantised):
            layer.training = True
    generator = torch.Generator().manual_seed(0)
    images = ImageBatch(torch.rand(2, 3, 64, 96, generator=generator), ((64, 96),) * 2)
    maps = detector.pyramid(images)
    detector.head.dense_part()(maps)
    detector.eval()


def test_the_file_holds_the_integers_and_ranges_of_the_training(run: Path) -> None:
    detector, _ = load_described(run)
    assert is_fake_quantised(detector)
    graph = DetectorGraph(detector)
    ranges = {f"{name}.weight": bounds for name, bounds in input_ranges(graph).items()}
    assert len(ranges) > 20
    batches = [np.random.default_rng(1).integers(0, 256, (1, 64, 96, 3), np.uint8)]
    made = quantise(trace(detector), batches, ranges=ranges)
    values = {one.name: onnx.numpy_helper.to_array(one) for one in made.graph.initializer}
    producer = {name: node for node in made.graph.node for name in node.output}
    weights = dict(graph.named_parameters())
    seen = 0
    for node in made.graph.node:
        if node.op_type != "Conv" or producer.get(node.input[1]) is None:
            continue
        weight, taken = producer[node.input[1]], producer[node.input[0]]
        name = weight.input[0].removesuffix("_quantized")
        if name not in ranges or taken.op_type != "DequantizeLinear":
            continue
        # Weights: as `round_weight` has them, step by step.
        own = weights[name].detach().numpy()
        step = np.abs(own).reshape(len(own), -1).max(1) / 127
        integers = np.round(own / step[:, None, None, None])
        assert np.abs(values[weight.input[0]].astype(np.int64) - integers).max() <= 1
        assert np.mean(values[weight.input[0]] != integers) < 1e-3
        # What the layer takes: the range of the training, not of the batch above.
        low, high = ranges[name]
        assert values[taken.input[1]] == pytest.approx((high - low) / 255, rel=1e-4)
        assert values[taken.input[2]] == round(-low / ((high - low) / 255))
        seen += 1
    assert seen > 20


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["onnx", "xml"])
def test_it_is_exported_with_what_it_costs(
    run: Path, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if ending == "xml":
        pytest.importorskip("openvino")
    out = tmp_path / f"model.{ending}"
    assert main(["export", str(run), "--out", str(out), "--int8"]) == 0
    said = capsys.readouterr()
    assert "the ranges hold that they were trained with" in said.out + said.err
    if ending == "onnx":
        told = json.loads({one.key: one.value for one in onnx.load(out).metadata_props}[KEY])
        assert told["precision"] == "int8"
        assert set(told["int8_ap50"]) == {"eager", "trained", "int8"}
        assert set(told["int8_ap50"]["trained"]) >= {"tiny", "tiny1", "tiny2", "tiny3"}


def test_a_file_of_floats_is_refused_in_a_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "a.onnx")]) == 2
    error = capsys.readouterr().err
    assert "add --int8" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_litert_is_refused_in_a_line(run: Path) -> None:
    with pytest.raises(UserError, match="LiteRT's INT8 has ranges of its own"):
        prepared(load_described(run)[0], ExportOptions(format="litert", int8=True))


def test_a_file_that_finds_less_is_not_kept() -> None:
    ap = {"trained": {"tiny": 0.40}, "int8": {"tiny": 0.38}}
    require_trained_int8(ap, Path("a.onnx"))
    require_trained_int8({}, Path("a.onnx"))
    with pytest.raises(UserError, match=r"0\.3600 in integers, was 0\.4000"):
        require_trained_int8({**ap, "int8": {"tiny": 0.36}}, Path("a.onnx"))


def test_layers_that_take_one_tensor_have_its_widest_range() -> None:
    from flyspeck.export.quantize import learnt_ranges

    # What goes into a ReLU and a pooling, and to nobody else, has the range of what comes out.
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "a.weight"], ["y"]),
        node("Conv", ["x", "b.weight"], ["z"]),
        node("Conv", ["y", "c.weight"], ["w"]),
    ]
    nodes += [node("Relu", ["w"], ["t"]), node("MaxPool", ["t"], ["u"]), node("Conv", ["u", "d.weight"], ["v"])]
    graph = onnx.helper.make_graph(nodes, "g", [], [])
    ranges = {"a.weight": (-1.0, 2.0), "b.weight": (0.0, 3.0), "d.weight": (0.0, 6.0)}
    assert learnt_ranges(onnx.helper.make_model(graph), ranges) == {
        "x": (-1.0, 3.0),
        **dict.fromkeys("utw", (0.0, 6.0)),
    }


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_objects_of_a_few_pixels_pass_the_rounding(side: int) -> None:
    """A spot of so many pixels changes what a detector says at its place, rounded or not."""
    detector, _ = make_detector("fcos:resnet18", norm="bn", head={"depth": 1}, levels="2-5")
    fake_quantise(detector)
    see(detector)
    dark = torch.full((1, 3, 64, 96), 0.4)
    spot = dark.clone()
    spot[..., 30 : 30 + side, 40 : 40 + side] = 0.9
    with torch.no_grad():
        finest = [detector.pyramid(ImageBatch(x, ((64, 96),)))[0] for x in (dark, spot)]
    changed = (finest[1] - finest[0]).abs().amax((0, 1))
    assert changed.max() > 0
    at = int(changed.argmax())
    row, column = divmod(at, changed.shape[1])
    assert abs(4 * row + 2 - 30 - side / 2) <= 16
    assert abs(4 * column + 2 - 40 - side / 2) <= 16
