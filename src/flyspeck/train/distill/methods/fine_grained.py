"""Fine-grained feature imitation (Wang, Yuan, Zhang and Feng, CVPR 2019, arXiv:1906.03609): near objects only.

For each object, M is the highest overlap (IoU) with any anchor of the level; cells with an anchor of an overlap above psi * M
are learnt, psi = 0.5, those of all objects together. With I the mask and N_p its cells in the batch,

    L_imitation = 1 / (2 N_p) * sum over cells and channels of I (adapter(F_S) - F_T)^2

The adapter is there where the channels agree too. Deviations: the mean over channels, and the units of `base`; the adapter is a
1x1 convolution, computed for the cells of the mask alone (the paper prints no kernel size). A detector on points has no
anchors: it gets those that `RetinaNet` has here, 2 strides a side at ratios 1:2, 1:1 and 2:1. On a pyramid every object has
cells on every level: on a coarse one, where no anchor is as small, those whose anchors hold it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flyspeck.models.anchors import anchor_shapes
from flyspeck.models.detector import Detector
from flyspeck.train.distill.levels import LevelPair
from flyspeck.train.distill.methods.base import Level, PaperTerms, Scene, pointwise

AnchorShapes = Sequence[tuple[float, float]]
OVERLAPS_AT_ONCE = 1 << 22
"""Objects are taken in groups, so that a crowded image costs time and not memory."""


class FineGrainedTerms(PaperTerms):
    """The term `imitation` of each level. `anchors` are (width, height) in px by level name."""

    def __init__(
        self,
        pairs: Sequence[LevelPair],
        *,
        wanted: Sequence[str],
        anchors: dict[str, AnchorShapes],
        threshold: float = 0.5,
    ) -> None:
        super().__init__(pairs, wanted=wanted)
        self.anchors, self.threshold = anchors, threshold
        self.adapters = pointwise(pairs, [p.name for p in pairs if self.wants(p.name, "imitation")], always=True)

    def compare(self, levels: Sequence[Level], scene: Scene) -> dict[str, Tensor]:
        """See `PaperTerms.compare`."""
        return {f"imitation {level.name}": self._imitation(level, scene) for level in levels}

    def _imitation(self, level: Level, scene: Scene) -> Tensor:
        device = level.student.device
        masks = [
            imitation_mask(
                scene.objects(i, device), self.anchors[level.name], scene.padded, level.size, threshold=self.threshold
            )
            for i in range(len(level.valid))
        ]
        near = torch.stack(masks) & (level.valid > 0)
        adapter = self.adapters[level.name]
        own = level.student.permute(0, 2, 3, 1)[near]  # (cells, C_S): nothing else is adapted
        adapted = torch.nn.functional.linear(own, adapter.weight[:, :, 0, 0], adapter.bias) / level.unit  # type: ignore[index,arg-type]
        distance = (adapted - level.teacher.permute(0, 2, 3, 1)[near]).square().mean(1)
        return distance.sum() / (2 * max(len(distance), 1))


def anchors_of(student: Detector, pairs: Sequence[LevelPair]) -> dict[str, AnchorShapes]:
    """(width, height) in px of the anchors of each level; of a detector on points, squares and oblongs of two strides."""
    grid = student.head.dense_grid()
    shapes = grid or anchor_shapes([2.0 * f.stride for f in student.features], ratios=(0.5, 1.0, 2.0), octaves=1)
    return {pair.name: shapes[pair.student] for pair in pairs}


@torch.no_grad()
def imitation_mask(
    objects: Tensor, shapes: AnchorShapes, padded: tuple[int, int], map_size: tuple[int, int], *, threshold: float
) -> Tensor:
    """`(H, W)` bool: cells with an anchor whose overlap with an object is above `threshold` of the highest there is.

    `objects (N, 4)` and `shapes` (width, height) in px of the batch of size `padded` (H, W); anchors are centred on the cells.
    """
    rows, columns = map_size
    found = torch.zeros(map_size, dtype=torch.bool, device=objects.device)
    at_once = max(1, OVERLAPS_AT_ONCE // (rows * columns * max(len(shapes), 1)))
    for some in objects.split(at_once):
        if len(some) == 0:
            continue
        overlaps = _overlaps(some, shapes, padded, map_size)
        highest = overlaps.amax((1, 2, 3), keepdim=True)
        found |= (overlaps > threshold * highest).any(3).any(0)
    return found


def _overlaps(objects: Tensor, shapes: AnchorShapes, padded: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    """IoU `(N, H, W, K)`: what two boxes share is a product of a width and a height, so that sides suffice."""
    sides = torch.tensor(shapes, device=objects.device, dtype=torch.float32)
    shared = []
    for axis in (1, 0):
        count, length = map_size[1 - axis], padded[1 - axis]
        centers = (torch.arange(count, device=objects.device) + 0.5) * (length / count)
        low, high = centers[:, None] - sides[:, axis] / 2, centers[:, None] + sides[:, axis] / 2
        top = torch.minimum(high, objects[:, axis + 2, None, None])
        shared.append((top - torch.maximum(low, objects[:, axis, None, None])).clamp(min=0))  # (N, count, K)
    inner = shared[0][:, :, None] * shared[1][:, None]
    areas = (objects[:, 2:] - objects[:, :2]).clamp(min=0).prod(1)
    return inner / (areas[:, None, None, None] + sides.prod(1) - inner)
