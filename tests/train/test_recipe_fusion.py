"""`fusion: statistic`: the factors of the training set for the recipe's own anchors, or points, and levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.train.build import build_detector, describe_model, detector_from_description, load_described
from flyspeck.train.checkpoint import load_state, save_state, save_weights
from flyspeck.train.config import AnchorConfig, ModelConfig, parse_recipe
from flyspeck.train.fusion import recipe_fusion
from flyspeck.types import ImageBatch

# Centres and sides of V1 of the hand-made vectors (see tests/data/test_fusion.py): 10, 6, 2, 1, 0 objects on P2..P6.
FIRST = [(10, 10, 8), (30, 10, 8), (50, 10, 7), (70, 10, 9), (90, 10, 6), (110, 30, 10), (10, 50, 8), (30, 50, 8)]
FIRST += [(20, 84, 16), (52, 84, 14), (84, 84, 18), (116, 84, 16), (24, 104, 32), (104, 104, 30)]
SECOND = [(48, 48, 64), (14, 14, 8), (14, 30, 8), (100, 20, 16), (60, 100, 16)]
SMALL = {"width": 0.25, "channels": 16, "head": {"depth": 1}}


@pytest.fixture
def annotations() -> Annotations:
    squares = np.array(FIRST + SECOND, dtype=float)
    m = len(squares)
    return Annotations(
        image_ids=np.arange(2),
        file_names=("a.png", "b.png"),
        sizes=np.full((2, 2), 128),
        image_index=np.repeat([0, 1], [len(FIRST), len(SECOND)]),
        boxes=np.concatenate([squares[:, :2] - squares[:, 2:] / 2, squares[:, :2] + squares[:, 2:] / 2], 1),
        labels=np.zeros(m, np.int64),
        area=squares[:, 2] ** 2,
        ignore=np.zeros(m, bool),
        crowd=np.zeros(m, bool),
        box_ids=np.arange(m),
        classes=("thing",),
        category_ids=(1,),
    )


def test_anchors_of_the_recipe_count(annotations):
    model = ModelConfig(name="retinanet:resnet18", anchors=AnchorConfig(octaves=1, ratios=[1.0]), **SMALL)
    found = recipe_fusion(annotations, model, size=None)
    assert found.counts == (10, 6, 2, 1, 0)
    assert found.factors == (0.6, 0.333, 0.5)
    # Anchors of half the size: most of what lay on P2 (8 px) lies on P3 now.
    halved = model.model_copy(update={"anchors": AnchorConfig(octaves=1, ratios=[1.0], base_scale=1.0)})
    counts = recipe_fusion(annotations, halved, size=None).counts
    assert counts[1] > 5 > counts[0]


def test_levels_of_the_recipe_decide_the_edges(annotations):
    model = ModelConfig(name="retinanet:resnet18", levels="3-7", anchors=AnchorConfig(octaves=1, ratios=[1.0]), **SMALL)
    found = recipe_fusion(annotations, model, size=None)
    assert found.edges == ("a34", "a45")


def test_an_anchor_free_head_counts_its_points(annotations):
    found = recipe_fusion(annotations, ModelConfig(name="fcos:resnet18", **SMALL), size=None)
    assert len(found.factors) == 3
    assert found.counts[0] > 0


def test_the_factors_travel_in_the_checkpoint_and_build_again(annotations):
    model = ModelConfig(name="fcos:resnet18", fusion=[0.6, 0.333, 0.5], **SMALL)
    described = describe_model(model, classes=("thing",), mean=(0.5,), std=(0.5,))
    detector = detector_from_description(described)
    torch.testing.assert_close(detector.neck.fusion, torch.tensor([0.6, 0.333, 0.5]))


@pytest.mark.parametrize("fusion", ["one", "three", "gate", "self_attention"])
def test_learnable_modes_by_recipe(fusion):
    model = parse_recipe(
        {"data": {"train": "a", "val": "b"}, "model": {"name": "fcos:resnet18", "fusion": fusion, **SMALL}}
    ).model
    detector = build_detector(model, classes=("a",), mean=(0.5,), std=(0.5,))
    assert any("neck.fusion" in name or "neck.gates" in name for name, _ in detector.named_parameters())


@pytest.mark.parametrize("value", [1, 1.0, 0.5])
def test_one_number_holds_for_all_edges(value):
    model = parse_recipe(
        {"data": {"train": "a", "val": "b"}, "model": {"name": "retinanet:resnet18", "fusion": value, **SMALL}}
    ).model
    detector = build_detector(model, classes=("a",), mean=(0.5,), std=(0.5,))
    torch.testing.assert_close(detector.neck.fusion, torch.full((3,), float(value)))


def test_the_old_word_for_the_gate_names_the_new_one():
    with pytest.raises(UserError, match=r"called attention is called gate now.*self_attention for the paper's"):
        parse_recipe({"data": {"train": "a", "val": "b"}, "model": {"fusion": "attention"}})


def test_files_that_call_the_gate_attention_are_read(tmp_path):
    """Those of formats 1 and 2: the same boxes, and a resumed run knows its recipe again."""
    model = ModelConfig(name="fcos:resnet18", fusion="gate", **SMALL)
    detector = build_detector(model, classes=("a",), mean=(0.5,), std=(0.5,)).eval()
    described = describe_model(model, classes=("a",), mean=(0.5,), std=(0.5,))
    old = {**described, "format": 2, "model": {**described["model"], "fusion": "attention"}}
    old["recipe"] = {"model": old["model"]}
    save_weights(tmp_path / "old.safetensors", detector.state_dict(), old)
    again, said = load_described(tmp_path / "old.safetensors")
    assert said["model"]["fusion"] == "gate"
    images = ImageBatch(torch.rand(1, 1, 64, 64), ((64, 64),))
    torch.testing.assert_close(again.detect(images)[0].boxes, detector.detect(images)[0].boxes, rtol=0, atol=0)
    save_state(tmp_path / "state.pt", {"description": old})
    assert load_state(tmp_path / "state.pt")["description"]["recipe"]["model"]["fusion"] == "gate"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": [0.5, 0.5]}, "3 top-down edges, got 2 factors"),
        ({"fusion": "statistic"}, "no fusion 'statistic'"),
        ({"name": "fcos:resnet18:sspnet", "fusion": [0.5] * 3}, "sspnet has no top-down fusion factors"),
        ({"name": "fcos:resnet18:hrfpn", "fusion": "one"}, "hrfpn has no top-down fusion factors"),
    ],
)
def test_impossible_pairs_are_refused_with_the_reason(options, message):
    model = ModelConfig(**{"name": "fcos:resnet18", **SMALL, **options})
    with pytest.raises(UserError, match=message):
        build_detector(model, classes=("a",), mean=(0.5,), std=(0.5,))


def test_soft_nms_by_recipe():
    model = ModelConfig(name="fcos:resnet18", soft_nms="linear", nms=0.3, pre_nms=2000, **SMALL)
    rule = build_detector(model, classes=("a",), mean=(0.5,), std=(0.5,)).head.suppression
    assert (rule.soft, rule.iou, rule.pre_nms) == ("linear", 0.3, 2000)


def test_sigma_power_starts_at_what_a_factor_of_sigma_computes() -> None:
    def pyramid(**changes: object) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = ModelConfig.model_validate({"name": "faster_rcnn:resnet18", "width": 0.25, "channels": 16, **changes})
        detector = build_detector(model, classes=("thing",), mean=(0.5,), std=(0.5,)).eval()
        with torch.no_grad():
            return detector.neck(detector.backbone(torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)))

    plain = pyramid(fusion=[0.5, 0.5, 0.5])
    for ours, theirs in zip(pyramid(fusion=[1.0, 1.0, 1.0], sigma=0.5), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="norm"):
        pyramid(norm="bn", sigma=0.5)
    with pytest.raises(UserError, match="only the neck fpn"):
        pyramid(name="faster_rcnn:resnet18:sspnet", sigma=0.5)
