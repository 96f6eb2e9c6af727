"""The same weights give the same boxes as torchvision's own detectors, where a configuration coincides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from flyspeck.models.anchors import AnchorGrid, anchor_shapes
from flyspeck.models.backbones.resnet import resnet18 as staged_resnet18
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.faster_rcnn import faster_rcnn
from flyspeck.models.heads.fcos import fcos
from flyspeck.models.heads.retinanet import retinanet
from flyspeck.models.necks.fpn import FPN
from flyspeck.models.postprocess import Suppression
from flyspeck.types import ImageBatch
from same_detections import assert_same_detections

HEIGHT, WIDTH, CHANNELS = 128, 160, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = (8, 16, 32, 64, 128)


def loud(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights that give every class many scores on both sides of the threshold."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("cls_logits.weight", "cls_score.weight", "bbox_reg.weight", "bbox_pred.weight")):
                parameter.normal_(
                    0, 0.3 if "cls" in name and "score" not in name in name else 0.05, generator=generator
                )
            if name.endswith("cls_logits.bias"):
                parameter.fill_(-2.0)


def copy_backbone(theirs: nn.Module, mine: Detector) -> None:
    body, fpn = theirs.backbone.body, theirs.backbone.fpn  # type: ignore[union-attr]
    stages = mine.backbone.stages  # type: ignore[union-attr]
    sources = {"stem": nn.Sequential(body.conv1, body.bn1), "stage1": body.layer1, "stage2": body.layer2}
    sources |= {"stage3": body.layer3, "stage4": body.layer4}
    for name, source in sources.items():
        copy_in_order(source, stages[name])
    for source, target in ((fpn.inner_blocks, mine.neck.inner), (fpn.layer_blocks, mine.neck.layer)):
        copy_in_order(source, target)  # type: ignore[arg-type]


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copies state entry by entry: both sides define the same layers in the same order."""
    ours, theirs = list(target.state_dict().values()), list(source.state_dict().values())
    assert [tuple(a.shape) for a in ours] == [tuple(b.shape) for b in theirs]
    for mine, value in zip(ours, theirs, strict=True):
        mine.copy_(value)


def torchvision_backbone(extra: nn.Module, first: int, width: int) -> BackboneWithFPN:
    layers = {f"layer{i}": str(i) for i in range(first, 5)}
    channels = [64 * 2 ** (i - 1) for i in range(first, 5)]
    return BackboneWithFPN(resnet18(weights=None), layers, channels, width, extra)


def compare(theirs: nn.Module, mine: Detector, pixels: Tensor) -> int:
    theirs.eval()
    mine.eval()
    with torch.no_grad():
        expected = theirs(list(pixels))
    found = mine.detect(ImageBatch(pixels, ((HEIGHT, WIDTH),) * len(pixels)))
    if isinstance(theirs, FasterRCNN):  # counts the background as class 0
        expected = [{**one, "labels": one["labels"] - 1} for one in expected]
    # One row in a hundred may differ: a region on the bound between two levels.
    assert_same_detections(found, expected, box_px=1e-2, score=1e-4, rule=mine.head.suppression, strays=0.01)
    return sum(map(len, found))


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def build_retinanet(channels: int = CHANNELS) -> tuple[nn.Module, Detector]:
    """torchvision's and ours, with the same weights."""
    generator = torch.manual_seed(0)
    octaves = tuple((s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)) for s in SIZES)
    theirs = RetinaNet(
        torchvision_backbone(LastLevelP6P7(512, channels), 2, channels),
        num_classes=3,
        anchor_generator=AnchorGenerator(octaves, ((0.5, 1.0, 2.0),) * 5),  # type: ignore[arg-type]
        min_size=HEIGHT,
        max_size=WIDTH,
        detections_per_img=200,
        nms_thresh=0.5,
    )
    loud(theirs, generator)
    backbone = staged_resnet18(outputs=("stage2", "stage3", "stage4"))
    shapes = anchor_shapes(SIZES, octaves=3, rounded=True)
    mine = retinanet(
        backbone,
        classes="abc",
        pixel_norm=PixelNorm(MEAN, STD),
        neck=FPN(backbone.features, channels=channels, num_extra=2, extra="conv_c5"),
        channels=channels,
        anchors=lambda _: AnchorGrid(shapes, offset=0),
        suppression=Suppression(max_detections=200),
    )
    copy_backbone(theirs, mine)
    extra, head = theirs.backbone.fpn.extra_blocks, mine.head  # type: ignore[union-attr]
    copy_in_order(nn.Sequential(extra.p6, extra.p7), mine.neck.extra_convs)  # type: ignore[arg-type]
    copy_in_order(theirs.head.classification_head.conv, head.class_tower.convs)  # type: ignore[arg-type]
    copy_in_order(theirs.head.regression_head.conv, head.box_tower.convs)  # type: ignore[arg-type]
    copy_in_order(theirs.head.classification_head.cls_logits, head.class_logits)  # type: ignore[arg-type]
    copy_in_order(theirs.head.regression_head.bbox_reg, head.box_deltas)  # type: ignore[arg-type]
    return theirs, mine


