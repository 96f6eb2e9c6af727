"""A run on a backbone of timm: what the trainer measured is what its predictor finds, folded or exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from flyspeck import load_predictor
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.export.package import export_model
from flyspeck.export.proof import ExportOptions
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.pooling import find_switch
from flyspeck.models.fold import probe_images
from flyspeck.models.names import parse_name
from flyspeck.train.build import load_detector
from flyspeck.train.config import Recipe
from flyspeck.train.measure import metrics_of
from flyspeck.train.run import train

pytest.importorskip("timm", reason="needs the extra timm")

NAME = "retinanet:timm/mobilenetv3_small_100"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("timm_run")


@pytest.fixture
def finished(make_recipe: Callable[..., Recipe], workdir: Path) -> tuple[Path, Recipe, dict[str, float]]:
    """A run of 24 steps in which every norm learns; trained once."""
    recipe = make_recipe(
        model={
            "name": NAME,
            "width": 1.0,
            "levels": "3-5",
            "freeze_norms": False,
            "frozen_stages": 0,
            "min_score": 0.005,
        },
        train={"epochs": 8, "optimizer": "adamw", "lr": 0.003, "eval_every": 8},
    )
    if not (workdir / "run").exists():
        METRICS.update(train(recipe, workdir / "run"))
    return workdir / "run", recipe, METRICS


METRICS: dict[str, float] = {}


def test_the_predictor_finds_what_the_trainer_measured(finished: tuple[Path, Recipe, dict[str, float]]) -> None:
    run, recipe, metrics = finished
    predictor = load_predictor(run, score_threshold=recipe.model.min_score)
    assert isinstance(predictor.model, TorchModel)
    detector = predictor.model.detector
    assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.modules())  # all 34 are folded
    assert any(isinstance(m, nn.Hardswish) or "Swish" in type(m).__name__ for m in detector.modules())
    annotations = read_annotations(recipe.data.val, for_evaluation=True)  # type: ignore[arg-type]
    found = predictor.predict([annotations.path(i) for i in range(len(annotations))])
    assert sum(len(one) for one in found) > 20
    named = [replace(one, image_id=i) for one, i in zip(found, annotations.image_ids.tolist(), strict=True)]
    again = metrics_of(evaluate(annotations, DetectionTable.from_list(named, annotations), recipe.evaluate.protocol))
    assert metrics["ap50_all"] > 0
    assert again == pytest.approx(metrics, abs=1e-6)


@pytest.mark.parametrize(
    ("form", "suffix"), [("onnx", ".onnx"), pytest.param("openvino", ".xml", marks=pytest.mark.slow)]
)
def test_it_is_exported_with_the_same_boxes(
    form: str, suffix: str, finished: tuple[Path, Recipe, dict[str, float]], tmp_path: Path
) -> None:
    pytest.importorskip(form, reason="needs the extra export")
    exported = export_model(finished[0], tmp_path / f"m{suffix}", ExportOptions(format=form), say=lambda _: None)
    assert exported.difference.same
    assert exported.difference.boxes > 20


def test_the_checkpoint_asks_for_no_weights(
    finished: tuple[Path, Recipe, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    assert load_detector(finished[0]).classes == ("square",)


def test_names() -> None:
    assert parse_name(NAME).backbone == "timm/mobilenetv3_small_100"
    assert parse_name("timm/convnext_atto.d2_in1k").backbone == "timm/convnext_atto.d2_in1k"
    assert parse_name("faster_rcnn:timm/resnet26d-S1L0:sspnet").neck == "sspnet"


def test_its_own_pixels_where_none_are_given() -> None:
    lite = build("fcos:timm/tf_efficientnet_lite0", channels=16)
    assert isinstance(lite, Detector)
    assert lite.pixel_norm.mean.flatten().tolist() == [0.5, 0.5, 0.5]


def test_pyramids_begin_where_the_model_does() -> None:
    fine = build("fcos:timm/mobilenetv3_small_100", levels="1-5", channels=16)
    assert [f.stride for f in fine.features] == [2, 4, 8, 16, 32]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no map of level 1"):
        build("fcos:timm/convnext_atto", levels="1-5", channels=16)
    removed = build("fcos:timm/resnet26d-S1L0", channels=16)
    assert [f.stride for f in removed.features] == [2, 4, 8, 16, 32]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet26d"])
def test_dynamic_pooling_on_a_chain(name: str) -> None:
    torch.manual_seed(0)
    detector = build(f"dpnet:retinanet:timm/{name}", channels=16, classes=["a"])
    assert isinstance(detector, Detector)
    images = probe_images(3, 128)
    switch = find_switch(detector.eval())
    sides = []
    for factor in switch.factors:
        with switch.use(factor), torch.no_grad():
            sides.append(detector.pyramid(images)[0].shape[-1])
    assert sides == [16, 11, 8]  # stride 8 at 0.5, and 32 * 0.33 and 32 * 0.25 cells of the map before
    with torch.no_grad():
        detector.detect(images)


@pytest.mark.parametrize(
    ("name", "message"),
    [("convnext_atto", "merges cells"), ("pvt_v2_b0", "no stride of 2"), ("hrnet_w18_small", "all its maps together")],
)
def test_no_dynamic_pooling_by_a_replaced_stride_elsewhere(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(f"dpnet:retinanet:timm/{name}", channels=16, classes=["a"])
