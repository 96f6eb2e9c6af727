"""R-FCN, plain and on a pyramid, and SSD on a pyramid: score maps, votes, hard examples, tiny boxes, and that they learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import ps_roi_align

from flyspeck.errors import UserError
from flyspeck.models.build import build
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.faster_rcnn import FasterRCNNHead
from flyspeck.models.heads.ssd import SSDHead
from flyspeck.models.profile import profile
from flyspeck.types import FeatureSpec, ImageBatch, Targets
from flyspeck_lab.comparators.rfcn import PositionSensitivePool, Vote, dilate_last_stage, rfcn, rfcn_fpn
from flyspeck_lab.comparators.ssd_fpn import ssd_fpn, ssd_priors
from learning import build_small_backbone, learn_on, make_squares

PAGE = Path(__file__).parents[2] / "docs" / "papers" / "comparators.md"
SMALL = {"proposals": 30, "train_proposals": 30, "hardest": 12, "bins": 3}
SYSTEMS = {"rfcn:resnet18": SMALL, "rfcn_fpn:mobilenet_v1": SMALL, "ssd_fpn:resnet18": {}}


@pytest.mark.parametrize(("name", "size", "classes", "gflops", "parameters"), [
    ("rfcn:resnet101", (608, 1024), 80, 150.762, 53_617_345),
    ("rfcn_fpn:resnet50", (1024, 1024), 15, 219.323, 27_698_211),
    ("ssd_fpn:resnet50", (1024, 1024), 15, 109.830, 32_888_472),
])  # fmt: skip
def test_counts(name: str, size: tuple[int, int], classes: int, gflops: float, parameters: int) -> None:
    with torch.device("meta"):
        counted = profile(build(name, classes=[str(i) for i in range(classes)]), size, convention="mmcv")
    assert counted.params == parameters
    assert counted.gflops == pytest.approx(gflops, abs=0.0006)
    page = PAGE.read_text(encoding="utf-8")
    assert f"{gflops:.3f}" in page
    assert f"{parameters / 1e6:.3f}" in page


def test_what_the_papers_layers_have() -> None:
    """1x1 from 2048 to 1024, score maps of 7 x 7 x 81 and 7 x 7 x 4, 3x3 from 1024 to 512, twelve anchors a cell."""
    with torch.device("meta"):
        detector, backbone = build("rfcn:resnet101"), build("resnet101")
    own = sum(p.numel() for p in detector.parameters()) - sum(p.numel() for p in backbone.parameters())
    score = 2048 * 1024 + 1024 + 1024 * 49 * 85 + 49 * 85
    assert own == score + 1024 * 512 * 9 + 512 + 512 * 12 * 5 + 12 * 5


@pytest.mark.parametrize("seed", range(4))
def test_position_sensitive_pooling_is_torchvisions(seed: int) -> None:
    """Whose channels go by value, then bin; of two images, regions of less than a cell and beyond the border among them."""
    torch.manual_seed(seed)
    pool = PositionSensitivePool([FeatureSpec(8, 16)], num_classes=2, first=0, bins=3, sampling=2, canonical=224)
    maps = [torch.randn(2, 8, 7, 9)]
    corner, side = (
        torch.rand(12, 2) * 120 - 8,
        torch.rand(12, 2) * torch.tensor([1.0, 3.0, 10.0, 90.0]).repeat(3)[:, None],
    )
    boxes = torch.cat([corner, corner + side], 1)
    found = pool(maps, [boxes[:5], boxes[5:]], (7 * 16, 9 * 16))
    # Ours lie by bin, then value.
    scores = pool.score_maps(maps)[0].unflatten(0, (2, 9)).transpose(1, 2).flatten(1, 2)
    wanted = ps_roi_align(scores, [boxes[:5], boxes[5:]], 3, 1 / 16, 2)  # (P, values, 3, 3)
    torch.testing.assert_close(found, wanted.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_bins_vote_for_their_own_place() -> None:
    """A score map that is 1 in the left half and belongs to the left column of bins: a region over the middle gets its share."""
    pool = PositionSensitivePool([FeatureSpec(1, 8)], num_classes=1, first=0, bins=2, sampling=2, canonical=224)
    nn.init.zeros_(pool.class_maps.weight)
    nn.init.zeros_(pool.box_maps.weight)
    assert pool.class_maps.bias is not None
    # Two values a bin (object, background) of the bins top left, top right, bottom left, bottom right.
    pool.class_maps.bias.data = torch.tensor([1.0, 0, 0, 5, 1, 0, 0, 7])
    logits, deltas = Vote(1)(pool([torch.zeros(1, 1, 8, 8)], [torch.tensor([[16.0, 16, 48, 48]])], (64, 64)))
    assert logits.tolist() == [[0.5, 3.0]]
    assert deltas.shape == (1, 1, 4)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2", "shufflenet_v2", "specknet_n"]
)
def test_the_last_stage_keeps_its_stride(name: str) -> None:
    """Trained weights mean what they did: on an even grid, the old stage's outputs are every second of the new one's."""
    torch.manual_seed(0)
    old, new = build(name, width=0.125), build(name, width=0.125)
    new.load_state_dict(old.state_dict())
    dilate_last_stage(new, what="R-FCN")  # type: ignore[arg-type]
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        before, after = old.eval()(x), new.eval()(x)
    assert after[0].shape[-1] == after[1].shape[-1] == 2 * before[-1].shape[-1]
    assert {f.stride for f in new.features} == {128 // after[0].shape[-1]}  # type: ignore[union-attr]
    torch.testing.assert_close(after[1][..., ::2, ::2], before[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg16", "hrnet18", "swin_t", "efficientnet_lite0", "mobilenet_v1_coral"])
def test_a_last_stage_that_cannot_be_dilated(name: str) -> None:
    """Pools, branches, patches, and convolutions whose padding is another layer's."""
    with pytest.raises(UserError, match=r"cannot dilate|chain of stages"):
        build(f"rfcn:{name}", width=0.25)


