"""An exported file obeys the squeeze of the run that it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from tiny_exports import RULE, Exports

from flyspeck.data.enlarge import Enlarge
from flyspeck.errors import UserError
from flyspeck.export.onnx import write_onnx
from flyspeck.infer.exported import KEY
from flyspeck.infer.job_images import made_with
from flyspeck.infer.load import load_predictor
from flyspeck.infer.predictor import Predictor
from flyspeck.train.checkpoint import load_weights, save_weights
from same_detections import assert_same_detections


def described_anew(exports: Exports, folder: Path) -> tuple[Path, Path]:
    """The run and its exported file, both of which squeeze to 64x96 now."""
    weights, description = load_weights(exports.run / "best.safetensors")
    description = {**description, "enlarge": Enlarge(squeeze=(64, 96)).described()}
    save_weights(folder / "best.safetensors", weights, description)
    model = onnx.load(exports.onnx)
    told = json.loads(next(entry.value for entry in model.metadata_props if entry.key == KEY))
    write_onnx(model, folder / "model.onnx", {**told, "enlarge": description["enlarge"]})
    return folder / "best.safetensors", folder / "model.onnx"


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (160, 70)])
@pytest.mark.parametrize("tile", [None, (48, 64)])
def test_an_exported_file_finds_the_same_boxes(
    size: tuple[int, int], tile: tuple[int, int] | None, exports: Exports, tmp_path: Path
) -> None:
    run, exported = described_anew(exports, tmp_path)
    pixels = np.random.default_rng(3).integers(60, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    (one,), (other,) = (load_predictor(path, tile=tile).predict(tmp_path / "image.png") for path in (run, exported))
    assert one.image_size == other.image_size == size
    assert len(one) > 0
    assert_same_detections([one], [other], box_px=0.2, score=1e-3, rule=RULE)
    with pytest.raises(UserError, match="squeezed to 64x96: no scale"):
        load_predictor(exported, scale=0.5)


@pytest.mark.parametrize("beside", ["a.onnx.data", "a.onnx_data", "a.xml", "a.bin", "a.df0.5.onnx", "a.df0.5.bin"])
def test_a_journal_of_other_weights_beside_the_graph_is_another(beside: str, tmp_path: Path) -> None:
    """Newer exporters of PyTorch write the weights into a file beside the graph."""
    model = tmp_path / ("a.onnx" if "onnx" in beside else "a.xml")
    for name in {model.name, "a.df0.5.xml", beside}:
        (tmp_path / name).write_text("1")

    def noted() -> str:
        return made_with(str(model), Predictor(lambda windows: []), "fp32")["weights"]

    before = noted()
    (tmp_path / "a.int8.onnx").write_text("another model")
    assert noted() == before
    (tmp_path / beside).write_text("2")
    assert noted() != before


def test_a_journal_of_another_squeeze_is_another(exports: Exports) -> None:
    def noted(rule: Enlarge) -> dict:
        return made_with(str(exports.onnx), Predictor(lambda windows: [], enlarge=rule), "fp32")

    assert "squeeze" not in noted(Enlarge(1.5))  # jobs of before go on
    assert noted(Enlarge(squeeze=(64, 96))) != noted(Enlarge(squeeze=(96, 96))) != noted(Enlarge())
