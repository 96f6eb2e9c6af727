"""Stride elimination and the dual path. Mudassar and Mukhopadhyay, "Rethinking Convolutional Feature Extraction for Small
Object Detection" (BMVC 2019).

`S{n}L{i-j}` sets the stride of layers i and j to 1 (n counts them); no weight changes, every later map grows. A strided
pool becomes the identity (kernel 1, stride 1), as in the authors' code. Layers are a backbone's units in order of
computation: convolutions, pools, blocks; `layers` lists them. MobileNetV1 and VGG16 have the paper's numbers.

The dual path runs the rest of the network a second time, with the same weights, on every other row and column of the
enlarged map: large objects are seen as the original network saw them. Batch norms in the shared part see both paths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flyspeck.errors import UserError
from flyspeck.models.backbones.staged import StagedBackbone, need_stages
from flyspeck.models.detector import Detector, to_detections
from flyspeck.types import Detections, FeatureSpec, ImageBatch

_PATTERN = re.compile(r"S(\d+)L(\d+(?:-\d+)*)")
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class Layer:
    """One unit of a backbone."""

    index: int
    stage: str
    child: int
    """Its place among the children of the stage."""
    module: nn.Module
    stride: int


def layers(backbone: StagedBackbone) -> list[Layer]:
    """The units of `backbone` in order: every convolution, pool or block that is a child of a stage.

    Norms and activations between them are no layers. Stages with parallel branches have none (and end the list).
    """
    found: list[Layer] = []
    for stage_name, stage in backbone.stages.items():
        if stage_name in backbone.branches:
            break
        for child, module in enumerate(stage.children()):
            strided = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)]
            if strided:
                stride = max(_stride(m) for m in strided)
                found.append(Layer(len(found), stage_name, child, module, stride))
    return found


def _stride(module: nn.Module) -> int:
    stride = module.stride
    return max(stride) if isinstance(stride, tuple) else int(stride)  # type: ignore[arg-type]


def parse_elimination(name: str) -> tuple[int, ...]:
    """`S2L4-6` to (4, 6)."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise UserError(
            f"'{name}' is no stride elimination", where="stride elimination", fix="write S1L0, S2L4-6 or the like"
        )
    indices = tuple(int(i) for i in match[2].split("-"))
    if len(set(indices)) != int(match[1]):
        raise UserError(
            f"'{name}' says {match[1]} strides and names {len(set(indices))} layers",
            where="stride elimination",
            fix=f"write S{len(set(indices))}L{match[2]}",
        )
    return indices


def eliminate_strides(backbone: StagedBackbone, elimination: str | Sequence[int]) -> StagedBackbone:
    """Sets the stride of the named layers to 1, in place, weights kept, and returns the backbone.

    `elimination` is `S{n}L{i-j}` or layer indices. Raises UserError for a layer that does not exist or has no stride.
    """
    backbone = need_stages(backbone, "eliminating a stride", where="stride elimination")
    indices = parse_elimination(elimination) if isinstance(elimination, str) else tuple(elimination)
    known = layers(backbone)
    strided = ", ".join(f"{layer.index} (stride {layer.stride})" for layer in known if layer.stride > 1)
    for index in indices:
        if not 0 <= index < len(known):
            raise UserError(
                f"no layer {index}: the backbone has layers 0 to {len(known) - 1}",
                where="stride elimination",
                fix=f"layers with a stride are {strided}",
            )
        if known[index].stride == 1:
            raise UserError(
                f"layer {index} has no stride to eliminate",
                where="stride elimination",
                fix=f"layers with a stride are {strided or 'none'}",
            )
        if _cuts_patches(known[index].module):
            raise UserError(
                f"layer {index} cuts the image into patches that do not overlap: with a stride of 1 it is another layer",
                where="stride elimination",
                fix="choose a backbone of convolutions",
            )
    for index in indices:
        _neutralise(backbone, known[index])
    return backbone


def _cuts_patches(module: nn.Module) -> bool:
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d) and _stride(m) > 1]
    return any(max(conv.kernel_size) == _stride(conv) for conv in convs if max(conv.kernel_size) > 2)


def _neutralise(backbone: StagedBackbone, layer: Layer) -> None:
    for module in layer.module.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        elif isinstance(module, _POOLS) and _stride(module) > 1:
            module.kernel_size, module.stride, module.padding, module.ceil_mode = 1, 1, 0, False
    stages = list(backbone.stages)
    for name in stages[stages.index(layer.stage) :]:
        if name in backbone.specs:
            backbone.specs[name] = _finer(backbone.specs[name], layer.stride)
        if name in backbone.branches:
            backbone.branches[name] = tuple(_finer(spec, layer.stride) for spec in backbone.branches[name])


def _finer(spec: FeatureSpec, factor: int) -> FeatureSpec:
    return FeatureSpec(spec.channels, spec.stride / factor if spec.stride % factor else int(spec.stride // factor))


@torch.no_grad()
def detect_finer(detector: Detector, images: ImageBatch, *, factor: int) -> list[Detections]:
    """Detections of a detector whose backbone lost strides of total `factor` after its training (section 4.1).

    To its head, maps that grew by `factor` are those of an image enlarged as much: so the head decodes in that image's
    frame (anchors, points and regions as it learnt them), and its boxes are divided by `factor`.
    """
    height, width = images.pixels.shape[-2:]
    sizes = [(h * factor, w * factor) for h, w in images.sizes]
    raw = detector.detect_from(detector.pyramid(images), (height * factor, width * factor), sizes)
    return [
        to_detections(replace(r, boxes=r.boxes / factor), size, detector.classes)
        for r, size in zip(raw, images.sizes, strict=True)
    ]


class DualPath(nn.Module):
    """`path` run twice from layer `split` on: on its output (small objects), and on every other row and column of it.

    Returns the maps of the small path, then those of the large path, whose strides are twice as large.
    """

    def __init__(self, path: StagedBackbone, *, split: int) -> None:
        super().__init__()
        self.path = path
        layer = layers(path)[split]
        self.stage, self.after = layer.stage, layer.child + 1
        if not isinstance(path.stages[self.stage], nn.Sequential):
            raise ValueError(f"stage {self.stage} is no chain of layers that could be split")
        before = list(path.stages)[: list(path.stages).index(self.stage)]
        if any(name in path.outputs for name in before):
            raise ValueError("a feature map lies before the split: the large path would not have it")

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """The small path's maps, then the large path's."""
        small = self.path.features
        return (*small, *(FeatureSpec(f.channels, f.stride * 2) for f in small))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images `(B, 3, H, W)`, normalised, to the maps of both paths."""
        names = list(self.path.stages)
        position = names.index(self.stage)
        if position:
            x = self.path.run(x, stop=names[position - 1])[-1]
        children = list(self.path.stages[self.stage].children())
        for child in children[: self.after]:
            x = child(x)
        # Some activations work in place: the second path must not see what the first one did to its input.
        subsampled = x[..., ::2, ::2].contiguous()
        return self._rest(x, children) + self._rest(subsampled, children)

    def _rest(self, x: Tensor, children: Sequence[nn.Module]) -> list[Tensor]:
        for child in children[self.after :]:
            x = child(x)
        maps = [x] if self.stage in self.path.outputs else []
        return maps + self.path.run(x, start=self.stage)
