"""Pre-training learns, logs, and its weights load into detectors."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from flyspeck.cli.main import main
from flyspeck.data.classification import LabelledImages
from flyspeck.errors import UserError
from flyspeck.models.build import build, build_backbone
from flyspeck.models.detector import Detector
from flyspeck.models.weights import save_weights
from flyspeck.train.config import TrainConfig
from flyspeck.train.pretrain import pretrain
from flyspeck.train.pretrain_inputs import pixel_statistics, random_crops, resampled


def stripes(count, seed):
    """Class 0: horizontal stripes; 1: vertical; 2: none. Noise on top; flips and crops keep the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = rng.integers(90, 130, (count, 32, 32, 3))
    pixels[labels == 0, ::4] += 100
    pixels[labels == 1, :, ::4] += 100
    return LabelledImages(pixels.astype(np.uint8), labels, ("rows", "columns", "none"), f"stripes {seed}")


CONFIG = TrainConfig(optimizer="sgd", epochs=4, batch_size=16, lr=0.05, warmup_steps=2, schedule="cosine")


@pytest.mark.parametrize(("name", "epochs", "bar"), [("resnet18", 4, 0.8), ("hrnet18", 1, 0.0)])
def test_pretraining_learns_and_its_weights_load_into_a_detector(tmp_path, name, epochs, bar):
    torch.manual_seed(0)
    width = 0.125
    config = CONFIG.model_copy(update={"epochs": epochs})
    found = pretrain(build_backbone(name, width=width), stripes(96, 0), stripes(30, 1), config, tmp_path, name=name)
    assert found.top1 > bar
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(i + 1) for i in range(epochs)]
    assert max(float(row["top1"]) for row in rows) == pytest.approx(found.top1, abs=1e-4)
    with safe_open(found.weights, "pt") as file:
        about = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert (about["backbone"], about["classes"], about["epoch"]) == (name, "3", str(found.epoch))
    detector = build(f"retinanet:{name}", width=width, channels=16, weights=found.weights)
    assert isinstance(detector, Detector)
    assert_close(dict(detector.backbone.state_dict()), state)


def test_same_seed_same_weights(tmp_path):
    config = CONFIG.model_copy(update={"epochs": 1})
    results = []
    for run in ("a", "b"):
        torch.manual_seed(0)
        backbone = build_backbone("resnet18", width=0.06)
        pretrain(backbone, stripes(32, 0), stripes(9, 1), config, tmp_path / run)
        results.append({k: v.clone() for k, v in backbone.state_dict().items()})
    assert_close(results[0], results[1], rtol=0, atol=0)


def test_a_whole_image_is_kept_as_it_is_or_mirrored():
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    out = resampled(x, random_crops(64, torch.Generator().manual_seed(1), smallest_crop=1.0), 16)
    same = (out - x).abs().amax((1, 2, 3)) < 1e-5
    mirrored = (out - x.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    assert (same | mirrored).all()
    assert 10 < same.sum() < 54


def test_crops_stay_inside_the_image():
    # A ramp from 0 to 1: a crop inside of it never shows a value beyond its ends, whatever the padding.
    ramp = torch.linspace(0, 1, 32).expand(50, 3, 32, 32).contiguous()
    out = resampled(ramp, random_crops(50, torch.Generator().manual_seed(0), smallest_crop=0.25), 24)
    assert out.shape == (50, 3, 24, 24)
    spread = out.amax((1, 2, 3)) - out.amin((1, 2, 3))
    assert (spread <= 1).all()
    assert (spread >= 0.45).all()  # a quarter of the area is half of the side
    assert spread.std() > 0.05


def test_statistics_by_hand():
    pixels = np.zeros((2, 1, 1, 3), np.uint8)
    pixels[1] = [255, 51, 0]
    mean, std = pixel_statistics(pixels)
    np.testing.assert_allclose(mean, [0.5, 0.1, 0.0], rtol=1e-6)
    np.testing.assert_allclose(std, [0.5, 0.1, 1e-3], rtol=1e-6)


def test_classes_must_agree(tmp_path):
    other = LabelledImages(stripes(9, 0).pixels, stripes(9, 0).labels, ("x", "y", "z"), "other")
    with pytest.raises(UserError, match="other: training and validation images have different classes"):
        pretrain(build_backbone("resnet18", width=0.06), stripes(9, 0), other, CONFIG, tmp_path)


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    backbone = build_backbone("resnet18", width=0.06)
    with torch.no_grad():
        next(backbone.parameters()).fill_(float("inf"))
    with pytest.raises(UserError, match=r"epoch 1: the loss is nan; lower the learning rate"):
        pretrain(backbone, stripes(16, 0), stripes(9, 1), CONFIG, tmp_path)


def test_verb(tmp_path, capsys):
    for split, seed in (("train", 0), ("val", 1)):
        data = stripes(24, seed)
        from PIL import Image

        for i, (image, label) in enumerate(zip(data.pixels, data.labels, strict=True)):
            folder = tmp_path / "set" / split / data.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    arguments = ["--epochs", "1", "--batch-size", "8", "--width", "0.06", "--max-per-class", "4", "--device", "cpu"]
    out = tmp_path / "run"
    assert main(["pretrain", "resnet18", str(tmp_path / "set"), "--out", str(out), *arguments]) == 0
    assert "12 training and 24 validation images of 3 classes" in capsys.readouterr().out
    assert (out / "backbone.safetensors").is_file()
    wrong = tmp_path / "wrong.safetensors"
    save_weights(build_backbone("resnet18", width=0.25), wrong)
    assert main(["pretrain", "resnet18", str(tmp_path / "set"), "--weights", str(wrong), *arguments]) == 2
    assert "weights of another architecture" in capsys.readouterr().err
