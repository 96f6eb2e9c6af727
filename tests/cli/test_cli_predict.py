from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.cli.predict import match_categories
from flyspeck.data.images import read_image
from flyspeck.errors import UserError
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.source import Categories
from flyspeck.infer.tiles import default_tiles
from flyspeck.infer.torch_model import TorchModel
from flyspeck.train.build import build_detector, describe_model, load_detector
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose weights are random but fixed; its scores lie near the prior of 0.01."""
    torch.manual_seed(0)
    config = ModelConfig(name="retinanet:mobilenet_v2", width=0.25, channels=8, min_score=0.0, max_detections=30)
    statistics = {"classes": ("car", "boat"), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    detector = build_detector(config, **statistics)
    folder = tmp_path_factory.mktemp("run")
    description = {**describe_model(config, **statistics), "training_size": [64, 96]}
    save_weights(folder / "best.safetensors", detector.state_dict(), description)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (100, 150, 3)), ("sub/b.png", (40, 50))):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder / name)
    return folder


def predict(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


def test_a_folder_of_pictures(
    run_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    formats = "coco,csv,geojson,yolo"
    asked = ("--score", 0, "--show-score", 0, "--format", formats)
    assert predict("--model", run_folder, pictures, "--out", out, *asked) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("2 pictures, tiles of 64x96, overlap 32")
    assert said[1].startswith("a.png: 100x150, 6 tiles, ")
    assert said[2].startswith("sub/b.png: 40x50, ")
    results = json.loads((out / "detections.json").read_text())
    table = json.loads((out / "images.json").read_text())
    assert {i["file_name"]: i["id"] for i in table["images"]} == {"a.png": 1, "sub/b.png": 2}
    assert [c["name"] for c in table["categories"]] == ["car", "boat"]
    for name in ("pictures/a.png", "pictures/sub/b.png", "labels/sub/b.txt", "geojson/a.geojson", "detections.csv"):
        assert (out / name).is_file()
    # The same through the library.
    model = TorchModel(load_detector(run_folder))
    predictor = Predictor(model, tile=(64, 96), overlap=32, score_threshold=0)
    found = predictor.predict([pictures / "a.png", read_image(pictures / "sub" / "b.png")])
    assert found[0].classes == ("car", "boat")
    assert [r["bbox"] for r in results] == [r["bbox"] for d in found for r in d.to_coco()]


def test_a_coco_json_keeps_its_numbers(
    run_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"id": 41, "file_name": "sub/b.png"}]
    categories = [{"id": 3, "name": "car"}, {"id": 9, "name": "tree"}]
    (pictures / "t.json").write_text(json.dumps({"images": images, "categories": categories, "annotations": []}))
    assert (
        predict("--model", run_folder, pictures / "t.json", "--out", tmp_path / "o", "--score", 0, "--tile", "off") == 0
    )
    assert "class 'boat' is not in the json; its category id is 10" in capsys.readouterr().err
    results = json.loads((tmp_path / "o" / "detections.json").read_text())
    assert {r["image_id"] for r in results} == {41}
    assert {r["category_id"] for r in results} <= {3, 10}


def test_a_broken_picture_ends_in_exit_code_2_and_the_rest_is_done(
    run_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "a.png").write_bytes((pictures / "a.png").read_bytes()[:200])
    assert predict("--model", run_folder, pictures, "--out", tmp_path / "o", "--score", 0) == 2
    said = capsys.readouterr()
    assert "a.png" in said.err
    assert "1 of 2 pictures could not be read" in said.err
    assert "sub/b.png: 40x50" in said.out
    assert {r["image_id"] for r in json.loads((tmp_path / "o" / "detections.json").read_text())} == {2}


def test_resume_keeps_the_tiles(
    run_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model", run_folder, pictures, "--out", tmp_path / "o", "--score", 0)
    assert predict(*arguments) == 0
    before = (tmp_path / "o" / "detections.json").read_bytes()
    assert predict(*arguments, "--resume") == 0
    assert "resumed: 7 tiles kept" in capsys.readouterr().out
    assert (tmp_path / "o" / "detections.json").read_bytes() == before
    assert predict(*arguments[:-1], 0.5, "--resume") == 2
    assert "start without --resume" in capsys.readouterr().err
    assert (tmp_path / "o" / "detections.json").read_bytes() == before  # refused before anything was overwritten


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--score", "2"], "--score"),
        (["--tile", "64"], "HxW"),
        (["--tile", "64x64", "--overlap", "64"], "overlap"),
        (["--tile", "off", "--overlap", "8"], "without tiles"),
        (["--merge", "nsm"], "did you mean 'nms'"),
        (["--format", "jsn"], "unknown output format"),
        (["--device", "gpu"], "unknown device"),
        (["--precision", "int4"], "unknown precision"),
        (["--value-range", "5"], "--value-range"),
        (["--batch-size", "0"], "batch_size"),
    ],
)
def test_wrong_options_end_in_one_line(
    run_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list, message: str
) -> None:
    assert predict("--model", run_folder, pictures, "--out", tmp_path / "o", *options) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1


def test_missing_model_and_source(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("--model", tmp_path / "none", run_folder, "--out", tmp_path / "o") == 2
    assert predict("--model", run_folder, tmp_path / "none.png", "--out", tmp_path / "o") == 2
    assert "none.png" in capsys.readouterr().err


def test_default_tiles_hold_the_objects() -> None:
    assert default_tiles(None, None, {"training_size": [256, 320], "object_side_99": 40}) == ((256, 320), 44)
    assert default_tiles(None, None, {"training_size": [256, 320]}) == ((256, 320), 68)
    assert default_tiles((64, 64), None, {}) == ((64, 64), 32)
    with pytest.raises(UserError, match="tile: the weights do not say"):
        default_tiles(None, None, {})


def test_categories_by_name() -> None:
    assert match_categories(("a", "b"), None) == (None, [])
    assert match_categories(("a", "b"), Categories(("b", "a"), (7, 2))) == ([2, 7], [])
