"""DPNet by name: its counts, and what `flyspeck profile` and `flyspeck models` say of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.models.backbones.freezing import freeze_stages
from flyspeck.models.build import build
from flyspeck.models.dynamic.pooling import find_switch
from flyspeck.models.dynamic.router import FactorRouter
from flyspeck.models.names import parse_name
from flyspeck.train.build import build_detector
from flyspeck.train.config import ModelConfig


def test_profile_of_the_published_model(capsys: Any) -> None:
    """39.64 M within 0.5 %; 165-168 / 81-82 / 52 GFLOPs, the predictor's 0.6 included, and the mean of 107.80 between."""
    command = "profile dpnet:reppoints:resnet50 --levels 3-7 --num-classes 80 --size 796x1124 --convention mmcv --json"
    assert main([*command.split(), "--frozen-stages", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params_trainable"] == pytest.approx(39.64e6, rel=5e-3)
    costs = {factor: cost["gflops"] for factor, cost in found["factors"].items()}
    assert list(costs) == ["0.5", "0.33", "0.25"]
    assert 165 < costs["0.5"] < 168
    assert 81 < costs["0.33"] < 82
    assert 52 < costs["0.25"] < 53.5
    assert costs["0.25"] < 107.80 < costs["0.5"]
    assert 0 < found["predictor_gflops"] < 0.03 * costs["0.25"]
    assert found["factors"]["0.5"]["predictor_gflops"] == found["predictor_gflops"]


def test_the_name_in_words(capsys: Any) -> None:
    assert main(["profile", "dpnet:retinanet:resnet18", "--size", "128x128"]) == 0
    assert "factor 0.33" in capsys.readouterr().out
    assert main(["models", "dpnet", "--json"]) == 0
    assert [m["name"] for m in json.loads(capsys.readouterr().out)["models"]] == ["dpnet:reppoints:resnet50"]


@pytest.mark.parametrize("host", ["reppoints", "retinanet", "faster_rcnn", "fcos"])
def test_any_staged_host(host: str) -> None:
    with torch.device("meta"):
        detector = build(f"dpnet:{host}:mobilenet_v2", width=0.25, channels=64)
    assert isinstance(detector.router, FactorRouter)  # type: ignore[union-attr]
    assert find_switch(detector).factors == (0.5, 0.33, 0.25)  # type: ignore[arg-type]
    assert detector.features[0].stride == 8  # type: ignore[union-attr, index]


def test_what_has_no_factors_is_refused() -> None:
    assert parse_name("dpnet:reppoints:resnet50").dynamic
    for name in ("dpnet:resnet50", "dpnet:ssd:vgg16"):
        with pytest.raises(UserError, match="no detector with a pyramid"):
            parse_name(name)
    with pytest.raises(UserError, match="no 'retinnet'"):
        parse_name("dpnet:retinnet:resnet50")
    with pytest.raises(UserError, match=r"chain of stages|parallel branches"), torch.device("meta"):
        build("dpnet:faster_rcnn:hrnet18", levels="2-6")
    with pytest.raises(ValueError, match="and a section `dynamic`"):
        build_detector(ModelConfig(name="dpnet:reppoints:resnet50"), classes=["a"], mean=[0.5], std=[0.2])


def test_a_detector_of_another_depth() -> None:
    """ResNet-18's C2 has 64 channels: a quarter of the predictor's widths."""
    with torch.device("meta"):
        detector = build("dpnet:retinanet:resnet18")
    freeze_stages(detector.backbone, 1)  # type: ignore[arg-type]
    router = detector.router
    assert isinstance(router, FactorRouter)
    assert router.predictor.factors.in_features == 64
