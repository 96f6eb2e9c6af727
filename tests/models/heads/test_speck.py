"""speck: losses on boxes of a few pixels, its options, its one-to-one outputs, and the sizes it comes in."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flyspeck.errors import UserError
from flyspeck.models.assigners.build import named_assigner
from flyspeck.models.backbones.bottom_heavy import bottom_heavy
from flyspeck.models.build import build, build_backbone
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.norms import at_factor
from flyspeck.models.fold import fold_norms
from flyspeck.models.heads.speck import SpeckHead
from flyspeck.models.losses import ciou_loss, quality_focal_loss, varifocal_loss
from flyspeck.models.names import ZooName, parse_name
from flyspeck.models.profile import profile
from flyspeck.train.distill.response import ResponseTerms
from flyspeck.train.model_config import ModelConfig
from flyspeck.types import FeatureSpec, ImageBatch, Targets
from loss_battery import SHIFTS, check_a_step_against_the_gradient, check_equal_boxes, check_sums

STRIDES = (4, 8, 16)
PADDED = (64, 96)


def head(**options: Any) -> SpeckHead:
    torch.manual_seed(0)
    return SpeckHead([FeatureSpec(16, s) for s in STRIDES], num_classes=2, depth=1, **options)


def maps(batch: int = 1) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, 16, PADDED[0] // s, PADDED[1] // s) for s in STRIDES]


def target(*boxes: list[float]) -> Targets:
    count = len(boxes)
    found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Targets(found, torch.arange(count) % 2, torch.zeros(count, dtype=torch.bool))


@pytest.mark.parametrize("side", [1, 2, 3, 8])
@pytest.mark.parametrize("shift", SHIFTS)
def test_ciou_comes_nearer(side: int, shift: tuple[float, float]) -> None:
    check_a_step_against_the_gradient(ciou_loss, side, shift)


@pytest.mark.parametrize("side", [1, 3, 8])
def test_ciou_of_equal_boxes(side: int) -> None:
    check_equal_boxes(ciou_loss, side)


def test_ciou_sums_and_by_hand() -> None:
    check_sums(ciou_loss)
    # 2x2 in 2x4 from one corner: IoU 1/2; centres 1 apart, diagonal^2 4 + 16; v = 4/pi^2 (atan 1 - atan 1/2)^2 = 0.04196.
    # 1 - 1/2 + 1/20 + v^2 / (1 - 1/2 + v) = 0.55325
    found = ciou_loss(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 4]]))
    assert float(found) == pytest.approx(0.55325, abs=1e-4)


def test_quality_losses_by_hand() -> None:
    logits, quality = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.8])
    # Both cross entropies are ln 2 at a score of 1/2; |0 - .5|^2 = .25 and |.8 - .5|^2 = .09; varifocal: .75 * .25, and .8.
    ln2 = 0.693147
    assert quality_focal_loss(logits, quality).tolist() == pytest.approx([0.25 * ln2, 0.09 * ln2], abs=1e-5)
    assert varifocal_loss(logits, quality).tolist() == pytest.approx([0.1875 * ln2, 0.8 * ln2], abs=1e-5)
    assert quality_focal_loss(torch.logit(quality[1:]), quality[1:]).item() == pytest.approx(0, abs=1e-6)


OPTIONS: dict[str, dict[str, Any]] = {
    "own": {},
    "task_aligned": {"rule": "task_aligned", "score_loss": "varifocal"},
    "plain": {"closeness": "iou", "prior": "none", "box_loss": "ciou"},
    "rfla": {"prior": "rfla"},
    "assigner": {"assigner": named_assigner("nwd")},
    "one_to_one": {"one_to_one": True},
    "rep": {"blocks": "rep"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("side", [0.5, 1, 2, 3, 5, 8])
def test_losses_of_tiny_boxes_have_gradients(options: str, side: float) -> None:
    h = head(**OPTIONS[options])
    losses = h.losses(maps(2), [target([40.5, 30.25, 40.5 + side, 30.25 + side]), target()], PADDED, (PADDED,) * 2)
    assert all(torch.isfinite(v) and v > 0 for v in losses.values())
    torch.stack([*losses.values()]).sum().backward()
    branches = (h.many,) if h.one is None else (h.many, h.one)
    for branch in branches:
        grads = [layer.weight.grad for layer in (*branch.class_logits, *branch.box_deltas)]
        assert all(g is None or torch.isfinite(g).all() for g in grads)
        assert max(float(g.abs().max()) for g in grads if g is not None) > 0


def test_nothing_goes_back_from_the_one_to_one_outputs() -> None:
    h = head(one_to_one=True)
    x = [m.requires_grad_() for m in maps()]
    losses = h.losses(x, [target([40, 30, 44, 34])], PADDED, [PADDED])
    (losses["one_classification"] + losses["one_box"]).backward()
    assert all(m.grad is None for m in x)
    assert all(p.grad is None for p in h.many.parameters())


def test_nothing_is_suppressed_where_each_object_has_one_point() -> None:
    """Two thousand equal boxes stay what they are; with suppression one is left."""
    for one_to_one, left in ((True, 50), (False, 1)):
        h = head(one_to_one=one_to_one).eval()
        branch = h.one or h.many
        for layer in branch.class_logits:
            torch.nn.init.constant_(layer.bias, 3.0)
            torch.nn.init.zeros_(layer.weight)
            layer.bias.data[1] = -9.0  # type: ignore[union-attr]
        for level, layer in enumerate(branch.box_deltas):  # boxes of 4 px on every point's own place are no rivals, so:
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.constant_(layer.bias, 0.0)
            layer.bias.data[2:] = 4.0 - level  # type: ignore[union-attr]
        h.suppression = replace(h.suppression, score=0.5, iou=0.01, max_detections=50)
        with torch.no_grad():
            (found,) = h.detect(maps(), PADDED, [PADDED])
        assert len(found.boxes) == left


@pytest.mark.parametrize(
    ("key", "value"), [("rule", "simoto"), ("box_loss", "giou"), ("prior", "iou"), ("blocks", "reb")]
)
def test_an_unknown_choice_is_named(key: str, value: str) -> None:
    with pytest.raises(UserError, match=f"'{value}' is no {key}"):
        head(**{key: value})


def test_short_names_and_their_channels() -> None:
    assert parse_name("speck_s") == ZooName("speck", "specknet_s") == parse_name("speck:specknet_s")
    assert parse_name("dpnet:speck_n").dynamic
    own = ModelConfig.model_validate({"name": "speck_s"})
    assert (own.channels, own.norm) == (48, "bn")
    told = ModelConfig.model_validate({"name": "speck_s", "channels": 32, "norm": "none"})
    assert (told.channels, told.norm) == (32, "none")
    assert ModelConfig.model_validate({"name": "fcos:resnet18"}).channels == 256
    assert ModelConfig.model_validate({"name": "faster_rcnn:specknet_n"}).channels == 32
    assert ModelConfig().norm == "none"
    with pytest.raises(UserError, match=r"no 'speck_x'.*did you mean 'speck_"):
        parse_name("speck_x")


def test_a_dynamic_speck_is_one_network_for_each_factor_and_folds() -> None:
    torch.manual_seed(0)
    detector = build("dpnet:speck_n", width=0.5, channels=16, levels="2-4")
    assert isinstance(detector, Detector)
    twin = at_factor(detector.eval(), 0.5)
    images = ImageBatch(torch.rand(1, 3, 64, 64), ((64, 64),))
    with torch.no_grad():
        before = twin.pyramid(images)
        mine = copy.deepcopy(twin)
        fold_norms(mine, lambda: mine.pyramid(images))
        for a, b in zip(mine.pyramid(images), before, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_speck_teaches_another_by_what_it_says_and_by_its_maps() -> None:
    torch.manual_seed(0)
    teacher, student, other = (
        build("speck_n", classes="ab", width=0.5, channels=c, prior_scale=p)
        for c, p in ((24, 2.0), (16, 2.0), (16, 3.0))
    )
    assert isinstance(teacher, Detector)
    assert isinstance(student, Detector)
    assert isinstance(other, Detector)
    terms = ResponseTerms(student, teacher, temperature=1.0, regions=8)
    images = ImageBatch(torch.rand(1, 3, 64, 64), ((64, 64),))
    with torch.no_grad():
        given = terms.observe(teacher, images)
        apart = terms(student, [student.head(student.pyramid(images))], [], given, images)
        same = terms(teacher, [teacher.head(teacher.pyramid(images))], [], given, images)
    assert min(float(v) for v in apart.values()) > 0
    assert max(float(v) for v in same.values()) == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match="different anchors"):  # boxes in other units are not compared
        ResponseTerms(other, teacher, temperature=1.0, regions=8)


@pytest.mark.parametrize("fusion", [[0.5, 0.25], "gate", "three"])
def test_the_edges_of_its_pyramid_have_factors(fusion: Any) -> None:
    torch.manual_seed(0)
    detector = build("speck_n", width=0.5, channels=16, fusion=fusion)
    assert isinstance(detector, Detector)
    images = ImageBatch(torch.rand(1, 3, 64, 64), ((64, 64),))
    with torch.no_grad():
        before = detector.eval().pyramid(images)[0]
        if fusion == "gate":
            assert len(detector.neck.gates) == 2  # type: ignore[arg-type]
            return
        detector.neck.fusion.mul_(2)  # type: ignore[union-attr, operator]
        assert not torch.equal(detector.pyramid(images)[0], before)


def test_any_backbone_carries_it_and_its_body_carries_others() -> None:
    with torch.device("meta"):
        bottom, moved = bottom_heavy(build_backbone("specknet_s"), size=(256, 320))
        others = ("faster_rcnn:specknet_n", "retinanet:specknet_n:sspnet")
        for name in ("speck:bh_resnet14", "speck_s", "speck:specknet_n-S1L0", *others):
            built = build(name, width=0.25)
            assert isinstance(built, Detector)
            assert profile(built, (64, 96), convention="macs").parts["backbone"] > 0
    assert moved.gflops_after == pytest.approx(moved.gflops_before, rel=0.15)
    assert bottom.features[0].stride == 4
    with torch.device("meta"):
        assert [f.stride for f in build("speck:specknet_n-S1L0", width=0.25).features] == [2, 4, 8]  # type: ignore[union-attr]


GOALS = {"n": 0.35, "s": 0.8, "m": 2.5}


@pytest.mark.parametrize("blocks", ["rep", "separable"])
@pytest.mark.parametrize("size", GOALS)
def test_the_sizes_cost_what_they_should(size: str, blocks: str) -> None:
    with torch.device("meta"):
        detector = build(f"speck_{size}", classes=["object"], backbone_options={"blocks": blocks})
    found = profile(detector, (256, 320), convention="macs")
    assert found.gflops == pytest.approx(GOALS[size], rel=0.05)
