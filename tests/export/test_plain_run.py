"""An exported file runs as it is at every batch and size, or is not kept; files of before that do not still predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from every_batch import assert_same, differences
from every_model import CLASSES, matrix_of, names
from numpy.testing import assert_array_equal
from PIL import Image
from test_decoding import HEADS
from tiny_exports import RULE as SUPPRESSION
from tiny_exports import Exports, make_detector

from flyspeck.data.enlarge import Enlarge
from flyspeck.errors import UserError
from flyspeck.export import package
from flyspeck.export.check_images import ImageSet
from flyspeck.export.onnx import write_onnx
from flyspeck.export.parity import Difference, Rule
from flyspeck.export.plain_run import BATCHES, PlainRun, compare_plainly, images_of, odd_sizes
from flyspeck.infer.engines import open_exported
from flyspeck.infer.exported import PlainModel, Session
from flyspeck.infer.onnx_model import OnnxSession
from flyspeck.infer.predictor import Model
from flyspeck.infer.torch_model import TorchModel
from flyspeck.train.build import load_detector
from flyspeck.types import Detections
from needs import with_extras

RULE = Rule(0.05, 0.5, 100)


def test_a_detector_of_two_stages_runs_at_every_batch(tmp_path: Path) -> None:
    """Of one band: the other detectors here have three."""
    detector, _ = make_detector("faster_rcnn:resnet18", classes=CLASSES, bands=1, **HEADS["faster_rcnn:resnet18"])
    assert_same(differences(detector, tmp_path, sizes=[(75, 97)], openvino=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", with_extras(names()))
def test_every_detector_runs_at_every_batch_and_size_in_every_engine(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    if "timm/" in name:
        pytest.importorskip("timm")
    found = matrix_of(name, tmp_path)
    assert not isinstance(found, str), found
    assert_same(found)


def seen(window: np.ndarray) -> Detections:
    """A box whose place is the image's first pixel."""
    corner = float(window[0, 0, 0])
    size = (window.shape[0], window.shape[1])
    return Detections(np.array([[corner, 0, corner + 9, 9]], np.float32), np.array([0.9]), np.array([0]), size)


def eager(windows: list[np.ndarray]) -> list[Detections]:
    return [seen(window) for window in windows]


IMAGES = [[np.full((side, side + 4, 3), 20 * i, np.uint8) for i in range(3)] for side in (61, 83, 97, 53, 71)]


def plainly(exported: Model) -> Difference:
    return compare_plainly(eager, exported, IMAGES, RULE, enlarge=Enlarge())


def test_every_batch_and_every_size_are_compared() -> None:
    met = []

    def exported(windows: list[np.ndarray]) -> list[Detections]:
        met.append((len(windows), windows[0].shape[0]))
        return eager(windows)

    assert plainly(exported).same
    assert met == [(number, side) for side in (61, 83, 97, 53, 71) for number in (1, 2, 3, 7)]


@pytest.mark.parametrize("wrong", BATCHES)
def test_a_batch_with_other_boxes_is_found(wrong: int) -> None:
    def exported(windows: list[np.ndarray]) -> list[Detections]:
        if len(windows) != wrong:
            return eager(windows)
        return eager(windows[::-1]) if wrong not in (1, 7) else eager([w + 1 for w in windows])

    assert not plainly(exported).same


def test_a_batch_or_size_that_does_not_run_is_named() -> None:
    def even_only(windows: list[np.ndarray]) -> list[Detections]:
        if len(windows) % 2:
            raise UserError("cannot reshape", where="model.onnx")
        return eager(windows)

    with pytest.raises(UserError, match=r"not exported: .* as it is on 1 image of 61x65 \(cannot reshape\)"):
        plainly(even_only)


def test_sizes_are_primes_around_the_training_tile() -> None:
    sizes = odd_sizes({"training_size": [256, 320]})
    assert sizes == [(257, 331), (211, 179), (131, 293), (331, 131), (79, 113)]
    half = odd_sizes({"training_size": [256, 320], "enlarge": {"factor": 2.0}})
    assert half[0] == (131, 163)  # in pixels of a file
    large = odd_sizes({"training_size": [1080, 1920]})
    assert all(height * width < 90_000 for height, width in large)
    assert min(min(size) for size in odd_sizes({"training_size": [8, 8]})) >= 5


