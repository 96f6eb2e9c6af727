"""Whole names, built and trained one step, or refused with the reason. `test_grid` has every backbone x neck x head."""

from __future__ import annotations

import pytest
import torch

from flyspeck.errors import UserError
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.heads.ssd_tables import MOBILENET_V1, VGG16
from flyspeck.types import ImageBatch, Targets

HEIGHT, WIDTH = 64, 96
# What the grid of parts does not pass through: names whose stages lost a stride, a neck that comes with the backbone or is
# asked for, and the detectors without a neck.
NAMES = (
    "retinanet:resnet18",
    "reppoints:hrnet18",
    "cascade_rcnn:mobilenet_v2:sspnet",
    "faster_rcnn:resnet18-S1L1:fpn",
    "fcos:mobilenet_v1-S1L0",
    "ssd:mobilenet_v2:S1L7",
    "ssd:vgg16:S1L2-DualPath",
)


def one_step(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, width=0.125, classes=("a", "b"), **({} if name.startswith("ssd") else {"channels": 32}))
    assert isinstance(model, Detector)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[10.0, 10, 16, 16], [40, 30, 43, 32], [60, 20, 84, 44]])
    target = Targets(boxes, torch.tensor([0, 1, 0]), torch.tensor([False, False, False]))
    images = ImageBatch(pixels, ((HEIGHT, WIDTH), (HEIGHT, 80)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = model.train().losses(images, [target, target])
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values()), losses
    torch.stack(list(losses.values())).sum().backward()
    reached = {
        name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert {"backbone", "head"} <= reached
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    optimizer.step()
    found = model.eval().detect(images)
    assert [d.image_size for d in found] == [(HEIGHT, WIDTH), (HEIGHT, 80)]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_trains_one_step_and_detects(name):
    one_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"ssd:mobilenet_v1:{c}" for c in MOBILENET_V1), *(f"ssd:vgg16:{c}" for c in VGG16)])
def test_every_ssd_configuration_trains_one_step(name):
    one_step(name)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("retinanet:hrnet18", {"levels": "3-7"}, "gives all its maps together"),
        ("retinanet:resnet18:hrfpn", {"fusion": (0.5, 0.5, 0.5)}, "hrfpn has no top-down fusion factors"),
        ("retinanet:resnet18", {"levels": "1-5"}, "resnet18 has no map of level 1.*levels 2, 3, 4, 5"),
        ("retinanet:bh_resnet14", {"levels": "2-4"}, "leave out the last map of bh_resnet14, which has level 5"),
        ("retinanet:resnet18", {"depht": 3}, "retinanet takes no 'depht'.*'depth'"),
        ("faster_rcnn:resnet18", {"rpn": {"sampels": 3}}, "faster_rcnn's rpn takes no 'sampels'.*'samples'"),
        ("ssd:hrnet18", {}, "SSD needs a chain of stages"),
        ("ssd:resnet18:fpn", {}, "no SSD configuration 'fpn'"),
        ("retinanet:resnet18-S1L3", {}, "layer 3 has no stride to eliminate"),
        ("retinanet:resnet18-S1L99", {}, "no layer 99"),
    ],
)
def test_impossible_pairs_are_refused_with_the_reason(name, options, reason):
    with pytest.raises(UserError, match=reason), torch.device("meta"):
        build(name, width=0.125, **options)
