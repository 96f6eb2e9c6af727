"""The file that is written: the same boxes without torch, its description inside, and nothing where it would be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from tiny_exports import CLASSES, RULE, Exports

import flyspeck
from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.export import package
from flyspeck.export.check_images import named_set, run_sets
from flyspeck.export.onnx import write_onnx
from flyspeck.export.package import export_model
from flyspeck.export.proof import ExportOptions, check_options
from flyspeck.infer.engines import open_exported
from flyspeck.infer.exported import PlainModel
from flyspeck.infer.load import load_model
from flyspeck.infer.torch_model import TorchModel
from flyspeck.train.build import load_detector
from flyspeck.types import Detections
from same_detections import assert_same_detections

SAME = 1e-3


def windows(number: int, height: int, width: int) -> list[np.ndarray]:
    return list(np.random.default_rng(height).integers(0, 256, (number, height, width, 3), np.uint8))


def assert_same(one: list[Detections], other: list[Detections]) -> None:
    assert_same_detections(other, one, box_px=0.05, score=1e-4, rule=RULE, least=6)


def test_any_batch_of_any_size_gives_the_detectors_boxes(exports: Exports) -> None:
    eager, exported = TorchModel(load_detector(exports.run)), open_exported(exports.onnx)
    for number, height, width in ((1, 64, 96), (3, 64, 64), (2, 101, 77), (7, 33, 97)):
        batch = windows(number, height, width)
        assert_same(eager(batch), exported(batch))


def test_the_file_says_what_it_is(exports: Exports) -> None:
    told = open_exported(exports.onnx).description
    assert told["classes"] == list(CLASSES)
    assert told["training_size"] == [64, 96]
    assert told["enlarge"]["factor"] == 1.5
    assert told["normalisation"]["mean"] == [0.4, 0.5, 0.6]
    assert told["protocol"] == "flyspeck"
    assert told["metrics"] == {"ap50_tiny": 0.01}
    assert told["parity"]["images"] == 4
    assert told["parity"]["unmatched"] == 0
    assert told["parity"]["batches"] == [1, 2, 3, 7]
    assert told["batch"] == "any"
    assert told["parity"]["boxes"] > 20
    assert set(told["parity"]["ap50"]) == {"eager", "exported"}
    assert "sides within" in exports.said
    assert str(exports.run) not in exports.onnx.read_bytes().decode("latin1")  # nothing of the machine it was made on


def test_its_suppression_is_part_of_it(exports: Exports, tmp_path: Path) -> None:
    assert load_model(exports.onnx, suppression="tiny")[1]["suppression"]["method"] == "tiny"
    with pytest.raises(UserError, match="--suppression nms"):
        load_model(exports.onnx, suppression="nms")
    done = export_model(
        exports.run, tmp_path / "plain.onnx", ExportOptions(suppression="nms", check_limit=2), say=lambda line: None
    )
    assert load_model(done.path)[1]["suppression"]["method"] == "nms"


def test_operators_are_standard_ones(exports: Exports) -> None:
    import onnx

    model = onnx.load(exports.onnx)
    onnx.checker.check_model(model)
    assert {entry.domain for entry in model.opset_import} == {""}
    kinds = {node.op_type for node in model.graph.node}
    assert "NonMaxSuppression" in kinds
    assert "BatchNormalization" not in kinds
    sides = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert sides == {
        "windows": ["batch", "height", "width", 3],
        "boxes": ["batch", "detections", 4],
        "scores": ["batch", "detections"],
        "labels": ["batch", "detections"],
        "counts": ["batch"],
    }


def test_predict_runs_without_torch(exports: Exports, tmp_path: Path) -> None:
    image = tmp_path / "big.png"
    Image.fromarray(windows(1, 150, 200)[0]).save(image)
    code = (
        "import sys\nsys.modules['torch'] = None\n"  # an import of it would raise
        "from flyspeck.cli.main import main\n"
        f"code = main(['predict', {str(image)!r}, '--model', {str(exports.onnx)!r}, '--out', {str(tmp_path / 'out')!r}])\n"
        "loaded = [n for n in sys.modules if n.split('.')[0] in ('torch', 'torchvision') and sys.modules[n] is not None]\n"
        "assert not loaded, loaded\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tiles of 64x96, overlap 28, scale 1.5" in done.stdout
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    (wanted,) = flyspeck.load_predictor(exports.run).predict(image)
    written = [(f["bbox"], f["score"], f["category_id"] - 1) for f in found]
    boxes, scores, labels = (np.array(column) for column in zip(*written, strict=True))
    written = {
        "boxes": np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
        "scores": scores,
        "labels": labels,
    }
    again = flyspeck.load_predictor(exports.onnx).predict(image)
    # Files hold hundredths of a pixel.
    assert_same_detections([written, *again], [wanted, wanted], box_px=0.05, score=2e-3, rule=RULE, least=6)


def test_openvino_finds_the_same(exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "trace", lambda *_, **__: exports.core)  # traced once is enough
    out = tmp_path / "model.xml"
    done = export_model(exports.run, out, ExportOptions(format="openvino"), say=lambda _: None)
    assert done.difference.same
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    model = open_exported(out)
    assert model.description["parity"]["images"] == 4
    batch = windows(2, 64, 96)
    assert_same(TorchModel(load_detector(exports.run))(batch), model(batch))
    assert len(open_exported(out, precision="bf16")(batch)[0]) > 5


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_int8_states_what_it_costs(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(package, "trace", lambda *_, **__: exports.core)
    said: list[str] = []
    out = tmp_path / f"model.{'onnx' if kind == 'onnx' else 'xml'}"
    options = ExportOptions(format=kind, int8=True, calibration_tiles=3)
    export_model(exports.run, out, options, say=said.append)
    told = open_exported(out).description
    assert told["precision"] == "int8"
    assert told["calibration_tiles"] == 3
    assert set(told["int8_ap50"]) == {"eager", "int8"}
    assert any("int8" in line and "tiny1" in line for line in said)
    weights = out if kind == "onnx" else out.with_suffix(".bin")
    assert weights.stat().st_size < 0.5 * exports.onnx.stat().st_size
    if kind == "onnx":
        import onnx

        kinds = [node.op_type for node in onnx.load(out).graph.node]
        assert kinds.count("QuantizeLinear") > 10


def test_what_finds_other_boxes_is_not_left_there(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    wrong = onnx.ModelProto()
    wrong.CopyFrom(exports.core)
    for tensor in wrong.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.02), tensor.name))
    monkeypatch.setattr(package, "trace", lambda *_, **__: wrong)
    with pytest.raises(UserError, match=r"not exported: boxes differ .*WITHOUT a partner"):
        export_model(exports.run, tmp_path / "model.onnx", ExportOptions(), say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--out m.xml --to onnx",
            "'m.xml' is a name for openvino, and --to says onnx; end it with .onnx, or leave --to out",
        ),
        ("--out m.onnx --to litert", "'m.onnx' is a name for onnx, and --to says litert; end it with .tflite"),
        ("--out m.pb", "'m.pb' says no format; end it with .onnx, .xml (OpenVINO) or .tflite (LiteRT)"),
        ("--out m --to onnx", "'m' says no format; end it with .onnx"),
        ("--out m.ONNX", "nowhere: "),
        ("--out m.xml", "nowhere: "),
        ("--out m.tflite", "nowhere: "),
    ],
)
def test_the_format_is_that_of_the_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flyspeck.export.litert._require_converter", lambda int8: None)
    assert main(["export", "nowhere", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sixteen_bits_need_a_graph_of_floats(exports: Exports, tmp_path: Path) -> None:
    model = open_exported(exports.onnx)
    image = np.zeros((64, 96, 3), np.uint16)
    with pytest.raises(UserError, match="--bits 16"):
        model([image])
    wide = PlainModel.__new__(PlainModel)  # only its conversion is looked at
    wide.__dict__.update(model.__dict__, _pixels=np.dtype("float32"))
    assert_allclose(wide.to_batch([np.full((2, 2, 3), 65535, np.uint16)])[:, :2, :2], 255)
    assert_allclose(wide.to_batch([np.full((2, 2, 3), 255, np.uint8)])[:, :2, :2], 255)


def test_an_image_smaller_than_a_stride_is_padded_as_the_detector_pads_it(exports: Exports) -> None:
    batch = windows(2, 8, 96)
    found = open_exported(exports.onnx)(batch)
    assert all(one.image_size == (8, 96) for one in found)
    wanted = TorchModel(load_detector(exports.run))(batch)
    assert_same_detections(found, wanted, box_px=0.05, score=1e-4, rule=RULE)


def test_bad_files_and_devices(exports: Exports, tmp_path: Path) -> None:
    import onnx

    cut = tmp_path / "cut.onnx"
    cut.write_bytes(exports.onnx.read_bytes()[:5000])
    foreign, newer = tmp_path / "foreign.onnx", tmp_path / "newer.onnx"
    model = onnx.load(exports.onnx)
    write_onnx(model, newer, {**open_exported(exports.onnx).description, "format": 99})
    del model.metadata_props[:]
    onnx.save(model, foreign)
    for path, message in (
        (cut, "not a model that ONNX Runtime opens"),
        (foreign, "another program"),
        (newer, "format 99; this version reads 1 and 2"),
        (tmp_path / "none.onnx", "no such exported model"),
    ):
        with pytest.raises(UserError, match=message):
            open_exported(path)
    (tmp_path / "cut.xml").write_text("<net")
    with pytest.raises(UserError, match="not a model that OpenVINO opens"):
        open_exported(tmp_path / "cut.xml")
    with pytest.raises(UserError, match="has no 'tpu' here"):
        open_exported(exports.onnx, device="tpu")
    with pytest.raises(UserError, match="the precision that it was exported with"):
        open_exported(exports.onnx, precision="bf16")


def test_bad_options(exports: Exports, tmp_path: Path) -> None:
    def fails(message: str, out: str = "x.onnx", **options: object) -> None:
        with pytest.raises(UserError, match=message):
            export_model(exports.run, tmp_path / out, replace(ExportOptions(), **options), say=lambda _: None)

    fails("no format 'tflite'", format="tflite")
    fails("end it with .xml", format="openvino")
    fails("cannot make this folder", out=str(exports.run / "recipe.yaml" / "x.onnx"))  # a file is in its way
    fails("no such images or annotations", check=tmp_path / "none")
    fails("give at least 1", check_limit=0)
    fails("an IoU of 3", hard_nms=3)
    fails("pixels of 12 bits", bits=12)
    assert list(tmp_path.iterdir()) == []
    check_options(tmp_path / "new" / "folder" / "x.onnx", ExportOptions())
    assert (tmp_path / "new" / "folder").is_dir()


def test_images_to_check_on(exports: Exports, tmp_path: Path) -> None:
    train, val = run_sets(exports.run)
    assert (len(train.paths), len(val.paths)) == (6, 4)
    assert [p.name for p in train.spread(3).paths] == ["train0.png", "train2.png", "train5.png"]
    Image.fromarray(windows(1, 64, 96)[0]).save(tmp_path / "a.png")
    plain = named_set(tmp_path, CLASSES)
    assert (len(plain.paths), plain.annotations) == (1, None)
    (exports.run / "lone").mkdir(exist_ok=True)
    lone = exports.run / "lone" / "w.safetensors"
    lone.write_bytes((exports.run / "best.safetensors").read_bytes())
    with pytest.raises(UserError, match="--on"):
        run_sets(lone)
