"""What `model.start` may name, and what is said of weights that are not there, before anything else is done."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flyspeck.errors import UserError
from flyspeck.train.build import build_detector, describe_model
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig, Recipe, load_recipe, parse_recipe
from flyspeck.train.run import train
from flyspeck.train.start_names import find_start, shipped
from flyspeck.train.start_notes import check_at_hand

SMALL = {"name": "retinanet:mobilenet_v2", "width": 0.25, "channels": 16}
CARD = "# Small\n\n* **Weights' licence**: CC BY-NC 4.0\n"


@pytest.fixture
def weights_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package of weights, as pip leaves it: its folder of weights. Importing it fails."""
    site = tmp_path / "site"
    folder = site / "small_weights" / "cars"
    folder.mkdir(parents=True)
    (site / "small_weights" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    model = ModelConfig.model_validate(SMALL)
    described = describe_model(model, classes=["car"], mean=[0.1], std=[0.3])
    detector = build_detector(model, classes=["car"], mean=[0.1], std=[0.3])
    save_weights(folder / "model.safetensors", detector.state_dict(), described)
    about = site / "small_weights-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: small-weights\nVersion: 1.0\nLicense: MIT\n")
    (about / "entry_points.txt").write_text("[flyspeck.weights]\nsmall_cars = small_weights:cars\n")
    monkeypatch.syspath_prepend(str(site))
    return folder


def test_trained_detectors_of_the_clone_by_name() -> None:
    folder = Path(__file__).resolve().parents[2] / "models" / "hituav_half"
    found = find_start("hituav_half")
    assert found.file == folder / "model.safetensors"
    assert found.licence  # as its card says
    assert {"aerialcars", "facemask_tinaface"} <= set(shipped())
    with pytest.raises(UserError, match="did you mean 'hituav_half'"):
        find_start("hituav_haf")


def test_trained_detectors_of_an_installed_package(
    weights_package: Path, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    assert find_start("small_cars").file == weights_package / "model.safetensors"
    assert find_start("small_cars").licence == "MIT"
    (weights_package / "README.md").write_text(CARD)
    assert find_start("small_cars").licence == "CC BY-NC 4.0"  # the card of the weights is nearer than the package
    recipe = make_recipe(model={"start": "small_cars", "norm": "none"}, train={"epochs": 1})
    train(recipe, tmp_path / "run")
    (report,) = json.loads((tmp_path / "run" / "start.json").read_text())
    assert report["licence"] == "CC BY-NC 4.0"
    assert report["counts"]["loaded"] > 200
    fates = {one["key"]: one for one in report["tensors"] if one["fate"] != "skipped"}
    assert fates["backbone.stages.stem.0.0.weight"]["fate"] == "loaded"
    assert fates["head.class_logits.weight"]["fate"] in ("new", "resized")
    assert "small_weights" not in sys.modules
    (weights_package / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model.safetensors for it; install that package again"):
        find_start("small_cars")


def test_names_stay_names_and_paths_are_from_the_recipe(tmp_path: Path) -> None:
    def start(word: str) -> str | None:
        (tmp_path / "recipe.yaml").write_text(f"data: {{train: a.json, val: b.json}}\nmodel: {{start: '{word}'}}\n")
        return load_recipe(tmp_path / "recipe.yaml").model.start

    assert start("hituav_half") == "hituav_half"
    assert start("torchvision:fcos_resnet50_fpn") == "torchvision:fcos_resnet50_fpn"
    assert (
        start("torchvision:fcos_resnet50_fpn@w.pth")
        == f"torchvision:fcos_resnet50_fpn@{(tmp_path / 'w.pth').resolve()}"
    )
    assert start("first.safetensors") == str((tmp_path / "first.safetensors").resolve())
    (tmp_path / "first_run").mkdir()
    assert start("first_run") == str((tmp_path / "first_run").resolve())  # a folder beside the recipe, as before


def test_a_start_of_torchvision_makes_the_model_its_own_where_the_recipe_does_not_say() -> None:
    model = ModelConfig.model_validate({"start": "torchvision:fasterrcnn_resnet50_fpn_v2"})
    assert model.name == "faster_rcnn:resnet50"
    assert model.anchors is not None
    assert model.anchors.fit
    assert model.head.box_convs == 4  # type: ignore[attr-defined]
    mine = {"base_scale": 3.0}
    said = {
        "start": "torchvision:fasterrcnn_resnet50_fpn_v2",
        "anchors": mine,
        "head": {"hidden": 256, "rpn": {"depth": 1}},
    }
    model = ModelConfig.model_validate(said)
    assert model.anchors is not None
    assert (model.anchors.base_scale, model.anchors.fit) == (3.0, False)
    head = model.head.model_dump()
    assert (head["hidden"], head["rpn"]["depth"], head["box_convs"]) == (256, 1, 4)
    other = ModelConfig.model_validate({"name": "fcos:resnet50", "start": "torchvision:fasterrcnn_resnet50_fpn"})
    assert other.anchors is None


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("torchvision:fasterrcnn_resnet50", "did you mean 'fasterrcnn_resnet50_fpn'"),
        ("torchvision:ssdlite320_mobilenet_v3_large", "its first map has stride 16"),
        ("torchvision:maskrcnn_resnet50_fpn", "it finds masks"),
    ],
)
def test_detectors_of_torchvision_that_we_have_not(start: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_recipe({"data": {"train": "a.json", "val": "b.json"}, "model": {"start": start}})


def test_missing_weights_are_named_before_the_data_are_read(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    recipe = make_recipe(data={"train": "nowhere.json"}, model={"start": "torchvision:fasterrcnn_resnet50_fpn_v2"})
    with pytest.raises(UserError, match=r"needs fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth \(167 MB\)") as caught:
        train(recipe, tmp_path / "run")
    assert str(tmp_path / "torch" / "hub" / "checkpoints") in str(caught.value)
    recipe = make_recipe(data={"train": "nowhere.json"}, model={"weights": str(tmp_path / "gone.pth")})
    with pytest.raises(UserError, match=r"gone.pth: no such weights file"):
        train(recipe, tmp_path / "run")


def test_looking_for_weights_draws_no_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    check_at_hand(ModelConfig.model_validate({**SMALL, "start": "hituav_half"}))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_files_that_are_no_weights_of_a_detector(tmp_path: Path) -> None:
    """Each in one line that says what to do."""
    torch.save({"roi_heads.box_predictor.cls_score.weight": torch.zeros(3, 4)}, tmp_path / "frcnn.pth")
    torch.save({"layer1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({"run": print}, tmp_path / "pickle.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "model-00001-of-00003.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    said = {
        "frcnn.pth": r"write start: torchvision:fasterrcnn_resnet50_fpn@.*frcnn.pth",
        "other.pth": "for the weights of a backbone alone, use model.weights",
        "pickle.pth": "not a weights file that can be read safely",
        "model-00001-of-00003.safetensors": "one shard of weights that lie in several files",
        "pytorch_model-00001-of-00002.bin": "one shard of weights that lie in several files",
        "foreign.safetensors": "a safetensors file of another program",
    }
    model = ModelConfig.model_validate(SMALL)
    for name, words in said.items():
        with pytest.raises(UserError, match=words):
            build_detector(
                model.model_copy(update={"start": str(tmp_path / name)}), classes=["a"], mean=[0.1], std=[0.3]
            )
