"""SSD: the paper's maps and priors, losses by hand, tiny boxes."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.assign import BACKGROUND, IGNORED
from flyspeck.models.backbones.hrnet import hrnet18
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.mobilenet_v1 import mobilenet_v1
from flyspeck.models.backbones.vgg import vgg16
from flyspeck.models.build import build as build_by_name
from flyspeck.models.detector import PixelNorm
from flyspeck.models.heads.ssd import DefaultBoxes, L2Norm, find_configuration, hardest, ssd
from flyspeck.models.heads.ssd_tables import MOBILENET_V1, VGG16
from flyspeck.types import ImageBatch, Targets


def build(configuration="base", *, plain=False, width=0.25, classes=("a", "b"), backbone=None):
    if backbone is None:
        backbone = vgg16(width=width) if plain else mobilenet_v1(width=width)
    norm = PixelNorm([0.5] * 3, [0.5] * 3)
    return ssd(backbone, classes=classes, pixel_norm=norm, configuration=configuration, plain=plain)


# Predictor maps at 300x300 (512x512 for Size512) and the number of priors, as the paper's code has them.
@pytest.mark.parametrize(
    ("configuration", "plain", "maps", "priors"),
    [
        ("base", False, [19, 10, 5, 3, 2, 1], 2998),
        ("Size512", False, [32, 16, 8, 4, 2, 1], 8188),
        ("Early", False, [38, 19, 10, 5, 3, 2, 1], 11654),
        ("Anchor10", False, [19, 10, 5, 3, 2, 1], 2998),
        ("S1L6", False, [38, 19, 10, 5, 3, 2], 11650),
        ("S1L4", False, [38, 19, 10, 5, 3, 2], 11650),
        ("S1L0", False, [38, 19, 10, 5, 3, 2], 11650),
        ("S1L4-Fmap1", False, [38, 19, 10, 5, 3, 1], 11638),
        ("S1L0-Fmap1", False, [38, 19, 10, 5, 3, 1], 11638),
        ("S2L4-6", False, [75, 38, 19, 10, 5, 3], 45366),
        ("S2L0-5", False, [75, 38, 19, 10, 5, 3], 45366),
        ("S1L0-DualPath19-C", False, [38, 19, 10, 5, 3, 1], 11638),
        ("S1L0-DualPath19-10-C", False, [38, 19, 10, 5, 3, 1], 11638),
        ("S1L0-DualPath19-10-S", False, [38, 19, 5, 3, 2, 1], 11062),
        ("base", True, [38, 19, 10, 5, 3, 1], 11620),
        ("S1L2", True, [75, 37, 19, 10, 5, 3], 44866),
        ("S1L2-LargePools", True, [75, 19, 10, 5, 3, 1], 36706),
        ("S1L2-DualPath", True, [75, 37, 10, 5, 3, 1], 42754),
    ],
)
def test_maps_and_priors_of_the_paper(configuration, plain, maps, priors):
    table = VGG16 if plain else MOBILENET_V1
    image = table[configuration].image
    with torch.device("meta"):
        model = build(configuration, plain=plain).eval()
        found = model.neck(model.backbone(torch.empty(1, 3, image, image)))
        assert [m.shape[-1] for m in found] == maps
        assert [m.shape[1] for m in found] == [f.channels for f in model.features]
        boxes = model.head.priors([m.shape[-2:] for m in found], (image, image), torch.device("meta"))
    assert len(boxes) == priors


def test_priors_of_one_cell_by_hand():
    priors = DefaultBoxes(MOBILENET_V1["S1L0"])
    found = priors([(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (2, 2)], (300, 300), torch.device("cpu"))
    # Cell (row 1, column 2) of the first map: 6 priors a cell, step 8, so centred on (2.5 * 8, 1.5 * 8) = (20, 12).
    cell = found[(38 + 2) * 6 : (38 + 3) * 6]
    assert_close((cell[:, :2] + cell[:, 2:]) / 2, torch.tensor([[20.0, 12.0]]).expand(6, 2))
    # Size 10, next size 45: sqrt(450) = 21.213; ratio 2: 14.142 x 7.071; ratio 3: 17.321 x 5.774, both orientations.
    expected = [[10, 10], [21.213, 21.213], [14.142, 7.071], [7.071, 14.142], [17.321, 5.774], [5.774, 17.321]]
    assert_close(cell[:, 2:] - cell[:, :2], torch.tensor(expected), rtol=0, atol=1e-3)
    # The last map's ratio 3 is absent: 4 priors; sqrt(225 * 270) = 246.5.
    assert_close(found[-1, 2:] - found[-1, :2], torch.tensor([225 / 2**0.5, 225 * 2**0.5]).minimum(torch.tensor(300.0)))


def test_priors_follow_the_true_ratio_off_the_papers_size():
    priors = DefaultBoxes(MOBILENET_V1["base"])
    sizes = [(8, 10), (4, 5), (2, 3), (1, 2), (1, 1), (1, 1)]
    found = priors(sizes, (128, 160), torch.device("cpu"))
    first = found[: 8 * 10 * 6].view(8, 10, 6, 4)
    center = (first[..., :2] + first[..., 2:]) / 2
    assert_close(center[2, 3, 0], torch.tensor([3.5 * 16, 2.5 * 16]))
    assert (found[:, 2:] - found[:, :2] <= torch.tensor([160.0, 128.0])).all()


def test_hard_negatives_are_the_largest_losses_of_the_background():
    loss = torch.tensor([0.1, 5.0, 0.3, 4.0, 0.2, 3.0])
    assigned = torch.tensor([0, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND])
    assert sorted(hardest(loss, assigned, 3).tolist()) == [2, 3, 5]
    assert len(hardest(loss, assigned, 99)) == 4
    assert len(hardest(loss, assigned, 0)) == 0


def test_l2norm_scales_every_pixel_to_20():
    x = torch.randn(2, 8, 3, 4)
    assert_close(L2Norm(8)(x).norm(dim=1), torch.full((2, 3, 4), 20.0))


def batch(boxes, labels, ignore=None, size=(96, 128)):
    pixels = torch.randint(0, 255, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    ignore = torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool)
    target = Targets(boxes, torch.tensor(labels, dtype=torch.int64), ignore)
    return ImageBatch(pixels, (size, size)), [target, target]


@pytest.mark.parametrize("configuration", ["base", "S1L0", "S2L4-6", "S1L0-DualPath19-C", "S1L0-DualPath19-10-S"])
@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_tiny_boxes_give_finite_losses_and_gradients(configuration, side):
    torch.manual_seed(0)
    model = build(configuration, width=0.1).train()
    images, targets = batch([[50, 40, 50 + side, 40 + side], [3, 3, 3 + side, 3 + side]], [0, 1])
    losses = model.losses(images, targets)
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_two_objects_on_one_point_no_object_and_only_ignored():
    model = build("S1L0", width=0.1).train()
    for boxes, labels, ignore in (
        ([[20, 20, 24, 24], [20, 20, 24, 24]], [0, 1], None),
        ([], [], None),
        ([[0, 0, 128, 96]], [-1], [True]),
    ):
        images, targets = batch(boxes, labels, ignore)
        losses = model.losses(images, targets)
        assert all(torch.isfinite(value) for value in losses.values())


def test_detections_lie_in_the_true_image():
    torch.manual_seed(0)
    model = build("S1L0", width=0.1).eval()
    images, _ = batch([], [])
    found = model.detect(ImageBatch(images.pixels, ((96, 128), (70, 90))))
    assert 0 < len(found[1]) <= 100
    assert (found[1].boxes >= 0).all()
    assert (found[1].boxes <= [90, 70, 90, 70]).all()
    assert (found[1].scores[:-1] >= found[1].scores[1:]).all()


def test_any_chain_of_stages_hosts_ssd():
    with torch.device("meta"):
        model = build("S1L7", backbone=mobilenet_v2(width=0.25)).eval()
        maps = model.neck(model.backbone(torch.empty(1, 3, 96, 96)))
    assert [m.shape[-1] for m in maps][:3] == [12, 6, 3]
    with torch.device("meta"), pytest.raises(UserError, match="SSD needs a chain of stages"):
        build("base", backbone=hrnet18(width=0.25))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bas", "no SSD configuration 'bas'.*did you mean 'base'"),
        ("S1L0-DualPth", "no SSD configuration"),
        ("S3L0-2-4", "eliminates 3 strides"),
    ],
)
def test_unknown_configurations_are_named(name, message):
    with pytest.raises(UserError, match=message):
        find_configuration(name)


def test_ssd_on_imagenet_weights_sees_the_same_with_and_without_its_stride(shared):
    """The real MobileNetV1: with S1L0 every other pixel of the finer first map is the map of the base network."""
    weights = shared / "weights" / "mobilenet_v1_0.25_in1k_coral_bnfolded.pt"
    norm = PixelNorm([0.5] * 3, [0.5] * 3)
    base = build_by_name("ssd:mobilenet_v1_coral", width=0.25, weights=weights, pixel_norm=norm).eval()
    finer = build_by_name("ssd:mobilenet_v1_coral:S1L0", width=0.25, weights=weights, pixel_norm=norm).eval()
    x = (
        torch.rand(1, 3, 65, 97, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )  # odd: 'same' pads both sides alike
    with torch.no_grad():
        first, fine = (next(m.backbone.stages["stem"].children())(x) for m in (base, finer))
    assert_close(fine[..., ::2, ::2], first)
    assert finer.features[0].stride * 2 == base.features[0].stride


def test_a_graph_of_the_extra_layers_takes_small_images_as_the_detector_does():
    # VGG16's last extras have no padding. Traced at 300x300, where no map is too small for them, they must still run at 75x97,
    # whose maps are 9x12, 4x6, 2x3, ...: an `if` on the size would be that of 300x300 for ever.
    neck = build(plain=True, width=0.125).neck.eval()
    maps = lambda *sides: [torch.rand(2, f.channels, *s) for f, s in zip(neck.features, sides, strict=False)]  # noqa: E731
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    graph = torch.export.export(neck, (maps((38, 38), (19, 19)),), dynamic_shapes=([free, free],), strict=False)
    small = maps((9, 12), (4, 6))
    for mine, own in zip(graph.module(check_guards=False)(small), neck(small), strict=True):
        assert_close(mine, own)
