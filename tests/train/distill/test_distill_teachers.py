"""Any detector can teach: bottom-heavy, scale-selecting, of two or more stages, dynamic, a transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from flyspeck.models.detector import Detector
from flyspeck.train.build import build_detector
from flyspeck.train.config import DynamicConfig, ModelConfig
from flyspeck.train.distill.config import DistillConfig
from flyspeck.train.distill.objective import build_objective
from flyspeck.train.distill.teacher import Teacher, TeacherSource, weights_hash
from flyspeck.train.dynamic import make_dynamic
from flyspeck.types import ImageBatch, Targets

BOXES: dict[str, Any] = {"hidden": 16, "samples": 16, "train_proposals": 20, "proposals": 20}


def build(name: str, *, channels: int = 12, **fields: Any) -> Detector:
    torch.manual_seed(0)
    model = ModelConfig(name=name, channels=channels, **{"norm": "bn", "width": 0.25, "head": {}, **fields})
    return build_detector(model, classes=("car",), mean=[0.5], std=[0.25], load=False)


@pytest.mark.parametrize(
    ("name", "fields", "dynamic"),
    [
        ("retinanet:bh_resnet18:sspnet", {"head": {"depth": 1}}, None),
        ("cascade_rcnn:bh_resnet14", {"head": BOXES}, None),
        ("faster_rcnn:swin_t", {"head": BOXES, "norm": "none"}, None),
        ("reppoints:resnet18", {}, DynamicConfig()),
    ],
)
def test_any_detector_teaches(name: str, fields: dict[str, Any], dynamic: DynamicConfig | None) -> None:
    master = build(name, **fields)
    make_dynamic(master, dynamic)
    student = build("retinanet:shufflenet_v2", channels=8, head={"depth": 1}, width=0.5)
    before = weights_hash(master)
    teacher = Teacher(master)
    pixels = torch.randint(0, 256, (2, 1, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageBatch(pixels, ((64, 96), (60, 90)))
    targets = [Targets(torch.tensor([[10.0, 10, 14, 15]]), torch.zeros(1).long(), torch.zeros(1).bool())] * 2
    # What runs has folded norms; it gives the maps of the detector itself.
    seen = teacher.outputs(images, lambda d, b: {str(i): m for i, m in enumerate(d.pyramid(b))})
    with torch.no_grad():
        for own, folded in zip(master.eval().pyramid(images), seen.values(), strict=True):
            assert_close(folded, own, atol=1e-3 * float(own.abs().max()), rtol=1e-3)
    whole = build_objective(DistillConfig(teacher="given"), student, teacher, lambda o: TeacherSource(teacher, o))
    losses = whole(images, targets)
    kd = torch.stack([losses[f"kd_{term}"] for term in ("spatial", "semantic", "contextual")])
    assert (kd > 0).all()
    kd.sum().backward()
    assert all(p.grad is not None for p in whole.terms.parameters())  # the adapters of P2 to P5
    assert len(whole.terms.adapters) == 4
    assert weights_hash(master) == before
