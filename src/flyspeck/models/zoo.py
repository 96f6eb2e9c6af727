"""The parts by name: plain dictionaries of backbones, necks and detectors. `names` takes a name apart, `build` builds it.

To add a part, add one line to `BACKBONES`, `NECKS` or `DETECTORS`; a part from outside the package comes in by
`flyspeck.plugins`. Any combination builds, except those that `build` refuses with the reason; `listed.LISTED` names those
with published numbers, which a test recounts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from flyspeck.models.assigners.build import CENTER_SAMPLING
from flyspeck.models.assigners.build import NAMES as ASSIGNERS
from flyspeck.models.backbones.bottom_heavy import bh_hrnet18, bh_hrnet32, bh_resnet14, bh_resnet18, bh_resnet50
from flyspeck.models.backbones.efficientnet_lite import PIXELS as TF_PIXELS
from flyspeck.models.backbones.efficientnet_lite import efficientnet_lite0, efficientnet_lite2
from flyspeck.models.backbones.hrnet import hrnet18, hrnet32
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.mobilenet_v1 import CORAL, MobileNetV1Options, mobilenet_v1
from flyspeck.models.backbones.mobilenet_v3 import mobilenet_v3_large
from flyspeck.models.backbones.resnet import resnet18, resnet34, resnet50, resnet101, resnet152, resnext50
from flyspeck.models.backbones.shufflenet import shufflenet_v2
from flyspeck.models.backbones.specknet import SpeckNetOptions, specknet_m, specknet_n, specknet_s
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.backbones.swin import SwinOptions, swin_t
from flyspeck.models.backbones.vgg import VGGOptions, vgg16
from flyspeck.models.detector import Detector
from flyspeck.models.detr.head import DetrHead
from flyspeck.models.heads.cascade_rcnn import CascadeRCNNHead, CascadeRCNNOptions, cascade_rcnn
from flyspeck.models.heads.dfine import DFineHead, DFineOptions, dfine
from flyspeck.models.heads.faster_rcnn import FasterRCNNHead, FasterRCNNOptions, faster_rcnn
from flyspeck.models.heads.fcos import FCOSHead, FCOSOptions, fcos
from flyspeck.models.heads.reppoints import RepPointsHead, RepPointsOptions, reppoints
from flyspeck.models.heads.retinanet import RetinaNetHead, RetinaNetOptions, retinanet
from flyspeck.models.heads.roi import RoIPool
from flyspeck.models.heads.rpn import RPN
from flyspeck.models.heads.rtdetrv2 import RTDetrV2Head, RTDetrV2Options, rtdetrv2
from flyspeck.models.heads.speck import SpeckHead, SpeckOptions, speck
from flyspeck.models.heads.ssd import SSDHead, SSDOptions, find_configuration, ssd
from flyspeck.models.heads.tinaface import TinaFaceHead, TinaFaceOptions, tinaface, tinaface_gn_dcn
from flyspeck.models.necks.fpn import FPN
from flyspeck.models.necks.hrfpn import HRFPN
from flyspeck.models.necks.light_fpn import light_fpn
from flyspeck.models.necks.sspnet import SSPNet, sspnet_anchors, weighted_negatives
from flyspeck.options import Options

NeckBuilder = Callable[..., nn.Module]
"""`(features, *, channels, num_extra, norm)` to a neck."""


def imagenet_pixels() -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of each channel of ImageNet in [0, 1], as torchvision's weights were trained with."""
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneEntry:
    """A backbone by name."""

    build: Callable[..., StagedBackbone]
    """Takes `width` and `weights`, and options of its own."""
    strides: tuple[int, ...] = (4, 8, 16, 32)
    """Image pixels per map pixel of the maps that it can give, finest first, as long as no stride is eliminated."""
    neck: str | None = None
    """The neck it is published with, if not the detector's own."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Detector name to arguments that the detector's builder needs for this backbone."""
    pixels: Callable[[], tuple[Sequence[float], Sequence[float]]] = imagenet_pixels
    """Mean and deviation of each channel, in [0, 1], that its published weights were trained with."""
    settings: type[Options] = Options
    """What a recipe may say of it under `model.backbone`: keywords of `build`."""
    channels: int = 256
    """Of neck and head where nothing else is asked for."""


@dataclass(frozen=True)
class NeckEntry:
    """A neck by name."""

    build: NeckBuilder
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Detector name to the arguments that the neck's paper gives that detector's builder."""
    fuses: bool = False
    """Whether it has top-down fusion factors (`fusion`)."""


@dataclass(frozen=True)
class DetectorEntry:
    """A detector by name."""

    build: Callable[..., Detector]
    """Takes the backbone, `classes`, `pixel_norm` and its own options; with a neck also `neck`, `num_extra`, `channels`."""
    passes_to: tuple[Callable[..., Any], ...] = ()
    """What takes the keywords that `build` does not name itself, such as the class of its head. Empty, of a builder that
    takes any keyword: nothing is known about them."""
    sections: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Options that are keyword arguments of a part themselves, and that part: `rpn`, `pool`."""
    levels: str = "2-6"
    """Its pyramid where nothing else is asked for: level k has stride 2^k. Without an end (`2-`) up to the backbone's last."""
    classes: int = 1
    """Foreground classes of the published numbers."""
    find_configuration: Callable[..., Any] | None = None
    """Of a detector without a neck to choose: checks the third part of its name, which is then a configuration."""
    assigners: tuple[str, ...] = ()
    """Names of the label assigners that it takes; without any it assigns by its own rule."""
    settings: type[Options] = Options
    """What a recipe may say of it under `model.head`: keywords of `build`."""
    norm: str = "none"
    """The norm layers of neck and head (`layers.NORMS`) where a recipe asks for none by name."""
    like: str | None = None
    """The detector for which backbones, and the papers of necks, give arguments (`options`) that its builder takes too."""

    @property
    def has_neck(self) -> bool:
        """Whether the third part of the name is a neck."""
        return self.find_configuration is None


