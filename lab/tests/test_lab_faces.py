"""S3FD and PyramidBox: the published layers, anchors, matching in two stages, boxes of 1 to 8 px, and that they learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError
from flyspeck.models.assign import BACKGROUND, IGNORED, max_iou_assign
from flyspeck.models.build import build
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.profile import profile
from flyspeck.types import ImageBatch, Targets
from flyspeck_lab.comparators.pyramidbox import LowLevelPyramid, PyramidBoxHead, pyramidbox
from flyspeck_lab.comparators.s3fd import SIDES, MaxInOut, ScaleCompensation, s3fd, squares
from learning import build_small_backbone, learn_on, make_squares

SYSTEMS = ("s3fd:vgg16", "s3fd:mobilenet_v1", "pyramidbox:vgg16", "pyramidbox:resnet18")
PAGE = Path(__file__).parents[2] / "docs" / "papers" / "comparators.md"


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return inputs * outputs * kernel * kernel + outputs


VGG16 = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)] * 2, (256, 512), *[(512, 512)] * 5]
SOURCES = (256, 512, 512, 1024, 512, 256)
"""Channels of conv3_3, conv4_3, conv5_3, fc7, conv6_2, conv7_2."""


def base() -> int:
    """VGG16 up to fc7, and the two extra layers: the published list."""
    extras = conv(1024, 256, 1) + conv(256, 512) + conv(512, 128, 1) + conv(128, 256)
    return sum(conv(*pair) for pair in VGG16) + conv(512, 1024) + conv(1024, 1024, 1) + extras


def test_s3fd_has_the_published_layers() -> None:
    # Predictors: 4 offsets and 2 scores a cell, on the first map 4 scores; L2 norms: a factor for each channel of three maps.
    wanted = base() + 256 + 512 + 512 + sum(conv(c, 4) + conv(c, 2 + 2 * (i == 0)) for i, c in enumerate(SOURCES))
    with torch.device("meta"):
        counted = profile(build("s3fd:vgg16"), (640, 640), convention="macs")
    assert counted.params == wanted == 22_459_110
    assert counted.gflops == pytest.approx(128.541, abs=0.0006)
    page = PAGE.read_text(encoding="utf-8")
    assert "22.459" in page
    assert "128.541" in page


def test_pyramidbox_has_the_published_layers() -> None:
    down = conv(1024, 512, 1) + 3 * conv(512, 512, 1) + conv(512, 256, 1) + conv(256, 256, 1)
    # Residual of a prediction block: four convolutions without bias, each with a norm; then SSH's five with biases.
    block = 256 * 256 * 9 + 256 * 1024 + 2 * (1024 + 256 + 256 + 1024)
    ssh = conv(1024, 256) + conv(1024, 128) + 3 * conv(128, 128)
    context = sum(c * (1024 + 256) + block + ssh for c in SOURCES) + 3 * 512
    faces = 6 * (conv(512, 4) + conv(512, 4))
    around = (5 + 4) * (conv(512, 4) + conv(512, 2))
    with torch.device("meta"):
        counted = profile(build("pyramidbox:vgg16"), (640, 640), convention="macs")
    assert counted.params == base() + down + context + faces + around == 57_236_006
    page = PAGE.read_text(encoding="utf-8")
    assert "57.236" in page
    assert f"{counted.gflops:.3f}" in page


@pytest.mark.parametrize("name", SYSTEMS)
def test_maps_and_anchors(name: str) -> None:
    """Six maps of strides 4 to 128, one anchor of four strides a cell; around a face, the same faces one map up."""
    detector = build(name, width=0.0625)
    assert isinstance(detector, Detector)
    with torch.no_grad():
        levels = detector.eval().pyramid(ImageBatch(torch.zeros(1, 3, 256, 256, dtype=torch.uint8), ((256, 256),)))
    assert [level.shape[-1] for level in levels] == [64, 32, 16, 8, 4, 2]
    assert [spec.stride for spec in detector.features] == [4, 8, 16, 32, 64, 128]
    assert [spec.channels for spec in detector.features] == [level.shape[1] for level in levels]
    heads = [detector.head]
    if isinstance(detector.head, PyramidBoxHead):
        heads = [detector.head.face, *detector.head.around]
    for number, head in enumerate(heads):
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels[number:]]
        anchors = head.priors(sizes, (256, 256), torch.device("cpu"))  # type: ignore[operator, union-attr]
        sides = torch.cat([torch.full((h * w,), side) for (h, w), side in zip(sizes, SIDES, strict=False)])
        assert (anchors[:, 2] - anchors[:, 0]).equal(sides)


def test_max_in_out_by_hand() -> None:
    """Of two classes with two scores each and three of background, in this order: the largest of each."""
    out = MaxInOut(1, num_classes=2, positives=2, negatives=3)
    torch.nn.init.zeros_(out.conv.weight)
    assert out.conv.bias is not None
    out.conv.bias.data = torch.tensor([1.0, 2.0, 7.0, -3.0, 0.0, 5.0, 4.0])
    assert out(torch.zeros(1, 1, 1, 1)).flatten().tolist() == [2.0, 7.0, 5.0]


def slow_compensation(anchors: Tensor, objects: Tensor, ignored: Tensor) -> list[int]:
    """`ScaleCompensation`, face by face."""
    assigned = max_iou_assign(anchors, objects, ignored[:0], foreground=0.35, background=0.35).tolist()
    counts = [assigned.count(i) for i in range(len(objects))]
    average = max(1, round(sum(counts) / max(1, len(objects))))
    offers: dict[int, tuple[float, int]] = {}
    for i in range(len(objects)):
        if counts[i] >= average:
            continue
        overlap = box_algebra.iou(objects[i : i + 1], anchors)[0].tolist()
        mine = [a for a in range(len(anchors)) if assigned[a] in (i, BACKGROUND)]
        mine.sort(key=lambda a: -overlap[a])
        for a in mine[:average]:
            if overlap[a] > 0.1 and assigned[a] == BACKGROUND:
                offers[a] = max(offers.get(a, (0.0, 0)), (overlap[a], i))
    for a, (_, i) in offers.items():
        assigned[a] = i
    for a in range(len(anchors)):
        if assigned[a] == BACKGROUND and len(ignored) and box_algebra.iod(anchors[a : a + 1], ignored).max() > 0.5:
            assigned[a] = IGNORED
    return assigned


@pytest.mark.parametrize("seed", range(6))
def test_compensation_is_that_of_a_slow_twin(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors = squares(SIDES[:3])([(24, 24), (12, 12), (6, 6)], (96, 96), torch.device("cpu"))
    corner, side = torch.rand(9, 2, generator=generator) * 70, torch.rand(9, 1, generator=generator) * 40 + 1
    objects = torch.cat([corner, corner + side], 1)
    ignored = torch.tensor([[0.0, 0.0, 20.0, 40.0]])
    wanted = slow_compensation(anchors, objects, ignored)
    assert ScaleCompensation()(anchors, objects, ignored).tolist() == wanted
    monkeypatch.setattr("flyspeck_lab.comparators.s3fd.object_block", lambda _: 2)  # a crowd, in parts
    assert ScaleCompensation()(anchors, objects, ignored).tolist() == wanted


def test_compensation_helps_the_small() -> None:
    """A 16 px face on an anchor matches 9: shifts of 4 px leave IoU 0.6 (one axis) and 0.39 (both), of 8 px 0.33. One of 9 px
    lies within 4 anchors, IoU 81 / 256 = 0.32 with each. So N is 6.5, rounded to 6, which the small one gets in the second stage.
    """
    anchors = squares(SIDES)([(64 // 2**i, 64 // 2**i) for i in range(6)], (256, 256), torch.device("cpu"))
    objects = torch.tensor([[34.0, 34, 50, 50], [101, 101, 110, 110]])
    first = max_iou_assign(anchors, objects, objects[:0], foreground=0.35, background=0.35)
    both = ScaleCompensation()(anchors, objects, objects[:0])
    assert [torch.bincount(a[a >= 0]).tolist() for a in (first, both)] == [[9, 4], [9, 6]]
    assert torch.equal(first[first >= 0], both[first >= 0])


def test_the_way_down_by_hand() -> None:
    """Ones everywhere, all weights 1 of one channel: each level is the product of itself and of what is above."""
    from flyspeck.types import FeatureSpec

    down = LowLevelPyramid([FeatureSpec(1, 4), FeatureSpec(1, 8), FeatureSpec(1, 16)])
    for module in down.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)
    maps = [torch.full((1, 1, 8, 8), 2.0), torch.full((1, 1, 4, 4), 3.0), torch.full((1, 1, 2, 2), 5.0)]
    assert [level.unique().item() for level in down(maps)] == [30.0, 15.0, 5.0]


@pytest.mark.parametrize("name", ["s3fd:mobilenet_v1", "pyramidbox:resnet18"])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_tiny_boxes_and_images_without(name: str, side: int) -> None:
    torch.manual_seed(0)
    detector = build(name, width=0.0625, classes=("a", "b"))
    assert isinstance(detector, Detector)
    boxes = torch.tensor([[20.0, 30.0, 20.0 + side, 30.0 + side], [60.5, 10.25, 60.5 + side, 10.25 + side]])
    targets = [
        Targets(boxes=boxes, labels=torch.tensor([0, 1]), ignore=torch.zeros(2, dtype=torch.bool)),
        Targets(boxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long), ignore=torch.zeros(0, dtype=torch.bool)),
        Targets(boxes=boxes, labels=torch.tensor([0, 1]), ignore=torch.ones(2, dtype=torch.bool)),
    ]
    images = ImageBatch(torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8), ((96, 96), (90, 77), (96, 96)))
    losses = detector.train().losses(images, targets)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(loss > 0 for loss in losses.values())  # each object has its best anchor, however small
    assert [one.image_size for one in detector.eval().detect(images)] == [(96, 96), (90, 77), (96, 96)]


LEARNING = [
    (s3fd, {}, 2, 40, 3e-3),
    (pyramidbox, {"context_width": 8}, 1, 40, 1e-2),
    pytest.param(pyramidbox, {"context_width": 16}, 4, 90, 3e-3, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("builder", "options", "images", "steps", "lr"), LEARNING)
def test_it_learns(builder, options: dict, images: int, steps: int, lr: float) -> None:
    """On squares from the size of the smallest anchors, 16 px, on."""
    squares, pixel_norm = make_squares(images, sides=(12, 30)), PixelNorm((0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    detector = builder(build_small_backbone(), classes=squares.classes, pixel_norm=pixel_norm, width=0.125, **options)
    assert learn_on(squares, detector, steps=steps, lr=lr) > 0.7


def test_names() -> None:
    for name in ("s3fd:vgg16:S1L2", "pyramidbox:resnet18:fpn"):
        with pytest.raises(UserError, match=r"no (S3FD|PyramidBox) configuration"):
            build(name)
    with pytest.raises(UserError, match="chain of stages"):
        build("s3fd:hrnet18", width=0.25)
