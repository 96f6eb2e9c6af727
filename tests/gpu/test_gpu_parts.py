"""What a GPU computes by kernels of its own: assignment, suppression, RoIAlign, deformable convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flyspeck.models.anchors import strided_anchors
from flyspeck.models.assigners.base import Priors
from flyspeck.models.assigners.build import NAMES, named_assigner
from flyspeck.models.deformable import DeformableConv
from flyspeck.models.postprocess import Suppression, suppress
from flyspeck.models.roi_align import pyramid_roi_align
from flyspeck.types import FeatureSpec

HEIGHT, WIDTH = 96, 128
SIDES = (1.0, 2.0, 3.0, 5.0, 8.0, 14.0, 30.0)


def boxes(number: int, seed: int) -> Tensor:
    """Of 1 to 30 px, some of them crowded."""
    draw = torch.Generator().manual_seed(seed)
    side = torch.tensor(SIDES)[torch.randint(0, len(SIDES), (number, 1), generator=draw)]
    corner = torch.rand(number, 2, generator=draw) * torch.tensor([WIDTH - 31.0, HEIGHT - 31.0])
    corner[number // 2 :] = corner[: number - number // 2] + 0.5
    return torch.cat([corner, corner + side * (0.8 + 0.4 * torch.rand(number, 2, generator=draw))], 1)


@pytest.mark.parametrize("name", NAMES)
def test_priors_learn_the_same_objects(name: str, device: torch.device) -> None:
    build = named_assigner(name, ratios=(4.6, 3.5), receptive_fields=(19.0, 59.0, 267.0, 491.0, 619.0))
    assigner = build(foreground=0.7, background=0.3)
    sizes = [(-(-HEIGHT // 2**i), -(-WIDTH // 2**i)) for i in range(2, 7)]
    grid = strided_anchors([FeatureSpec(8, 4 * 2**i) for i in range(5)])
    ignored = torch.tensor([[0.0, 0, 40, 30]])
    found = []
    for place in (torch.device("cpu"), device):
        priors = Priors.on_levels(grid(sizes, (HEIGHT, WIDTH), place), [3 * h * w for h, w in sizes])
        found.append(assigner(priors, boxes(12, 0).to(place), ignored.to(place)).to("cpu"))
    assert (found[0] >= 0).any()
    # A prior that lies on a threshold may fall to either side.
    assert (found[0] != found[1]).float().mean() < 1e-3


@pytest.mark.parametrize("how", [{}, {"method": "tiny"}, {"soft": "gaussian"}, {"soft": "linear"}])
def test_the_same_boxes_are_kept(how: dict[str, Any], device: torch.device) -> None:
    rule = Suppression(score=0.05, iou=0.5, max_detections=300, **how)
    draw = torch.Generator().manual_seed(3)
    scores, labels = torch.rand(400, generator=draw), torch.randint(0, 3, (400,), generator=draw)
    columns = (boxes(400, 1), scores, labels)
    expected = suppress(*columns, (HEIGHT, WIDTH), rule)
    found = suppress(*(column.to(device) for column in columns), (HEIGHT, WIDTH), rule)
    assert 20 < len(expected.scores) <= 300
    for name in ("boxes", "scores", "labels"):
        assert_close(getattr(found, name).to("cpu"), getattr(expected, name), atol=1e-4, rtol=1e-5)


def test_regions_are_pooled_alike(device: torch.device) -> None:
    draw = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 6, HEIGHT // s, WIDTH // s, generator=draw) for s in (4, 8, 16)]
    regions = torch.cat([torch.cat([torch.full((9, 1), float(i)), boxes(9, 5 + i) / 4], 1) for i in range(2)])
    level = torch.tensor([0, 1, 2] * 6)
    results = []
    for place in (torch.device("cpu"), device):
        leaves = [m.to(place, copy=True).requires_grad_() for m in maps]
        pooled = pyramid_roi_align(leaves, regions.to(place), level.to(place), 7, 2, True)
        pooled.square().sum().backward()
        results.append([pooled.detach().to("cpu"), *(leaf.grad.to("cpu") for leaf in leaves)])
    assert len(results[0]) == len(results[1]) == 4
    for here, there in zip(*results, strict=True):
        assert_close(there, here, atol=1e-4, rtol=1e-4)


def test_deformable_convolutions(device: torch.device) -> None:
    torch.manual_seed(0)
    layer = DeformableConv(6, 8, 3, padding=1)
    layer.offset.weight.data.normal_(0, 0.2)
    x = torch.rand(2, 6, 20, 24)
    expected = layer(x).detach()
    found = layer.to(device)(x.to(device)).detach().to("cpu")
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