def test_images_have_the_sizes_asked_for(tmp_path: Path) -> None:
    for name, size in (("a", (40, 30)), ("b", (90, 70)), ("c", (50, 30))):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    images = ImageSet(tuple(sorted(tmp_path.glob("*.png"))), None, "three")
    found = images_of(images, {"mean": [0.5] * 3}, [(67, 61), (11, 13)])
    assert [[w.shape for w in own] for own in found] == [[(67, 61, 3)] * 3, [(11, 13, 3)] * 3]
    first = found[0][0]
    assert_array_equal(first[30:60], first[:30])  # what is too small goes on from its beginning


def test_what_a_wrapper_would_mend_is_seen(exports: Exports, tmp_path: Path) -> None:
    """A graph that leaves padding and clipping to others fails, though it passes behind our own reader."""
    told = open_exported(exports.onnx).description
    write_onnx(exports.core, tmp_path / "bare.onnx", told)
    images = [[np.random.default_rng(3).integers(0, 256, (75, 97, 3), np.uint8)]]
    model = TorchModel(load_detector(exports.run))
    rule = Rule(SUPPRESSION.score, SUPPRESSION.iou, SUPPRESSION.max_detections)
    bare, whole = PlainRun(tmp_path / "bare.onnx", told), PlainRun(exports.onnx, told)
    assert not compare_plainly(model, bare, images, rule, enlarge=Enlarge()).same
    assert compare_plainly(model, whole, images, rule, enlarge=Enlarge(1.5)).same


def test_a_file_that_fails_as_it_is_is_not_kept(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "trace", lambda *_, **__: exports.core)
    monkeypatch.setattr(package, "framed", lambda core, frame, **_: core)
    with pytest.raises(UserError, match=r"not exported: as it is, on images of other sizes, boxes differ"):
        package.export_model(exports.run, tmp_path / "m.onnx", package.ExportOptions(), say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


WINDOWS = [np.full((8, 8, 3), 20 * i, np.uint8) for i in range(max(BATCHES))]


class EvenOnly(Session):
    """As a two-stage file of 0.1.0."""

    def __init__(self) -> None:
        self.path, self.text = Path("old.onnx"), None

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        (batch,) = inputs
        assert len(batch) % 2 == 0
        boxes = np.stack([seen(window).boxes for window in batch])
        ones = np.ones((len(batch), 1), np.float32)
        return [boxes, ones, np.zeros((len(batch), 1), np.int64), np.ones(len(batch), np.int64)]


def test_files_of_before_predict_odd_batches() -> None:
    told = {"classes": ["a"], "channels": 3, "pixels": "uint8", "smallest_side": 8}
    model = PlainModel(EvenOnly(), told)
    for number in BATCHES:
        found = model(WINDOWS[:number])
        assert len(found) == number
        # The window's own frame: 8 px of what was padded to 32.
        assert [float(f.boxes[0, 0]) if len(f) else None for f in found] == [0.0, *[None] * (number - 1)]
    with pytest.raises(AssertionError):
        PlainModel(EvenOnly(), {**told, "batch": "any"})(WINDOWS[:3])


def test_an_engine_that_cannot_run_says_so_in_one_line(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    node = helper.make_node("Reshape", ["windows", "shape"], ["out"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2, -1])  # a constant of the traced batch
    windows = value("windows", TensorProto.UINT8, ["batch", 3])
    graph = helper.make_graph([node], "g", [windows], [value("out", TensorProto.UINT8, None)], [shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    session = OnnxSession(tmp_path / "m.onnx")
    assert session.run([np.zeros((2, 3), np.uint8)])[0].shape == (2, 3)
    with pytest.raises(UserError, match=r"m\.onnx: the model does not run on windows of 3x3"):
        session.run([np.zeros((3, 3), np.uint8)])
