"""A training step of detectors on a small batch, several heads and necks on one run of a backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from flyspeck.models.build import assemble, build_backbone
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.names import ZooName
from flyspeck.models.zoo import DETECTORS
from flyspeck.types import ImageBatch, Targets

SIZE = (64, 96)
FEW = {"proposals": 20, "train_proposals": 20, "hidden": 16}
Options = Mapping[str, Mapping[str, Any]]


def batch() -> tuple[ImageBatch, list[Targets]]:
    """An image with a 6-px and a 20-px object and an ignore region, and one that is smaller and has nothing."""
    generator = torch.Generator().manual_seed(0)
    objects = Targets(
        torch.tensor([[10.0, 10, 16, 16], [30, 30, 50, 50], [70, 0, 96, 20]]),
        torch.tensor([0, 1, -1]),
        torch.tensor([False, False, True]),
    )
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    return ImageBatch(torch.rand(2, 3, *SIZE, generator=generator), (SIZE, (50, 70))), [objects, nothing]


class Remembered(nn.Module):
    """Stands for a backbone that has run already: its maps as leaves of the graph."""

    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        self.maps = [m.detach().requires_grad_() for m in maps]

    def forward(self, _: Tensor) -> list[Tensor]:
        return self.maps


def finite_step(detector: Detector) -> None:
    """Losses and their gradients are finite, and every trainable part has some."""
    images, targets = batch()
    total = torch.stack(list(detector.losses(images, targets).values())).sum()
    assert torch.isfinite(total)
    total.backward()
    for part in (detector.neck, detector.head):
        grads = [p.grad for p in part.parameters() if p.grad is not None]
        assert grads
        assert all(torch.isfinite(g).all() for g in grads)


def train_a_step(
    backbone_name: str, pairs: Iterable[tuple[str, str]], *, options: Options = MappingProxyType({})
) -> None:
    """The backbone runs forward once and backward once; between them each (neck, head) takes its maps and returns gradients.

    The maps' gradients are those of the sum of all losses, as if the detectors were trained together. `options` are a head's.
    """
    torch.manual_seed(0)
    backbone = build_backbone(backbone_name, width=1 / 16)
    pixel_norm = PixelNorm((0.5,) * 3, (0.25,) * 3)
    maps = backbone(pixel_norm(batch()[0]))
    remembered = Remembered(maps)
    for neck, head in pairs:
        detector = assemble(
            ZooName(head, backbone_name, neck),
            backbone,
            classes=("a", "b"),
            pixel_norm=pixel_norm,
            num_extra=1,
            channels=16,
            **(FEW if "rpn" in DETECTORS[head].sections else {}),
            **options.get(head, {}),
        )
        detector.backbone = remembered
        finite_step(detector)
        with torch.no_grad():
            assert len(detector.eval().detect(batch()[0])) == 2
    grads = [m.grad for m in remembered.maps]
    assert all(g is not None and torch.isfinite(g).all() and g.abs().sum() > 0 for g in grads)
    torch.autograd.backward(maps, grads)
    reached = [p.grad is not None for p in backbone.parameters()]
    assert sum(reached) == len(reached)
