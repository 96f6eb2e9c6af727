"""Detection transformers teach each other: by the maps of their encoders, and by queries that are paired."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flyspeck.errors import UserError
from flyspeck.models.build import build
from flyspeck.models.detector import DenseOutputs, Detector
from flyspeck.train.distill.config import DistillConfig
from flyspeck.train.distill.objective import build_objective
from flyspeck.train.distill.response import ResponseTerms
from flyspeck.train.distill.teacher import Teacher
from flyspeck.types import ImageBatch, Targets
from needs import TRANSFORMERS

pytestmark = TRANSFORMERS
SIZE = (64, 96)


def detector(kind: str = "dfine", classes: str = "ab", **options: Any) -> Detector:
    given = {"channels": 16, "layers": 1, "queries": 30, "noise_queries": 4, "levels": "2-5"}
    found = build(f"{kind}:resnet18", classes=classes, width=0.125, **{**given, **options})
    assert isinstance(found, Detector)
    return found


def images() -> ImageBatch:
    return ImageBatch(torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1)), (SIZE, SIZE))


def truth() -> list[Targets]:
    boxes = torch.tensor([[10.0, 10, 14, 14], [40, 30, 43, 33]])
    return [Targets(boxes, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool))] * 2


@pytest.mark.parametrize("kind", ["dfine", "rtdetrv2"])
def test_queries_of_two_detectors_are_paired_whatever_their_number(kind: str) -> None:
    torch.manual_seed(0)
    student, teacher = detector(kind), detector(kind, classes="bc", queries=50, levels="3-5", channels=32)
    terms = ResponseTerms(student, teacher.eval(), temperature=1.0, regions=8, teacher_scale=2.0)
    with torch.no_grad():
        given = terms.observe(teacher, images())
        found = terms(student, [student.head(student.pyramid(images()))], [], given, images())
        itself = ResponseTerms(teacher, teacher, temperature=1.0, regions=8)
        same = itself(teacher, [teacher.head(teacher.pyramid(images()))], [], given, images())
    assert found.keys() == {"class", "anchors"}
    assert min(float(value) for value in found.values()) > 0
    assert max(float(value) for value in same.values()) == pytest.approx(0, abs=1e-5)


def test_pairs_are_one_to_one_and_know_no_order() -> None:
    torch.manual_seed(0)
    head = detector().head
    logits, boxes = torch.randn(1, 8, 2), torch.rand(1, 8, 4) * 0.2 + 0.3
    order = torch.randperm(8)
    rows = head.dense_pairs(DenseOutputs(logits, boxes), DenseOutputs(logits[:, order], boxes[:, order]), (320, 320))
    assert torch.equal(rows[0], order)
    few = head.dense_pairs(DenseOutputs(logits[:, :3], boxes[:, :3]), DenseOutputs(logits, boxes), (320, 320))
    assert sorted(few[0].tolist()) == [-1] * 5 + [0, 1, 2]


@pytest.mark.parametrize("method", ["response", "hierarchical"])
def test_a_step_of_the_student(method: str) -> None:
    torch.manual_seed(0)
    student, teacher = detector(), detector(channels=32)
    config = DistillConfig.model_validate({"teacher": "x", "method": method})
    held = Teacher(teacher.eval(), scale=1.0, fold=False)

    def source(observe: Any) -> Any:
        def seen(batch: ImageBatch) -> Any:
            with torch.no_grad():
                return observe(teacher, batch)

        return seen

    losses = build_objective(config, student, held, source)(images(), truth())
    added = [name for name in losses if name.startswith("kd_")]
    assert added
    total = torch.stack([value for name, value in losses.items() if "similarity" not in name]).sum()
    assert torch.isfinite(total)
    total.backward()
    assert student.head.enc_score_head.weight.grad is not None  # type: ignore[union-attr]


def test_a_transformer_learns_maps_of_another_kind_of_detector() -> None:
    torch.manual_seed(0)
    teacher = build("fcos:resnet18", classes="ab", width=0.125, channels=32, levels="2-5", depth=1)
    assert isinstance(teacher, Detector)
    config = DistillConfig.model_validate({"teacher": "x", "method": "hierarchical"})
    held = Teacher(teacher.eval(), scale=1.0, fold=False)
    losses = build_objective(config, detector(), held, lambda observe: lambda batch: observe(teacher, batch))(
        images(), truth()
    )
    assert {"kd_spatial", "kd_semantic", "kd_contextual"} <= losses.keys()
    with pytest.raises(UserError, match="heads of one kind"):
        ResponseTerms(detector(), teacher, temperature=1.0, regions=8)
