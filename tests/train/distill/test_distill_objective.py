"""A distilled step: the teacher stays as it is, heads of two kinds work for features, and responses need one kind."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.detector import Detector
from flyspeck.models.heads.faster_rcnn import FasterRCNNHead
from flyspeck.train.build import build_detector
from flyspeck.train.config import ModelConfig
from flyspeck.train.distill.config import DistillConfig
from flyspeck.train.distill.objective import FeatureObjective, ResponseObjective, build_objective
from flyspeck.train.distill.response import bernoulli_kl, dense_terms, softmax_kl
from flyspeck.train.distill.teacher import AsStudent, Teacher, TeacherSource, enlarged, shared_classes, weights_hash
from flyspeck.train.distill.weighting import GradientNormWeights, UncertaintyWeights
from flyspeck.train.optim import parameter_groups
from flyspeck.types import ImageBatch, Targets
from same_detections import assert_same_detections

HEADS = {
    "retinanet": {"depth": 1},
    "fcos": {"depth": 1},
    "tinaface": {"depth": 1},
    "faster_rcnn": {"hidden": 16, "samples": 16, "train_proposals": 30, "proposals": 20},
}


def detector(kind: str, channels: int = 8, classes: tuple[str, ...] = ("car", "person"), **more: object) -> Detector:
    torch.manual_seed(channels)
    model = ModelConfig(
        name=f"{kind}:mobilenet_v2",
        width=0.25,
        channels=channels,
        norm="bn",
        head=HEADS[kind],
        **more,  # type: ignore[arg-type]
    )
    return build_detector(model, classes=classes, mean=[0.5], std=[0.25], load=False)


@pytest.fixture(scope="module")
def batch() -> tuple[ImageBatch, list[Targets]]:
    pixels = torch.randint(0, 256, (2, 1, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[10.0, 10.0, 14.0, 15.0], [40.0, 30.0, 52.0, 40.0]]), torch.zeros(0, 4)]
    return ImageBatch(pixels, ((64, 96), (60, 90))), [
        Targets(b, torch.zeros(len(b), dtype=torch.int64), torch.zeros(len(b), dtype=torch.bool)) for b in boxes
    ]


def objective(
    student: Detector, teacher: Detector, *, scale: float = 1.0, **fields: Any
) -> FeatureObjective | ResponseObjective:
    whole = Teacher(teacher, scale=scale)
    config = DistillConfig(teacher="given", **fields)  # type: ignore[arg-type]
    return build_objective(config, student, whole, lambda observe: TeacherSource(whole, observe))


def minimised(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([v for name, v in losses.items() if not name.startswith("observed/")]).sum()


@pytest.mark.parametrize(
    ("student", "teacher", "fields"),
    [
        ("retinanet", "faster_rcnn", {}),
        ("faster_rcnn", "retinanet", {"method": "single"}),
        ("faster_rcnn", "faster_rcnn", {"attention_weighted": True, "size_power": 1.0, "scale": 2.0}),
        ("fcos", "retinanet", {"scale": 2.0, "match": "level"}),
        ("faster_rcnn", "faster_rcnn", {"method": "response", "regions": 8}),
        ("retinanet", "retinanet", {"method": "response"}),
        ("fcos", "fcos", {"method": "response"}),
        ("tinaface", "tinaface", {"method": "response"}),
    ],
)
def test_a_step_changes_the_student_and_leaves_the_teacher(
    student: str, teacher: str, fields: dict, batch: tuple[ImageBatch, list[Targets]]
) -> None:
    master = detector(teacher, channels=12)
    before = weights_hash(master)
    whole = objective(detector(student), master, **fields).train()
    optimizer = torch.optim.SGD(parameter_groups(whole, lr=0.01, weight_decay=0.0), lr=0.01)
    pupil = {name: value.clone() for name, value in whole.detector.state_dict().items()}
    losses = whole(*batch)
    assert any(name.startswith("kd_") for name in losses)
    minimised(losses).backward()
    optimizer.step()
    assert weights_hash(master) == before
    assert any(not torch.equal(pupil[name], value) for name, value in whole.detector.state_dict().items())
    # Nothing of the teacher is trained or saved, and the detector holds no adapter.
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) < sum(
        p.numel() for p in (*whole.detector.parameters(), *master.parameters())
    )
    assert set(whole.detector.state_dict()) == set(detector(student).state_dict())
    assert all(not name.startswith("source") for name in whole.state_dict())


def test_a_teacher_that_is_the_student_costs_nothing(batch: tuple[ImageBatch, list[Targets]]) -> None:
    student = detector("retinanet").eval()  # in evaluation mode both compute the same
    whole = objective(student, student)
    losses = whole(*batch)
    for name in ("kd_spatial", "kd_semantic", "kd_contextual"):
        assert_close(losses[name].detach(), torch.tensor(0.0), atol=1e-4, rtol=0)
    assert_close(losses["observed/similarity_P2"], torch.tensor(1.0), atol=1e-3, rtol=0)
    losses = objective(student, student, method="response")(*batch)
    assert_close(losses["kd_class"].detach(), torch.tensor(0.0), atol=1e-4, rtol=0)


def test_the_student_comes_closer_to_the_teacher(batch: tuple[ImageBatch, list[Targets]]) -> None:
    whole = objective(detector("retinanet"), detector("faster_rcnn", channels=12), weight=1.0).train()
    optimizer = torch.optim.Adam(parameter_groups(whole, lr=0.003, weight_decay=0.0), lr=0.003)
    seen = []
    for _ in range(12):
        losses = whole(*batch)
        kd = torch.stack([v for name, v in losses.items() if name.startswith("kd_")]).sum()
        seen.append(float(kd.detach()))
        optimizer.zero_grad()
        kd.backward()
        optimizer.step()
    assert seen[-1] < 0.8 * seen[0]


def test_lambda_and_level_weights_multiply(batch: tuple[ImageBatch, list[Targets]]) -> None:
    student, teacher = detector("retinanet").eval(), detector("retinanet", channels=12)

    def spatial(**fields: Any) -> Tensor:
        torch.manual_seed(0)  # the adapters
        return objective(student, teacher, **fields)(*batch)["kd_spatial"].detach()

    both: dict[str, Any] = {"levels": [2, 3], "semantic": 0.0, "contextual": 0.0}
    first, second = spatial(spatial=[1.0, 0.0], **both), spatial(spatial=[0.0, 1.0], **both)
    assert float(first) > 0 < float(second)
    torch.manual_seed(0)
    mixed = objective(student, teacher, spatial=[2.0, 1.0], weight=3.0, **both)
    parts = mixed.terms(student.pyramid(batch[0]), mixed.source(batch[0]), *batch)
    assert_close(mixed(*batch)["kd_spatial"], 3 * (2 * parts["spatial P2"] + parts["spatial P3"]))
    assert set(parts) == {"spatial P2", "spatial P3"}


def test_responses_need_heads_of_one_kind_on_the_same_anchors() -> None:
    with pytest.raises(UserError, match=r"heads of one kind only, these are RetinaNetHead and FasterRCNNHead"):
        objective(detector("retinanet"), detector("faster_rcnn"), method="response")
    other = detector("retinanet", anchors={"base_scale": 3.0})
    with pytest.raises(UserError, match="different anchors"):
        objective(detector("retinanet"), other, method="response")
    with pytest.raises(UserError, match="enlarged by 2"):
        objective(detector("retinanet"), detector("retinanet"), method="response", scale=2.0)
    with pytest.raises(UserError, match="share no class: boat against car"):
        objective(detector("fcos", classes=("car",)), detector("fcos", classes=("boat",)), method="response")


def test_classes_are_aligned_by_name(batch: tuple[ImageBatch, list[Targets]]) -> None:
    own, theirs, remarks = shared_classes(("car", "person", "dog"), ("boat", "person", "car"))
    assert (own, theirs) == ([0, 1], [2, 1])
    assert remarks == ["the teacher does not know dog", "the student does not know boat"]
    # A teacher with its classes in another order says the same to a student with its own weights in that order.
    for kind in ("retinanet", "faster_rcnn"):
        student = detector(kind).eval()
        turned = detector(kind, classes=("person", "car")).eval()
        turned.load_state_dict(student.state_dict())
        _exchange_classes(turned)
        losses = objective(student, turned, method="response", regions=8)(*batch)
        assert_close(losses["kd_class"].detach(), torch.tensor(0.0), atol=1e-4, rtol=0)


@torch.no_grad()
def _exchange_classes(model: Detector) -> None:
    """Rows of the class layer in the other order (two classes; of a two-stage head with the background behind)."""
    head = model.head
    layer = head.box_head.class_logits if isinstance(head, FasterRCNNHead) else head.class_logits
    assert isinstance(layer, nn.Module)
    rows = torch.arange(len(layer.weight))  # type: ignore[arg-type]
    rows = rows.view(-1, 2).flip(1).flatten() if len(rows) % 2 == 0 else torch.tensor([1, 0, 2])
    for parameter in layer.parameters():
        parameter.copy_(parameter[rows])


def test_softened_scores_by_hand() -> None:
    # KL((0.8, 0.2) || (0.5, 0.5)) = 0.8 ln 1.6 + 0.2 ln 0.4 = 0.19274.
    teacher, student = torch.tensor([[0.8, 0.2]]).log(), torch.zeros(1, 2)
    assert_close(softmax_kl(student, teacher, temperature=1.0), torch.tensor([0.192745]), atol=1e-5, rtol=0)
    assert_close(
        bernoulli_kl(torch.zeros(1), torch.tensor([4.0]).log(), temperature=1.0),
        torch.tensor([0.192745]),
        atol=1e-5,
        rtol=0,
    )
    # At a temperature of 2, probabilities 2/3 and 1/3 remain of the odds 4 : 1; times T^2 = 4.
    softer = 4 * (2 / 3 * torch.tensor(4 / 3).log() + 1 / 3 * torch.tensor(2 / 3).log())
    assert_close(softmax_kl(student, teacher, temperature=2.0)[0], softer)


def test_dense_terms_follow_the_teachers_confidence() -> None:
    teacher = torch.full((1, 1000, 1), -20.0)
    teacher[0, 3] = 20.0  # one sure anchor among a thousand
    boxes, off = torch.zeros(1, 1000, 4), torch.zeros(1, 1000, 4)
    off[0, 3], off[0, 5] = 1.0, 50.0  # the error on background counts nothing
    classes, distance = dense_terms(teacher.clone(), off, teacher, boxes, temperature=1.0)
    assert_close(classes, torch.tensor(0.0), atol=1e-5, rtol=0)
    assert_close(distance, torch.tensor(1.0 - 0.11 / 2), atol=1e-4, rtol=0)


def test_softened_logits_keep_the_size_of_their_gradient() -> None:
    # As above: odds of 4 : 1 soften to 2/3 and 1/3 at a temperature of 2, against 1/2; times T^2 = 4.
    softer = 4 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))
    apart = bernoulli_kl(torch.zeros(1), torch.tensor([4.0]).log(), temperature=2.0)
    assert_close(apart, torch.tensor([softer]))


def test_a_teacher_that_is_sure_of_nothing_says_next_to_nothing() -> None:
    # Its total confidence is 1000 / (1 + e^10) = 0.045: without a floor of 1 the sums would be divided by that.
    teacher, student = torch.full((1, 1000, 1), -10.0), torch.full((1, 1000, 1), -8.0)
    classes, distance = dense_terms(student, torch.ones(1, 1000, 4), teacher, torch.zeros(1, 1000, 4), temperature=1.0)
    assert_close(classes, bernoulli_kl(student, teacher, temperature=1.0).sum())
    assert_close(distance, torch.tensor((1 - 0.11 / 2) * 1000 / (1 + math.exp(10))), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "term"), [("fcos", "centerness"), ("faster_rcnn", "boxes")])
def test_neither_do_its_centerness_and_its_boxes(kind: str, term: str, batch: tuple[ImageBatch, list[Targets]]) -> None:
    teacher = detector(kind, channels=12)
    layer = teacher.head.box_head.class_logits if kind == "faster_rcnn" else teacher.head.class_logits
    assert isinstance(layer, nn.Module)
    bias = layer.bias
    assert isinstance(bias, Tensor)
    with torch.no_grad():
        bias.fill_(-25.0)
        bias[2:] = 0.0  # the background of the second stage
        if kind == "faster_rcnn":
            teacher.head.box_head.box_deltas.bias.fill_(3.0)  # boxes far from the student's  # type: ignore[union-attr]
    losses = objective(detector(kind), teacher, method="response", regions=8)(*batch)
    assert float(losses[f"kd_{term}"].detach()) < 1e-4


def test_softened_background_outweighs_an_object() -> None:
    # One object that the student misses among 1000 anchors of background, on which both are sure, if not equally.
    teacher, student = torch.full((1, 1000, 1), -9.0), torch.full((1, 1000, 1), -6.0)
    teacher[0, 0] = 5.0
    parts = {}
    for temperature in (1.0, 2.0):
        apart = bernoulli_kl(student, teacher, temperature=temperature)[0, :, 0]
        parts[temperature] = float(apart[1:].sum() / apart[0])
    assert parts[1.0] < 0.5 < 3 < parts[2.0]


def test_gradient_norms_become_proportional() -> None:
    torch.manual_seed(0)
    m = torch.randn(2, 3, 4, 4, requires_grad=True)
    terms = {"a": (m * 100).square().mean(), "b": (m - 1).square().mean() * 1e-3}
    detection = m.square().sum()
    weighted = GradientNormWeights({"a": 1.0, "b": 3.0})(terms, detection, [m])
    lengths = {
        k: torch.autograd.grad(v, m, retain_graph=True)[0].norm() for k, v in (*weighted.items(), ("det", detection))
    }
    assert_close(lengths["a"], 0.25 * lengths["det"], rtol=1e-4, atol=1e-4)
    assert_close(lengths["b"], 0.75 * lengths["det"], rtol=1e-4, atol=1e-4)


def test_learnt_uncertainty_settles_at_the_size_of_its_term() -> None:
    weighting = UncertaintyWeights({"a": 1.0, "b": 1.0})
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.2)
    for _ in range(200):
        found = weighting({"a": torch.tensor(5.0), "b": torch.tensor(0.5)}, torch.tensor(0.0), [])
        optimizer.zero_grad()
        torch.stack([*found.values()]).sum().backward()
        optimizer.step()
    assert_close(weighting.log_variance.exp().detach(), torch.tensor([5.0, 0.5]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("adaptive", ["uncertainty", "gradient_norm"])
def test_adaptive_weights_in_a_step(adaptive: str, batch: tuple[ImageBatch, list[Targets]]) -> None:
    whole = objective(detector("retinanet"), detector("retinanet", channels=12), adaptive=adaptive).train()
    minimised(whole(*batch)).backward()
    assert all(p.grad is not None for p in whole.parameters() if p.requires_grad)


def test_a_teacher_of_enlarged_images_answers_in_the_students_pixels() -> None:
    teacher = detector("faster_rcnn", classes=("boat", "car")).eval()
    images = ImageBatch(torch.randint(0, 256, (1, 1, 64, 96), dtype=torch.uint8), ((60, 90),))
    direct = teacher.detect(enlarged(images, 2.0))[0]
    seen = AsStudent(teacher, scale=2.0, classes=("car", "person")).detect(images)[0]
    kept = direct.labels == 1
    expected = replace(direct[kept], boxes=direct.boxes[kept] / 2, labels=direct.labels[kept] - 1)
    assert_same_detections([seen], [expected], box_px=1e-4, score=1e-6, rule=teacher.head.suppression)
    assert (seen.labels == 0).all()
    assert seen.image_size == (60, 90)
    assert enlarged(images, 2.0).sizes == ((120, 180),)
    assert enlarged(images, 1.0) is images
