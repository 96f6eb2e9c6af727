"""TinaFace: its parts by hand, tiny boxes, deformable convolutions that start as plain ones, and the published counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models import build as builder
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.resnet import resnet50
from flyspeck.models.deformable import DeformableConv, make_deformable, replace_batch_norms, sampled_deform_conv
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.tinaface import Inception, TinaFaceHead, tinaface, tinaface_anchors
from flyspeck.models.layers import group_norm
from flyspeck.models.profile import profile
from flyspeck.types import FeatureSpec, ImageBatch, Targets

HEIGHT, WIDTH = 96, 128


def build(**options: object) -> Detector:
    torch.manual_seed(0)
    norm = PixelNorm([0.5] * 3, [0.25] * 3)
    settings = {"channels": 16, "depth": 1, "norm": group_norm, **options}
    return tinaface(mobilenet_v2(width=0.25), classes="ab", pixel_norm=norm, **settings)  # type: ignore[arg-type]


def images(count: int) -> ImageBatch:
    pixels = torch.randint(0, 256, (count, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(3))
    return ImageBatch(pixels.to(torch.uint8), ((HEIGHT, WIDTH),) * count)


def targets(boxes: Tensor, ignore: bool = False) -> Targets:
    flags = torch.full((len(boxes),), ignore)
    return Targets(boxes, torch.where(flags, -1, torch.arange(len(boxes)) % 2), flags)


def step(detector: Detector, truth: list[Targets]) -> dict[str, float]:
    losses = detector.losses(images(len(truth)), truth)
    torch.stack([*losses.values()]).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)
    return {name: float(value.detach()) for name, value in losses.items()}


def test_six_levels_from_stride_4_and_anchors_from_10_px() -> None:
    detector = build()
    assert [f.stride for f in detector.features] == [4, 8, 16, 32, 64, 128]
    head = detector.head
    assert isinstance(head, TinaFaceHead)
    sizes = [[(w * h) ** 0.5 for w, h in level] for level in head.anchors.shapes]
    expected = [[s * 2 ** (4 / 3), s * 2 ** (5 / 3), s * 4.0] for s in (4, 8, 16, 32, 64, 128)]
    assert_close(torch.tensor(sizes), torch.tensor(expected))
    width, height = head.anchors.shapes[0][0]
    assert height / width == pytest.approx(1.3)
    assert [len(level) for level in tinaface_anchors([FeatureSpec(8, 4)]).shapes] == [3]


def test_the_inception_block_sees_three_five_and_seven_cells() -> None:
    block = Inception(8, norm=None)
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    x = torch.zeros(1, 8, 15, 15)
    x[:, :, 7, 7] = 1
    reach = [(out[0] > 0).any(0).sum().item() for out in block(x, 0).split([4, 2, 2], 1)]
    assert reach == [9, 25, 49]
    assert block(x, 0).shape == x.shape
    with pytest.raises(ValueError, match="divides its channels by 4"):
        Inception(6, norm=None)


def test_the_score_weighs_class_and_overlap() -> None:
    detector = build()
    head = detector.head
    assert isinstance(head, TinaFaceHead)
    for conv in (head.class_logits, head.overlap_logits, head.box_deltas):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    nn.init.constant_(head.overlap_logits.bias, 1.0)  # type: ignore[arg-type]
    (found,) = detector.eval().detect(images(1))
    # 0.5 for the class, 1 / (1 + 1/e) for the overlap: 0.5^0.8 * 0.731^1.2.
    assert_close(torch.tensor(found.scores[0]), torch.tensor(0.5**0.8 * 0.7310586**1.2))


def test_losses_by_hand_of_a_head_that_says_nothing() -> None:
    detector = build()
    head = detector.head
    assert isinstance(head, TinaFaceHead)
    for conv in (head.class_logits, head.overlap_logits, head.box_deltas):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    # The anchor of 10.08 px (ratio 1.3) on the point (42, 30) itself: it alone, of those that learn, fits exactly.
    width, height = head.anchors.shapes[0][0]
    exact = torch.tensor([[42 - width / 2, 30 - height / 2, 42 + width / 2, 30 + height / 2]])
    head.assigner.foreground = head.assigner.background = 0.99  # type: ignore[attr-defined]
    losses = step(detector, [targets(exact)])
    assert losses["box"] == pytest.approx(0, abs=1e-5)
    # Cross entropy of sigmoid(0) against an overlap of 1.
    assert losses["overlap"] == pytest.approx(0.6931, abs=1e-3)
    # Every anchor and class costs 0.25 or 0.75 x 0.5^2 x ln 2, background the latter; one positive.
    anchors = sum(3 * -(-HEIGHT // s) * -(-WIDTH // s) for s in (4, 8, 16, 32, 64, 128))
    expected = (0.75 * (2 * anchors - 1) + 0.25) * 0.25 * 0.6931
    assert losses["classification"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_boxes_of_a_few_pixels_are_learnt(side: int) -> None:
    box = torch.tensor([[40.5, 30.25, 40.5 + side, 30.25 + side]])
    losses = step(build(), [targets(box)])
    assert losses["box"] > 0
    assert losses["overlap"] > 0


def test_a_crowd_equal_centres_an_empty_image_and_only_ignore_regions_in_one_batch() -> None:
    corner = torch.rand(300, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([WIDTH - 8.0, HEIGHT - 8.0])
    crowd = torch.cat([corner, corner + 1 + 7 * torch.rand(300, 2)], 1)
    centred = torch.cat([torch.tensor([[50 - s, 50 - s, 50 + s, 50 + s]]) for s in (1.0, 2.0, 4.0, 4.0)])
    nothing, region = torch.zeros(0, 4), torch.tensor([[10.0, 10, 60, 60]])
    truth = [targets(crowd), targets(centred), targets(nothing), targets(region, ignore=True)]
    assert all(value >= 0 for value in step(build(), truth).values())
    empty = step(build(), [targets(nothing)] * 2)
    assert empty["box"] == empty["overlap"] == 0
    assert empty["classification"] > 0


def test_a_deformable_convolution_starts_as_the_plain_one_and_learns_its_offsets() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, 2, 1, bias=False)
    deformable = DeformableConv(4, 6, 3, stride=2, padding=1)
    deformable.conv.weight.data.copy_(plain.weight.data)
    x = torch.randn(2, 4, 9, 10)
    assert_close(deformable(x), plain(x), atol=1e-5, rtol=1e-4)
    deformable(x).square().sum().backward()
    assert deformable.offset.weight.grad is not None
    assert deformable.offset.weight.grad.abs().sum() > 0


def test_a_backbone_becomes_deformable_without_changing_what_it_computes() -> None:
    torch.manual_seed(0)
    backbone = resnet50(width=0.125).eval()
    x = torch.randn(1, 3, 64, 64)
    before = backbone(x)
    make_deformable(backbone)
    assert sum(isinstance(m, DeformableConv) for m in backbone.modules()) == 6 + 3
    for old, new in zip(before, backbone(x), strict=True):
        assert_close(new, old, atol=1e-4, rtol=1e-3)
    replace_batch_norms(backbone, group_norm)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    with pytest.raises(UserError, match="no bottleneck"):
        make_deformable(mobilenet_v2(width=0.25))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (5, 1, 2)])
@pytest.mark.parametrize("size", [(12, 15), (1, 2)])
def test_sampling_is_a_deformable_convolution(kernel: int, stride: int, padding: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = DeformableConv(4, 6, kernel, stride=stride, padding=padding)
    nn.init.normal_(conv.offset.weight)  # far beyond the border too
    x = torch.randn(2, 4, *size)
    offset = conv.offset(x)
    found = sampled_deform_conv(x, offset, conv.conv.weight, stride=stride, padding=padding)
    assert_close(found, conv(x), atol=1e-4, rtol=1e-4)


# Ning, 2023, Table 9, at 512x640 by thop's rule: ResNet-50 191.30 and 184.29, BH-ResNet50 191.54 and 188.60.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tinaface:resnet50", 191.30),
        ("tinaface:bh_resnet50", 191.54),
        ("tinaface_gn_dcn:resnet50", 184.29),
        ("tinaface_gn_dcn:bh_resnet50", 188.60),
    ],
)
def test_the_published_counts(name: str, expected: float) -> None:
    assert round(profile(builder.build(name), (512, 640), convention="thop").gflops, 2) == expected
