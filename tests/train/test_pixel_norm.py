"""Whose mean and deviation a run normalises pixels by: the weights', ImageNet's, the training set's; golden values."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.backbones.resnet import resnet18
from flyspeck.models.weights import save_weights
from flyspeck.train.build import load_detector
from flyspeck.train.checkpoint import load_state, load_weights, save_state
from flyspeck.train.config import ModelConfig, load_recipe
from flyspeck.train.pixels import settled_pixels
from flyspeck.train.run import train

OWN = ([0.2, 0.3, 0.4], [0.1, 0.1, 0.1])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
PRETRAINED = {
    "mean": "0.5071 0.4866 0.4409",
    "std": "0.2673 0.2564 0.2762",
}  # as `flyspeck pretrain` writes CIFAR-100's


def weights_of(folder: Path, name: str = "backbone.safetensors", about: dict[str, str] | None = None) -> str:
    save_weights(resnet18(width=0.25), folder / name, about=PRETRAINED if about is None else about)
    return str(folder / name)


def settled(own=OWN, bits=8, **options):
    config = ModelConfig.model_validate({"name": "retinanet:resnet18", **options})
    model, (mean, std) = settled_pixels(config, own, bits=bits)
    return model.pixel_norm, (list(mean), list(std))


def test_the_default_is_the_weights_where_there_are_any(tmp_path: Path) -> None:
    assert settled() == ("data", OWN)
    assert settled(frozen_stages=1, freeze_norms=True) == (
        "data",
        OWN,
    )  # frozen at random: there is nothing it has seen
    assert settled(weights="IMAGENET1K_V1") == ("weights", IMAGENET)
    own = ([0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762])
    assert settled(weights=weights_of(tmp_path)) == ("weights", own)


def test_what_is_asked_for_is_done(tmp_path: Path) -> None:
    assert settled(weights="IMAGENET1K_V1", pixel_norm="data") == ("data", OWN)
    assert settled(weights=weights_of(tmp_path), pixel_norm="imagenet") == ("imagenet", IMAGENET)
    assert settled(pixel_norm="imagenet") == ("imagenet", IMAGENET)
    with pytest.raises(UserError, match=r"there are no weights .* give model.weights or model.start"):
        settled(pixel_norm="weights")


def test_a_grey_image_gets_the_mean_of_the_channels() -> None:
    word, (mean, std) = settled(own=([0.3], [0.1]), weights="IMAGENET1K_V1")
    assert word == "weights"
    assert mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert std == pytest.approx([(0.229 + 0.224 + 0.225) / 3])


def test_images_of_more_bits_keep_their_own() -> None:
    own = ([0.11], [0.002])  # thermal values: a narrow range of 16 bits
    assert settled(own=own, bits=16, weights="IMAGENET1K_V1") == ("data", own)
    assert settled(own=own, bits=16, weights="IMAGENET1K_V1", pixel_norm="weights")[0] == "weights"


def test_images_of_other_channels_keep_their_own() -> None:
    own = ([0.1] * 4, [0.2] * 4)
    assert settled(own=own, weights="IMAGENET1K_V1") == ("data", own)
    with pytest.raises(UserError, match="3 channels for images of 4"):
        settled(own=own, weights="IMAGENET1K_V1", pixel_norm="weights")


def test_a_file_that_does_not_say_is_taken_as_published(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="flyspeck"):
        assert settled(weights=weights_of(tmp_path, about={})) == ("weights", IMAGENET)
    assert "does not say by what its pixels were normalised: taken as resnet18's published weights were" in caplog.text


def test_a_run_keeps_what_it_used_and_hands_it_on(make_recipe, tmp_path: Path) -> None:
    weights = weights_of(tmp_path)
    model = {"name": "retinanet:resnet18", "weights": weights, "freeze_norms": False}
    recipe = make_recipe(model=model, train={"epochs": 1}, evaluate={"best": "ap50_all"})
    train(recipe, tmp_path / "run")
    said = load_weights(tmp_path / "run" / "best.safetensors")[1]
    assert said["model"]["pixel_norm"] == "weights"
    channels = len(said["mean"])
    wanted = [0.5071, 0.4866, 0.4409] if channels == 3 else [(0.5071 + 0.4866 + 0.4409) / 3]
    assert said["mean"] == pytest.approx(wanted)
    assert_close(load_detector(tmp_path / "run").pixel_norm.mean.flatten(), torch.tensor(wanted))
    assert load_recipe(tmp_path / "run" / "recipe.yaml").model.pixel_norm == "weights"
    # Fine-tuning from the run, and its backbone in another detector.
    own = ([0.2] * channels, [0.1] * channels)
    best = str(tmp_path / "run" / "best.safetensors")
    assert settled(own=own, start=str(tmp_path / "run"))[1][0] == pytest.approx(wanted)
    assert settled(own=own, weights=best)[1][0] == pytest.approx(wanted)


def without_the_choice(description: dict) -> dict:
    """As version 0.1 described a run."""
    copy = json.loads(json.dumps(description))
    del copy["model"]["pixel_norm"], copy["recipe"]["model"]["pixel_norm"]
    return copy


def test_runs_of_version_0_1_keep_their_own_statistics(make_recipe, tmp_path: Path) -> None:
    model = {"name": "retinanet:resnet18", "weights": weights_of(tmp_path), "freeze_norms": False, "pixel_norm": "data"}
    best, run = {"best": "ap50_all"}, tmp_path / "run"
    train(make_recipe(model=model, train={"epochs": 1}, evaluate=best), run)
    state = load_state(run / "state.pt")
    save_state(run / "state.pt", {**state, "description": without_the_choice(state["description"])})
    file = run / "best.safetensors"
    _, said = load_weights(file)
    before = load_detector(run).state_dict()
    save_file(load_file(file), file, metadata={"flyspeck": json.dumps(without_the_choice(said))})
    for name, value in load_detector(run).state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)
    # Resumed by a recipe that does not say either, it goes on with what it had.
    shutil.copytree(run, tmp_path / "again")
    del model["pixel_norm"]
    train(make_recipe(model=model, train={"epochs": 1}, evaluate=best), tmp_path / "again", resume=True)
    assert load_weights(tmp_path / "again" / "last.safetensors")[1]["mean"] == said["mean"]
