"""An exported file runs at every batch: a constant of the traced one is not kept, and files that hold one still predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from every_batch import assert_same, differences
from test_decoding import HEADS
from tiny_exports import make_detector

from flyspeck.errors import UserError
from flyspeck.export.batches import BATCHES, compare_batches, windows_of
from flyspeck.export.check_images import ImageSet
from flyspeck.export.parity import Rule
from flyspeck.infer.exported import PlainModel, Session
from flyspeck.infer.onnx_model import OnnxSession
from flyspeck.types import Detections

RULE = Rule(0.05, 0.5, 100)
CLASSES = ("dot", "dash", "dab")
"""Three: a constant of the traced batch of two goes into rows of 2 x 4 numbers a region whatever the batch, but not of 3 x 4."""


def test_a_detector_of_two_stages_runs_at_every_batch(tmp_path: Path) -> None:
    detector, _ = make_detector("faster_rcnn:resnet18", classes=CLASSES, **HEADS["faster_rcnn:resnet18"])
    assert_same(differences(detector, tmp_path, sizes=[(75, 97)], openvino=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_every_detector_runs_at_every_batch_and_size_in_every_engine(name: str, tmp_path: Path) -> None:
    detector, _ = make_detector(name, classes=CLASSES, **HEADS[name])
    sizes = {"sizes": [(300, 300), (133, 109), (97, 161)]} if name.startswith("ssd") else {}
    assert_same(differences(detector, tmp_path, **sizes))  # type: ignore[arg-type]


def seen(window: np.ndarray) -> Detections:
    """A box whose place is the window's first pixel."""
    corner = float(window[0, 0, 0])
    return Detections(
        np.array([[corner, 0, corner + 9, 9]], np.float32), np.array([0.9], np.float32), np.array([0]), (64, 64)
    )


def eager(windows: list[np.ndarray]) -> list[Detections]:
    return [seen(window) for window in windows]


WINDOWS = [np.full((8, 8, 3), 20 * i, np.uint8) for i in range(max(BATCHES))]


def test_every_batch_is_compared() -> None:
    met = []

    def exported(windows: list[np.ndarray]) -> list[Detections]:
        met.append(len(windows))
        return eager(windows)

    assert compare_batches(eager, exported, WINDOWS, RULE).same
    assert met == [1, 2, 3, 7]


@pytest.mark.parametrize("wrong", BATCHES)
def test_a_batch_with_other_boxes_is_found(wrong: int) -> None:
    def exported(windows: list[np.ndarray]) -> list[Detections]:
        return eager(windows[::-1]) if len(windows) == wrong > 1 else eager([w + (wrong == 1) for w in windows])

    assert not compare_batches(eager, exported, WINDOWS, RULE).same


def test_a_batch_that_does_not_run_is_named() -> None:
    def exported(windows: list[np.ndarray]) -> list[Detections]:
        if len(windows) % 2:
            raise UserError("cannot reshape", where="model.onnx")
        return eager(windows)

    with pytest.raises(UserError, match=r"not exported: the file does not run on 1 windows at once \(cannot reshape\)"):
        compare_batches(eager, exported, WINDOWS, RULE)


def test_windows_are_of_one_size_and_repeated(tmp_path: Path) -> None:
    from PIL import Image

    for name, size in (("a", (40, 30)), ("b", (40, 30)), ("c", (50, 30))):
        Image.fromarray(np.full((size[1], size[0], 3), len(name), np.uint8)).save(tmp_path / f"{name}.png")
    images = ImageSet(tuple(sorted(tmp_path.glob("*.png"))), None, "three")
    windows = windows_of(images, {"training_size": [64, 64], "mean": [0.5] * 3})
    assert [w.shape for w in windows] == [(30, 40, 3)] * 7


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
