"""RetinaFace: one stage, a pyramid, and a context block before each predictor. Deng et al., CVPR 2020, arXiv:1905.00641.

The light form, as published with MobileNetV1-0.25 (biubug6/Pytorch_Retinaface, MIT): the last three maps of the backbone
(strides 8, 16, 32), a pyramid of 1x1 convolutions and one 3x3 after each sum, a context block of SSH (3x3 convolutions
once, twice and thrice in a row), two square anchors a cell, 1x1 predictors of face or background and of offsets.
`load_published` takes that file's weights, whose anchors of 10 to 256 px and plain ReLUs were found by trial
(`benchmarks/faces/detectors.py`).

Counts: 422,708 parameters with one class; with the published landmark predictors, 3 x 1,300 more, 426,608: the file's.

Deviations: no landmarks and no dense regression, for which flyspeck's annotations have no place; the paper's five levels
with deformable context blocks are not here (TinaFace's are near them). Losses are SSD's, the box loss weighs 0.25 as in the
paper; an anchor learns from an IoU of 0.35, and 7 hard negatives go with each, as in the light form's training.

Numbers: ResNet-50's AP on WIDER FACE val, easy, medium, hard (paper): 96.5, 95.6, 90.4; of the light form, by its authors,
90.7, 88.2, 73.8. WIDER FACE could not be had, and they were not reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.errors import UserError
from flyspeck.models.anchors import AnchorGrid
from flyspeck.models.backbones.staged import StagedBackbone, need_stages
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.ssd import SSDHead
from flyspeck.models.postprocess import Suppression
from flyspeck.models.weights import read_weights
from flyspeck.options import Options, Share
from flyspeck.types import FeatureSpec
from flyspeck_lab.comparators.one_configuration import only_base
from flyspeck_lab.comparators.rfb_net import conv_norm

SIDES = ((10.0, 20.0), (32.0, 64.0), (128.0, 256.0))
"""Of the anchors at strides 8, 16 and 32, in px."""
PIXELS = PixelNorm((123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3)
"""Of the published weights: values from 0 to 255, less a mean."""
LANDMARKS = ("LandmarkHead",)
"""What of the published weights has no place here."""


class Context(nn.Module):
    """3x3 convolutions once, twice and thrice in a row, side by side: half, a quarter and a quarter of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.once = conv_norm(channels, half, 3, relu=False)
        self.first = conv_norm(channels, quarter, 3)
        self.twice = conv_norm(quarter, quarter, 3, relu=False)
        self.second = conv_norm(quarter, quarter, 3)
        self.thrice = conv_norm(quarter, quarter, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape."""
        first = self.first(x)
        return torch.cat([self.once(x), self.twice(first), self.thrice(self.second(first))], 1).relu()


class RetinaFaceNeck(nn.Module):
    """Three maps of the backbone to three of `channels`: the pyramid, then a context block for each level."""

    def __init__(self, features: Sequence[FeatureSpec], *, channels: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList(conv_norm(feature.channels, channels) for feature in features)
        self.merge = nn.ModuleList(conv_norm(channels, channels, 3) for _ in features[:-1])
        self.context = nn.ModuleList(Context(channels) for _ in features)
        self.features = tuple(FeatureSpec(channels, feature.stride) for feature in features)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Finest first."""
        levels = [layer(m) for layer, m in zip(self.inner, maps, strict=True)]
        for i in range(len(levels) - 2, -1, -1):
            above = F.interpolate(levels[i + 1], size=levels[i].shape[-2:], mode="nearest")
            levels[i] = self.merge[i](levels[i] + above)
        return [block(level) for block, level in zip(self.context, levels, strict=True)]


class RetinaFaceOptions(Options):
    """Options of RetinaFace."""

    foreground: Share = 0.35
    """Overlap (IoU) with a face from which an anchor learns it."""
    negatives_per_positive: int = Field(default=7, ge=0, le=1000)
    """Background anchors, the hardest of an image, for each that learns a face."""


find_configuration = only_base("RetinaFace")


def retinaface(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    configuration: str = "base",
    foreground: float = 0.35,
    negatives_per_positive: int = 7,
    suppression: Suppression | None = None,
) -> Detector:
    """RetinaFace on the last three maps of `backbone`, a chain of stages; its channels are those of the finest, at most 256."""
    find_configuration(configuration)
    backbone = need_stages(backbone, "RetinaFace", where="model.name")
    names = [name for name in backbone.stages if name not in backbone.branches]
    if len(names) < 4:
        raise UserError("RetinaFace needs a chain of stages", where="model", fix="choose a backbone without branches")
    backbone.outputs = tuple(names[-3:])
    channels = max(4, min(256, backbone.features[0].channels) // 4 * 4)
    neck = RetinaFaceNeck(backbone.features, channels=channels)
    head = SSDHead(
        neck.features,
        num_classes=len(classes),
        priors=AnchorGrid([[(side, side) for side in level] for level in SIDES]),
        foreground=foreground,
        negatives_per_positive=negatives_per_positive,
        suppression=suppression or Suppression(score=0.02, iou=0.4, pre_nms=5000),
        kernel=1,
        box_weight=0.25,
    )
    return Detector(backbone, neck, head, pixel_norm=pixel_norm, classes=classes, divisor=32)


def load_published(detector: Detector, path: Path) -> list[str]:
    """The weights of the published MobileNetV1-0.25 into `retinaface:mobilenet_v1` of that width, one class and `PIXELS`,
    in place.

    Blue, green and red become red, green and blue in the first convolution; face and background change places.

    Returns:
        The keys of the file that have no place: the landmarks'.

    Raises:
        UserError: For a file of another network.
    """
    state = {key: value for key, value in read_weights(path).items() if "num_batches" not in key}
    try:
        taken = {ours: _turned(theirs, state.pop(theirs)) for ours, theirs in _keys()}
        missing = detector.load_state_dict(taken, strict=False).missing_keys
    except (KeyError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"not the weights of RetinaFace on MobileNetV1-0.25 ({text})", where=path) from None
    left = [key for key in state if not key.startswith(LANDMARKS)]
    absent = [key for key in missing if "num_batches" not in key and not key.startswith("pixel_norm")]
    if left or absent:
        raise UserError(f"weights of another network ({(left or absent)[0]})", where=path)
    return sorted(state)


def _turned(key: str, value: Tensor) -> Tensor:
    if key == "body.stage1.0.0.weight":
        return value.flip(1)
    return value.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) if key.startswith("ClassHead") else value


def _keys() -> list[tuple[str, str]]:
    """Our key and theirs, of every tensor."""
    convs: list[tuple[str, str, str, str]] = []  # our convolution and norm, theirs
    ours = [("stem", 0), ("stem", 1)]
    ours += [(f"stage{stage}", i) for stage, layers in ((1, 2), (2, 2), (3, 6), (4, 2)) for i in range(layers)]
    theirs = [("stage1", i) for i in range(6)] + [("stage2", i) for i in range(6)] + [("stage3", i) for i in range(2)]
    for number, ((stage, i), (part, at)) in enumerate(zip(ours, theirs, strict=True)):
        own, their = f"backbone.stages.{stage}.{i}", f"body.{part}.{at}"
        names = [("conv", "norm", 0)] if number == 0 else [("dw", "dw_norm", 0), ("pw", "pw_norm", 3)]
        convs += [(f"{own}.{conv}", f"{own}.{norm}", f"{their}.{at}", f"{their}.{at + 1}") for conv, norm, at in names]
    pairs = [(f"neck.inner.{i}", f"fpn.output{i + 1}") for i in range(3)]
    pairs += [(f"neck.merge.{i}", f"fpn.merge{i + 1}") for i in range(2)]
    blocks = {
        "once": "conv3X3",
        "first": "conv5X5_1",
        "twice": "conv5X5_2",
        "second": "conv7X7_2",
        "thrice": "conv7x7_3",
    }
    for i in range(3):
        pairs += [(f"neck.context.{i}.{own}", f"ssh{i + 1}.{their}") for own, their in blocks.items()]
    convs += [(f"{own}.0", f"{own}.1", f"{their}.0", f"{their}.1") for own, their in pairs]
    found = [(f"{conv}.weight", f"{file_conv}.weight") for conv, _, file_conv, _ in convs]
    values = ("weight", "bias", "running_mean", "running_var")
    found += [(f"{norm}.{value}", f"{their}.{value}") for _, norm, _, their in convs for value in values]
    for own, their in (("class_logits", "ClassHead"), ("box_deltas", "BboxHead")):
        found += [(f"head.{own}.{i}.{v}", f"{their}.{i}.conv1x1.{v}") for i in range(3) for v in ("weight", "bias")]
    return found