def build_faster_rcnn(channels: int = CHANNELS) -> tuple[nn.Module, Detector]:
    """torchvision's and ours, with the same weights."""
    generator = torch.manual_seed(0)
    theirs = FasterRCNN(
        torchvision_backbone(LastLevelMaxPool(), 1, channels),
        num_classes=4,
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in SIZES), ((0.5, 1.0, 2.0),) * 5),
        min_size=HEIGHT,
        max_size=WIDTH,
        box_detections_per_img=200,
    )
    loud(theirs, generator)
    shapes = anchor_shapes(SIZES, rounded=True)
    mine = faster_rcnn(
        staged_resnet18(),
        classes="abc",
        pixel_norm=PixelNorm(MEAN, STD),
        channels=channels,
        anchors=lambda _: AnchorGrid(shapes, offset=0),
        pool={"aligned": False},
        suppression=Suppression(max_detections=200),
    )
    copy_backbone(theirs, mine)
    rpn, head = theirs.rpn.head, mine.head
    copy_in_order(rpn.conv, head.rpn.tower.convs)  # type: ignore[arg-type]
    copy_in_order(rpn.cls_logits, head.rpn.objectness)  # type: ignore[arg-type]
    copy_in_order(rpn.bbox_pred, head.rpn.box_deltas)  # type: ignore[arg-type]
    copy_in_order(theirs.roi_heads.box_head, nn.Sequential(head.box_head.fc1, head.box_head.fc2))  # type: ignore[arg-type]
    predictor, box_head = theirs.roi_heads.box_predictor, head.box_head
    # torchvision's background class comes first, ours last; its box rows start with the background's.
    order = torch.tensor([1, 2, 3, 0])
    with torch.no_grad():
        box_head.class_logits.weight.copy_(predictor.cls_score.weight[order])
        box_head.class_logits.bias.copy_(predictor.cls_score.bias[order])
        box_head.box_deltas.weight.copy_(predictor.bbox_pred.weight[4:])
        box_head.box_deltas.bias.copy_(predictor.bbox_pred.bias[4:])
    return theirs, mine


def build_fcos(channels: int = 32) -> tuple[nn.Module, Detector]:
    """torchvision's and ours, with the same weights. Its group norms are shared by the levels, ours are private to each."""
    generator = torch.manual_seed(0)
    theirs = FCOS(
        torchvision_backbone(LastLevelP6P7(channels, channels), 2, channels),
        num_classes=3,
        min_size=HEIGHT,
        max_size=WIDTH,
        detections_per_img=200,
        score_thresh=0.05,
    )
    loud(theirs, generator)
    backbone = staged_resnet18(outputs=("stage2", "stage3", "stage4"))
    mine = fcos(
        backbone,
        classes="abc",
        pixel_norm=PixelNorm(MEAN, STD),
        channels=channels,
        norm=lambda width: nn.GroupNorm(32, width),
        neck=FPN(backbone.features, channels=channels, num_extra=2, extra="conv_p5"),
        offset=0.0,
        range_scale=8.0,
        suppression=Suppression(iou=0.6, max_detections=200),
    )
    copy_backbone(theirs, mine)
    extra, head = theirs.backbone.fpn.extra_blocks, mine.head  # type: ignore[union-attr]
    copy_in_order(nn.Sequential(extra.p6, extra.p7), mine.neck.extra_convs)  # type: ignore[arg-type]
    classes, boxes = theirs.head.classification_head, theirs.head.regression_head
    for source, tower in ((classes, head.class_tower), (boxes, head.box_tower)):
        for i in range(4):
            tower.convs[i] = nn.Conv2d(channels, channels, 3, 1, 1)  # torchvision's have a bias before the norm
            copy_in_order(source.conv[3 * i], tower.convs[i])
            for level in range(5):
                copy_in_order(source.conv[3 * i + 1], tower.norms[level][i])
    copy_in_order(classes.cls_logits, head.class_logits)  # type: ignore[arg-type]
    copy_in_order(boxes.bbox_reg, head.box_distances)  # type: ignore[arg-type]
    copy_in_order(boxes.bbox_ctrness, head.centerness)  # type: ignore[arg-type]
    return theirs, mine


@pytest.mark.parametrize("build", [build_retinanet, build_faster_rcnn])
def test_same_weights_same_boxes(build: Callable[[], tuple[nn.Module, Detector]], pixels: Tensor) -> None:
    theirs, mine = build()
    assert compare(theirs, mine, pixels) > 50


def test_same_weights_same_boxes_of_fcos(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a size that 128 divides: on others torchvision's box unit is the nominal stride, ours the true size of a cell."""
    monkeypatch.setattr(f"{__name__}.WIDTH", 256)
    theirs, mine = build_fcos()
    pixels = torch.rand(2, 3, HEIGHT, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.eval()(list(pixels))
    found = mine.eval().detect(ImageBatch(pixels, ((HEIGHT, 256),) * 2))
    assert_same_detections(found, expected, box_px=1e-2, score=1e-4, rule=mine.head.suppression, least=51)
