"""What a head may say of itself: every optional method that is missing is one line, and what is there is believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flyspeck.errors import UserError
from flyspeck.export.graph import check_exportable
from flyspeck.models import build as builder
from flyspeck.models import zoo
from flyspeck.models.assigners.hosts import map_sizes_of, priors_of
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.batch_decoding import ONNX_FORMS, BatchDetections, register_onnx
from flyspeck.models.detector import Detector, Head, PixelNorm
from flyspeck.models.necks.fpn import FPN
from flyspeck.models.postprocess import RawDetections, Suppression
from flyspeck.models.profile import profile
from flyspeck.train.distill.response import ResponseTerms
from flyspeck.types import Targets
from needs import with_extras


class BareHead(Head):
    """What a head must have, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.suppression = 1, Suppression()
        self.logits = nn.Conv2d(16, 1, 1)

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        return {"score": torch.stack([self.logits(m).square().mean() for m in maps]).sum()}

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        return [RawDetections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)) for _ in sizes]


class CountedHead(BareHead):
    """... and a layer for all maps, and a product that no layer does."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.logits(m) for m in maps]

    def extra_multiply_adds(self, maps: Sequence[Tensor], *, proposals: int) -> int:
        return 1000 * proposals + len(maps)


class CuriousHead(BareHead):
    """... whose layers look at values."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.logits(m)[torch.nonzero(m.flatten(1).sum(1) > 0).squeeze(1)] for m in maps]


def with_head(head: Head) -> Detector:
    backbone = mobilenet_v2(width=0.25)
    neck = FPN(backbone.features, channels=16)
    return Detector(backbone, neck, head, pixel_norm=PixelNorm([0.5] * 3, [0.25] * 3), classes=["a"])


ASKED: dict[str, tuple[str, Callable[[Detector], Any]]] = {
    "profile": ("run_layers", lambda d: profile(d, (64, 64))),
    "export": ("decode_batch", check_exportable),
    "assigner": ("assigning_part", lambda d: priors_of(d, (64, 64))),
    "distillation": ("dense_outputs", lambda d: ResponseTerms(d, d, temperature=1.0, regions=8)),
    "regions": ("region_outputs", lambda d: d.head.region_outputs([], [], (64, 64))),
    "proposals": ("propose", lambda d: d.head.propose([], (64, 64), [])),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_a_head_lacks_is_one_line_that_names_it(asked: str) -> None:
    method, ask = ASKED[asked]
    with pytest.raises(UserError) as caught:
        ask(with_head(BareHead()))
    text = str(caught.value)
    assert f"it has no {method}; implement Head.{method} in it" in text
    assert "\n" not in text


def test_a_head_with_a_forward_is_counted_with_what_no_layer_does() -> None:
    detector = with_head(CountedHead())
    cells = sum(h * w for h, w in map_sizes_of(detector, (64, 96)))
    found = profile(detector, (64, 96), convention="macs", proposals=7)
    assert found.parts["head"] * 1e9 == pytest.approx(cells * 16 + 7000 + len(detector.features))
    assert sum(found.parts.values()) == pytest.approx(found.gflops)
    assert profile(detector, (64, 96), convention="mmcv").parts["head"] * 1e9 == pytest.approx(cells * 17)


def test_a_head_whose_layers_look_at_values_cannot_be_counted() -> None:
    with pytest.raises(UserError, match=r"CuriousHead cannot be counted: its layers depend on values"):
        profile(with_head(CuriousHead()), (64, 64))


SMALL: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"hidden": 16},
    "cascade_rcnn": {"hidden": 16},
    "ssd": {},
    "dfine": {"layers": 1},
    "rtdetrv2": {"layers": 1},
}
NAMES = with_extras(name for name in zoo.DETECTORS if name not in ("free_anchor", "grid_rcnn", "libra_rcnn"))


def build(name: str) -> Detector:
    torch.manual_seed(0)
    backbone = {"ssd": "mobilenet_v1", "tinaface_gn_dcn": "resnet50"}.get(name, "mobilenet_v2")
    options = SMALL.get(name, {"depth": 1})
    detector = builder.build(f"{name}:{backbone}", width=0.25, channels=64, **options)
    assert isinstance(detector, Detector)
    return detector.eval()


@pytest.mark.parametrize("name", NAMES)
def test_every_head_of_the_zoo_keeps_the_contract(name: str) -> None:
    detector = build(name)
    head, size = detector.head, (64, 96)
    assert head.implements("decode_batch")
    assert profile(detector, size).parts["head"] > 0
    with torch.no_grad():
        maps = detector.neck(detector.backbone(torch.zeros(3, 3, *size)))
        found = head.decode_batch(maps, size)
        assert isinstance(found, BatchDetections)
        boxes, scores, labels = found.best(head.suppression.max_detections)
    assert boxes.shape[0] == scores.shape[0] == labels.shape[0] == 3
    assert boxes.shape[1] == scores.shape[1] == labels.shape[1] <= head.suppression.max_detections
    if not zoo.DETECTORS[name].assigners:  # the table and the head say the same
        assert not head.implements("assigning_part")
        return
    part, map_sizes = head.assigning_part(), map_sizes_of(detector, size)
    offered = part.priors(map_sizes, size, torch.device("cpu"))
    target = Targets(
        torch.tensor([[20.0, 20, 32, 30]]), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
    )
    assigned = part.assign_image(map_sizes, size, target)
    assert assigned.shape == (len(offered.boxes),)
    assert (assigned == 0).any()


def test_an_operator_has_one_onnx_form() -> None:
    def form(op: Any) -> Callable[..., Any]:
        return op.Identity

    try:
        register_onnx("mine::peaks", form)
        register_onnx("mine::peaks", form)
        with pytest.raises(UserError, match="'mine::peaks' has an ONNX form already"):
            register_onnx("mine::peaks", lambda op: op.Identity)
    finally:
        ONNX_FORMS.pop("mine::peaks", None)