_FROM_STRIDE_2 = (2, 4, 8, 16, 32)
_speck = partial(BackboneEntry, strides=(2, 4, 8, 16), settings=SpeckNetOptions)

BACKBONES: dict[str, BackboneEntry] = {
    "resnet18": BackboneEntry(resnet18),
    "resnet34": BackboneEntry(resnet34),
    "resnet50": BackboneEntry(resnet50),
    "resnet101": BackboneEntry(resnet101),
    "resnet152": BackboneEntry(resnet152),
    "resnext50": BackboneEntry(resnext50),
    "bh_resnet18": BackboneEntry(bh_resnet18, _FROM_STRIDE_2),
    "bh_resnet14": BackboneEntry(bh_resnet14, _FROM_STRIDE_2),
    "bh_resnet50": BackboneEntry(bh_resnet50, _FROM_STRIDE_2),
    "efficientnet_lite0": BackboneEntry(efficientnet_lite0, _FROM_STRIDE_2, pixels=lambda: TF_PIXELS),
    "efficientnet_lite2": BackboneEntry(efficientnet_lite2, _FROM_STRIDE_2, pixels=lambda: TF_PIXELS),
    "hrnet18": BackboneEntry(hrnet18, neck="hrfpn"),
    "hrnet32": BackboneEntry(hrnet32, neck="hrfpn"),
    "bh_hrnet18": BackboneEntry(bh_hrnet18, neck="hrfpn"),
    "bh_hrnet32": BackboneEntry(bh_hrnet32, neck="hrfpn"),
    "mobilenet_v1": BackboneEntry(mobilenet_v1, _FROM_STRIDE_2, settings=MobileNetV1Options),
    "mobilenet_v1_coral": BackboneEntry(partial(mobilenet_v1, **CORAL), _FROM_STRIDE_2),
    "mobilenet_v2": BackboneEntry(mobilenet_v2, _FROM_STRIDE_2),
    "mobilenet_v3_large": BackboneEntry(mobilenet_v3_large, _FROM_STRIDE_2),
    "shufflenet_v2": BackboneEntry(shufflenet_v2, _FROM_STRIDE_2),
    "specknet_n": _speck(specknet_n, channels=32),
    "specknet_s": _speck(specknet_s, channels=48),
    "specknet_m": _speck(specknet_m, channels=80),
    "swin_t": BackboneEntry(swin_t, neck="fpn_ln", settings=SwinOptions),
    "vgg16": BackboneEntry(vgg16, _FROM_STRIDE_2, options={"ssd": {"plain": True}}, settings=VGGOptions),
}

_TWO_STAGES = ("faster_rcnn", "cascade_rcnn")
_SSPNET_PROPOSALS = {"anchors": sspnet_anchors, "rpn": {"negative_weight": weighted_negatives}}

NECKS: dict[str, NeckEntry] = {
    "fpn": NeckEntry(FPN, fuses=True),
    "fpn_ln": NeckEntry(partial(FPN, input_norm=True), fuses=True),
    "hrfpn": NeckEntry(HRFPN),
    "light_fpn": NeckEntry(light_fpn, fuses=True),
    "sspnet": NeckEntry(SSPNet, dict.fromkeys(_TWO_STAGES, _SSPNET_PROPOSALS)),
}

_TWO_STAGE_SECTIONS = {"rpn": RPN, "pool": RoIPool}

DETECTORS: dict[str, DetectorEntry] = {
    "retinanet": DetectorEntry(retinanet, (RetinaNetHead,), assigners=ASSIGNERS, settings=RetinaNetOptions),
    "faster_rcnn": DetectorEntry(
        faster_rcnn, (FasterRCNNHead,), _TWO_STAGE_SECTIONS, assigners=ASSIGNERS, settings=FasterRCNNOptions
    ),
    "cascade_rcnn": DetectorEntry(
        cascade_rcnn, (CascadeRCNNHead,), _TWO_STAGE_SECTIONS, assigners=ASSIGNERS, settings=CascadeRCNNOptions
    ),
    "fcos": DetectorEntry(fcos, (FCOSHead,), assigners=(CENTER_SAMPLING, *ASSIGNERS), settings=FCOSOptions),
    "reppoints": DetectorEntry(reppoints, (RepPointsHead,), settings=RepPointsOptions),
    "speck": DetectorEntry(speck, (SpeckHead,), levels="2-", assigners=ASSIGNERS, settings=SpeckOptions, norm="bn"),
    "dfine": DetectorEntry(dfine, (DFineHead, DetrHead), levels="2-5", settings=DFineOptions, norm="bn"),
    "rtdetrv2": DetectorEntry(rtdetrv2, (RTDetrV2Head, DetrHead), levels="2-5", settings=RTDetrV2Options, norm="bn"),
    "tinaface": DetectorEntry(tinaface, (TinaFaceHead,), levels="2-7", assigners=ASSIGNERS, settings=TinaFaceOptions),
    "tinaface_gn_dcn": DetectorEntry(
        tinaface_gn_dcn, (tinaface, TinaFaceHead), levels="2-7", assigners=ASSIGNERS, settings=TinaFaceOptions
    ),
    "ssd": DetectorEntry(ssd, (SSDHead,), classes=80, find_configuration=find_configuration, settings=SSDOptions),
}

SHORT: dict[str, str] = {f"speck_{size}": f"speck:specknet_{size}" for size in "nsm"}
"""Names that stand for whole ones."""
