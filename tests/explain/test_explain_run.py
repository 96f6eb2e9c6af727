"""`flyspeck explain` from end to end on generated images, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.scenes.dataset import write_scenes
from flyspeck.explain.panels import colour, overlay, scaled
from flyspeck.explain.subjects import read_similarities, region_around
from flyspeck.train.build import build_detector, describe_model
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), num_images=6, seed=15, height=192, width=256)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two run folders of untrained models of different heads and widths; the second logged its similarities."""
    torch.manual_seed(0)
    folders = []
    for name, head, channels in (
        ("teacher", "faster_rcnn:mobilenet_v2", 16),
        ("student", "retinanet:mobilenet_v2", 8),
    ):
        folder = tmp_path_factory.mktemp("runs") / name
        folder.mkdir()
        options = {"hidden": 16, "proposals": 20} if "rcnn" in head else {"depth": 1}
        model = ModelConfig(name=head, width=0.25, channels=channels, head=options)
        about = {"classes": ("boat", "person", "vehicle"), "mean": [0.5] * 3, "std": [0.25] * 3}
        detector = build_detector(model, **about)
        save_weights(folder / "best.safetensors", detector.state_dict(), describe_model(model, **about))
        folders.append(folder)
    epochs = [{"kind": "epoch", "epoch": e, "observed": {"similarity_P2": 0.1 * e}, "losses": {}} for e in (1, 2, 3)]
    lines = [*map(json.dumps, epochs), '{"kind": "epoch", "epo']
    (folders[1] / "metrics.jsonl").write_text("\n".join(lines))
    return folders


def test_two_models_side_by_side(runs, scenes, tmp_path, capsys):
    out = tmp_path / "seen"
    arguments = ["explain", *map(str, runs), "--gt", str(scenes), "--out", str(out), "--draw", "2", "--limit", "3"]
    assert main(arguments) == 0, capsys.readouterr().err
    content = json.loads((out / "explain.json").read_text())
    assert content["models"] == ["teacher", "student"]
    assert content["sample"] == 3
    assert set(content["attention"]["teacher"]) == {"P2", "P3", "P4", "P5", "P6"}
    assert [one["level"] for one in content["similarity"]] == ["P2", "P3", "P4", "P5", "P6"]
    assert all(0 <= one["cka"] <= 1 for one in content["similarity"])
    assert content["similarity_through_training"] == {"student": {"P2": [[1, 0.1], [2, 0.2], [3, pytest.approx(0.3)]]}}
    assert [case["kind"] for case in content["cases"]] == ["dense", "occluded"]
    for case in content["cases"]:
        with Image.open(out / case["file"]) as image:
            # Seven columns: the image, two CAMs, four levels; two models of two rows each.
            assert image.width > 7 * 250
            assert image.height > 4 * 200
    page = (out / "index.html").read_text()
    assert page.count("data:image/webp") == 2
    assert page.count('class="chart"') == 1
    for words in ("Attention on objects", "Linear CKA of teacher and student", "Similarity to the teacher: student"):
        assert words in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_one_model_on_a_bare_image(runs, scenes, tmp_path):
    image = next((scenes.parent).rglob("*.png"))
    assert main(["explain", str(runs[1]), "--image", str(image), "--out", str(tmp_path / "x"), "--max-side", "64"]) == 0
    content = json.loads((tmp_path / "x" / "explain.json").read_text())
    assert content["attention"] == {}
    assert content["similarity"] == []
    assert [case["kind"] for case in content["cases"]] == ["chosen"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}"], "nothing to explain"),
        (["{0}", "{1}", "{0}", "--gt", "{gt}"], "3 models"),
        (["{0}", "--gt", "{gt}", "--image", "nine.png"], "no image 'nine.png'"),
        (["{0}", "--gt", "{gt}", "--class", "boot"], "no class 'boot'; did you mean 'boat'"),
        (["{0}", "--image", "absent.png"], "absent.png"),
        (["{0}", "--gt", "{gt}", "--device", "tpu9"], "unknown device"),
        (["nowhere", "--gt", "{gt}"], "no such run or checkpoint"),
    ],
)
def test_bad_input_is_one_line(runs, scenes, tmp_path, capsys, arguments, message):
    filled = [a.format(*runs, gt=scenes) for a in arguments]
    assert main(["explain", *filled, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_regions_hold_their_window():
    assert region_around((10, 10, 60, 60), (100, 300), 1024) == (0, 0, 300, 100)
    assert region_around((280, 10, 300, 30), (100, 300), 80) == (220, 0, 300, 80)
    assert region_around((0, 0, 96, 96), (100, 300), 64) == (0, 0, 96, 96)  # never smaller than the window


def test_similarities_of_a_folder_without_any(tmp_path):
    assert read_similarities(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 1, "losses": {}}\n')
    assert read_similarities(tmp_path) == {}


def test_colours_rise_in_lightness_and_heat_hides_the_image():
    rgb = colour(np.linspace(0, 1, 50)[None])[0]
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) > 0).all()
    assert_allclose(scaled(np.array([[0.0, 2, 4]])).max(), 1)
    assert_allclose(scaled(np.zeros((2, 2))), 0)
    one_hot = np.zeros((100, 100))
    one_hot[50, 50] = 7  # less than half a percent of the cells: scaled by its largest value
    assert_allclose(scaled(one_hot)[50, 50], 1)
    cold = np.asarray(overlay(np.full((1, 1), 200, np.uint8), np.zeros((1, 1))))
    assert_allclose(cold, 140)  # 0.7 of the grey
