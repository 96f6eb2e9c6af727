"""A detector that is cut where its data decide gives what the whole gives, and its plan is plain JSON."""

from __future__ import annotations

import json
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_exports import make_detector

from flyspeck.errors import UserError
from flyspeck.export.litert import PaddedModel, cut_detector, write_litert
from flyspeck.export.onnx import describe
from flyspeck.export.stages import Stages
from flyspeck.infer.engines import is_exported, open_exported
from flyspeck.infer.exported import Session
from flyspeck.infer.litert_model import ENTRY, LiteRTModel
from flyspeck.infer.predictor import Predictor
from flyspeck.models.detector import Detector
from same_detections import assert_same_detections

SIZE = (64, 96)


class TorchNetworks(Session):
    """The networks of a plan in PyTorch, in the place of a LiteRT file."""

    def __init__(self, stages: Stages) -> None:
        self.path, self.text, self._stages = Path("made.tflite"), None, stages

    @property
    def networks(self) -> list[str]:
        return list(self._stages.networks)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self.run_network(self.networks[0], inputs)

    def run_network(self, name: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        for given, example in zip(inputs, self._stages.examples[name], strict=True):
            assert given.shape == tuple(example.shape)
        with torch.no_grad():
            return [one.numpy() for one in self._stages.networks[name](*map(torch.from_numpy, inputs))]


def staged(detector: Detector) -> tuple[LiteRTModel, dict[str, Any]]:
    stages = cut_detector(detector, SIZE)
    plan = {"size": list(SIZE), "batch": 1, "steps": stages.steps, "result": stages.result}
    told = json.loads(json.dumps({**describe(detector, {"training_size": list(SIZE)}), **plan}))
    return LiteRTModel(TorchNetworks(stages), told), told  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "head", "operators"),
    [
        ("fcos:resnet18", {"depth": 1}, {"nms_mask": 1, "tiny_suppression": 1}),
        ("faster_rcnn:resnet18", {"hidden": 16}, {"nms_mask": 3, "pyramid_roi_align": 1, "tiny_suppression": 1}),
    ],
)
def test_the_plan_finds_what_the_detector_finds(name: str, head: dict[str, int], operators: dict[str, int]) -> None:
    detector, _ = make_detector(name, norm="bn", head=head)
    model, told = staged(detector)
    assert Counter(step["operator"] for step in told["steps"] if "operator" in step) == operators
    assert all(step["outputs"] for step in told["steps"])
    rng = np.random.default_rng(0)
    windows = [rng.integers(0, 255, (*SIZE, 3), np.uint8) for _ in range(2)]
    eager = PaddedModel(detector, SIZE)
    for own in (windows, [window[:40, :70] for window in windows]):  # smaller ones are padded
        found, expected = model(own), eager(own)
        assert_same_detections(found, expected, box_px=1e-2, score=1e-4, rule=detector.head.suppression, least=10)
    with pytest.raises(UserError, match=r"a window of 65x96 for a file that takes 64x96.*--tile 64x96"):
        model([np.zeros((65, 96, 3), np.uint8)])
    with pytest.raises(UserError, match="tiles of 128x96 for a model that takes 64x96"):
        Predictor(model, tile=(128, 96))


def test_a_plan_that_asks_for_what_is_not_there_is_refused() -> None:
    detector, _ = make_detector("fcos:resnet18", norm="bn", head={"depth": 1})
    session = TorchNetworks(Stages({}, {}, [], [], SIZE))
    told = {**describe(detector, {}), "size": list(SIZE), "steps": [], "result": []}
    LiteRTModel(session, told)  # type: ignore[arg-type]
    for steps in ([{"operator": "sort", "inputs": [], "outputs": []}], [{"network": "x", "inputs": [], "outputs": []}]):
        with pytest.raises(UserError, match="its plan asks for"):
            LiteRTModel(session, {**told, "steps": steps})  # type: ignore[arg-type]
    for gone in ("steps", "result", "size"):
        with pytest.raises(UserError, match="its plan cannot be read"):
            LiteRTModel(session, {key: value for key, value in told.items() if key != gone})  # type: ignore[arg-type]


def test_a_file_that_is_none_or_of_another_program_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cut.tflite"
    write_litert(b"no model", path, {"classes": ["dot"], "format": 2})
    assert is_exported(path)
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read(ENTRY))["classes"] == ["dot"]
        assert archive.read("labels.txt") == b"dot\n"
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(UserError, match=r"needs the package 'ai-edge-litert'.*install.*ai-edge-litert"):
        open_exported(path)