def test_hard_rows_by_a_slow_twin() -> None:
    torch.manual_seed(0)
    detector = build("rfcn_fpn:resnet18", width=0.125, channels=16, classes=("a", "b"), hardest=3, bins=2)
    assert isinstance(detector, Detector)
    head = detector.head
    assert isinstance(head, FasterRCNNHead)
    logits, deltas, goal = torch.randn(11, 3), torch.randn(11, 1, 4), torch.randn(11, 4)
    label = torch.randint(0, 3, (11,))
    loss = []
    for row in range(11):
        one = nn.functional.cross_entropy(logits[row : row + 1], label[row : row + 1])
        loss.append(float(one + (head.box_loss(deltas[row], goal[row : row + 1]) if label[row] < 2 else 0)))
    wanted = {*sorted(range(9), key=lambda i: -loss[i])[:3], 9, 10}
    assert set(head.hard_rows(logits, deltas, label, goal, [9, 2]).tolist()) == wanted


def test_priors_of_a_pyramid() -> None:
    """Stride 8: squares of 32 and sqrt(32 x 64), and 32 at 2 and 3, both ways."""
    shapes = ssd_priors([FeatureSpec(4, 8), FeatureSpec(4, 16)]).shapes
    assert [len(level) for level in shapes] == [6, 6]
    assert shapes[0][0] == (32.0, 32.0)
    assert shapes[0][1][0] == pytest.approx(45.2548)
    assert [round(w / h, 3) for w, h in shapes[0][2:]] == [2.0, 0.5, 3.0, 0.333]
    assert [w * h for w, h in shapes[1][2:]] == pytest.approx([64.0 * 64] * 4)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_tiny_boxes_and_images_without(name: str, side: int) -> None:
    torch.manual_seed(0)
    channels = {} if name.startswith("rfcn:") else {"channels": 16}
    detector = build(name, width=0.0625, classes=("a", "b"), **channels, **SYSTEMS[name])
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
    assert losses["classification"] > 0
    assert losses["box" if isinstance(detector.head, SSDHead) else "rpn_box"] > 0  # each object has its best anchor
    assert [one.image_size for one in detector.eval().detect(images)] == [(96, 96), (90, 77), (96, 96)]


NARROW = {"proposals": 50, "train_proposals": 50, "hardest": 32, "bins": 3, "rpn": {"samples": 64}}
LEARNING = [
    (rfcn, {**NARROW, "width": 0.0625}, 80, (24, 50)),
    (rfcn_fpn, {**NARROW, "channels": 32, "canonical": 64.0}, 45, (8, 14)),
    (ssd_fpn, {"channels": 32, "num_extra": 0}, 45, (14, 40)),
]


@pytest.mark.parametrize(("builder", "options", "steps", "sides"), LEARNING)
def test_it_learns(builder, options: dict, steps: int, sides: tuple[int, int]) -> None:
    squares, pixel_norm = make_squares(2, sides=sides), PixelNorm((0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    detector = builder(build_small_backbone(), classes=squares.classes, pixel_norm=pixel_norm, **options)
    assert learn_on(squares, detector, steps=steps) > 0.7


def test_names() -> None:
    with pytest.raises(UserError, match="no R-FCN configuration"):
        build("rfcn:resnet18:fpn")
    for neck in ("fpn", "sspnet", "light_fpn"):
        assert isinstance(build(f"rfcn_fpn:resnet18:{neck}", width=0.125, channels=16), Detector)
    assert isinstance(build("ssd_fpn:hrnet18", levels="2-5", width=0.125, channels=16), Detector)
