"""How a model was measured to show images best goes from its weights into the exported file; `predict` does so with both."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
from tiny_exports import RULE, Exports

import flyspeck
from flyspeck.data.images import read_image
from flyspeck.data.readers import read_annotations
from flyspeck.export.frame import Frame
from flyspeck.export.onnx import describe
from flyspeck.export.package import write_all
from flyspeck.infer.exported import KEY
from flyspeck.infer.load import load_predictor
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.shown import KEY as SHOWN
from flyspeck.infer.shown import Showing, shown_enlargement
from flyspeck.train.build import load_for_use
from flyspeck.train.checkpoint import load_weights, save_weights
from flyspeck.types import Detections
from same_detections import assert_same_detections

SHOWING = Showing.whole({"training_size": [64, 96], "object_side_99": 24.0, "enlarge": {"factor": 1.5}}, 2.0, (96, 128))


@pytest.fixture(scope="module")
def shown(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run, which was trained on images enlarged by 1.5 and shows them whole and enlarged by 2, and its exported file."""
    folder = tmp_path_factory.mktemp("shown")
    weights, description = load_weights(exports.run / "best.safetensors")
    save_weights(folder / "best.safetensors", weights, {**description, SHOWN: SHOWING.to_dict()})
    (folder / "recipe.yaml").write_text((exports.run / "recipe.yaml").read_text())
    detector, description = load_for_use(folder)  # as `export_model`, without its checks: the same network
    frame = Frame.of(detector, shown_enlargement(description))
    write_all(exports.core, {}, folder / "model.onnx", describe(detector, description), frame)
    return folder, folder / "model.onnx"


def test_predict_shows_images_as_was_measured(shown: tuple[Path, Path], exports: Exports, tmp_path: Path) -> None:
    run, exported = shown
    assert SHOWING.tile == (192, 256)
    image = read_annotations(exports.run / "val.json").path(0)
    asked = load_predictor(exports.run, tile="off", scale=2.0, score_threshold=0.02).predict(image)
    assert len(asked[0]) > 5
    for number, model in enumerate((run, exported)):
        predictor = load_predictor(model, score_threshold=0.02)
        assert (predictor.tile, predictor.overlap) == (SHOWING.tile, (SHOWING.overlap, SHOWING.overlap))
        assert predictor.enlarge.factor == 2.0
        assert_same_detections(predictor.predict(image), asked, box_px=0.05, score=1e-3, rule=RULE)
        said: list[str] = []
        flyspeck.predict(image, model=model, out=tmp_path / str(number), draw=0, keep_score=0.02, say=said.append)
        found = json.loads((tmp_path / str(number) / "detections.json").read_text())
        assert len(found) == pytest.approx(len(asked[0]), abs=1)
        assert "measured to be the best" in said[0]
        # Who asks for something else gets that.
        other = load_predictor(model, tile=(64, 96), scale=1.5)
        assert (other.tile, other.enlarge.factor) == ((64, 96), 1.5)
    assert not any("measured to be" in line for line in _said(exports.run, image, tmp_path / "plain"))


def _said(model: Path, image: Path, out: Path) -> list[str]:
    said: list[str] = []
    flyspeck.predict(image, model=model, out=out, draw=0, say=said.append)
    return said


def test_the_file_shows_images_so_without_us(shown: tuple[Path, Path], exports: Exports) -> None:
    image = read_image(read_annotations(exports.run / "val.json").path(1))
    session = onnxruntime.InferenceSession(shown[1])
    boxes, scores, labels, counts = session.run(None, {"windows": image[None]})
    number = int(counts[0])
    plain = Detections(boxes[0, :number], scores[0, :number], labels[0, :number], image.shape[:2], ("dot", "dash"))
    model = load_predictor(exports.run, score_threshold=0.02)
    whole = Predictor(model.model, scale=2.0, score_threshold=0.02).predict([image])
    assert_same_detections([plain], whole, box_px=0.05, score=1e-3, rule=RULE)
    told = {entry.key: entry.value for entry in onnx.load(shown[1]).metadata_props}
    assert json.loads(told[KEY])[SHOWN] == {"tile": [192, 256], "overlap": SHOWING.overlap, "scale": 2.0}
    assert json.loads(told["imgsz"]) == [96, 128]  # in pixels of the image
