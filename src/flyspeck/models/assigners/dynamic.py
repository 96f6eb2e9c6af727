"""Assigners that look at what the detector says: SimOTA and task alignment, with a prior for objects of a few pixels.

* `simota` (Ge et al., YOLOX, 2021, arXiv:2107.08430, sec. 2): a point costs an object its class loss plus 3 times -log(IoU); an
  object takes as many of the cheapest as the sum of its ten best IoUs says. The class loss is towards the IoU, as RTMDet has it
  (Lyu et al., 2022, arXiv:2212.07784, eq. 2).
* `task_aligned` (Feng et al., TOOD, ICCV 2021, arXiv:2108.07755, sec. 3.2.1): an object takes the `k` points of the largest
  score^1 times IoU^6; what a point is to score is that, scaled so that an object's best one has its largest IoU.

Which points may learn an object: those within `radius` cells of its centre along both axes that it contains, or that lie within
`reach` cells: from 0.5 on, an object smaller than a cell has a point on each level. The published rules take points inside
boxes alone: then half of the objects of 2-3 px have none at stride 4.

What is added for tiny objects, where a young detector's IoU is 0 and says nothing: (1) `closeness` "nwd": the mean of IoU and NWD
(`assigners.nwd`) of predicted box and object in place of IoU; (2) `prior`: how well the square of the point fits the object
(NWD, or RFLA's distance of receptive fields by Kullback-Leibler) joins the cost as -log of it, and so the level follows the size.

A point that two objects want goes to the cheaper. An object that lost all of its points takes the cheapest one that nobody has.
Deviations from the published rules: that; only the class of the object counts in the class loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.models.assign import BACKGROUND, IGNORED
from flyspeck.models.assigners.nwd import AITOD_SIZE, as_points
from flyspeck.models.losses import quality_focal_loss

Rule = Literal["simota", "task_aligned"]
Closeness = Literal["iou", "nwd"]
PriorFit = Literal["none", "nwd", "rfla"]
_BLOCK = 1 << 20
"""Most (object, point) pairs looked at at once."""
_LEAST = 1e-6
_ROUNDS = 8
"""Most rounds in which objects without a point look for a free one."""


@dataclass(frozen=True)
class DynamicRule:
    """See the head of this module."""

    name: Rule = "simota"
    k: int = 10
    """IoUs that are summed for how many points an object takes (`simota`), or how many it takes (`task_aligned`)."""
    radius: float = 2.5
    reach: float = 1.0
    closeness: Closeness = "nwd"
    prior: PriorFit = "nwd"
    prior_weight: float = 1.0
    constant: float = AITOD_SIZE
    """NWD's, in px."""


@dataclass(frozen=True)
class Grid:
    """The A points of an image."""

    points: Tensor
    """(A, 2) x, y in px."""
    cells: Tensor
    """(A, 2) sides in px."""
    priors: Tensor
    """(A, 4) squares around them."""


@dataclass(frozen=True)
class Said:
    """What a detector says at the A points of one image."""

    logits: Tensor
    """(A, K)"""
    boxes: Tensor
    """(A, 4) xyxy px."""


@dataclass(frozen=True)
class Assigned:
    """What the A points of one image learn."""

    row: Tensor
    """(A,) int64 a row of the objects, `BACKGROUND` or `IGNORED`."""
    quality: Tensor
    """(A,) what a point is to score, in [0, 1]; 0 where it learns no object."""


@torch.no_grad()
def assign_dynamically(
    rule: DynamicRule,
    grid: Grid,
    said: Said,
    objects: Tensor,
    labels: Tensor,
    ignored: Tensor,
    *,
    one_each: bool = False,
) -> Assigned:
    """What each point learns of `objects (N, 4)` with `labels (N,)`; points inside `ignored (N', 4)` are never background.

    `one_each` gives each object one point alone, for a head that needs no suppression.
    """
    row = torch.full((len(grid.points),), BACKGROUND, dtype=torch.int64, device=grid.points.device)
    quality = torch.zeros(len(grid.points), device=grid.points.device)
    if len(objects):
        n, a = near_pairs(grid, objects, radius=rule.radius, reach=rule.reach)
        iou = box_algebra.paired_iou(said.boxes[a], objects[n]).clamp(0, 1)
        cost = _costs(rule, grid, said, objects, labels, n, a, iou)
        taken = torch.full((len(objects),), 1 if one_each else rule.k, device=n.device)
        if rule.name == "simota" and not one_each:
            best = _rank(n, -iou, len(objects)) < rule.k
            taken = torch.zeros(len(objects), device=n.device).index_add_(0, n[best], iou[best]).floor().clamp(min=1)
        wanted = _rank(n, cost, len(objects)) < taken[n]
        _give(row, n[wanted], a[wanted], cost[wanted])
        _serve_the_starved(row, n, a, cost, len(objects))
        quality = _qualities(rule, row, n, a, cost, iou, len(objects))
    if len(ignored):
        x, y = grid.points[:, 0, None], grid.points[:, 1, None]
        inside = (x > ignored[:, 0]) & (x < ignored[:, 2]) & (y > ignored[:, 1]) & (y < ignored[:, 3])
        row[(row == BACKGROUND) & inside.any(1)] = IGNORED
    return Assigned(row, quality)


def near_pairs(grid: Grid, objects: Tensor, *, radius: float, reach: float) -> tuple[Tensor, Tensor]:
    """Pairs (object, point), each `(P,)`, of which the point may learn the object, by object and point."""
    found: list[tuple[Tensor, Tensor]] = []
    step = max(1, _BLOCK // max(len(grid.points), 1))
    for start in range(0, len(objects), step):
        block = objects[start : start + step]
        center = box_algebra.center(block)
        near = (grid.points[:, 0] - center[:, 0, None]).abs() <= radius * grid.cells[:, 0]
        near &= (grid.points[:, 1] - center[:, 1, None]).abs() <= radius * grid.cells[:, 1]
        n, a = torch.nonzero(near, as_tuple=True)
        point, box = grid.points[a], block[n]
        inside = ((point > box[:, :2]) & (point < box[:, 2:])).all(1)
        inside |= ((point - center[n]).abs() <= reach * grid.cells[a]).all(1)
        found.append((n[inside] + start, a[inside]))
    return torch.cat([n for n, _ in found]), torch.cat([a for _, a in found])


def _costs(
    rule: DynamicRule, grid: Grid, said: Said, objects: Tensor, labels: Tensor, n: Tensor, a: Tensor, iou: Tensor
) -> Tensor:
    """What each pair costs, `(P,)`."""
    logit = said.logits[a, labels[n]].float()
    close = iou if rule.closeness == "iou" else (iou + _nwd(said.boxes[a], objects[n], rule.constant)) / 2
    remote = -(close + _LEAST).log()
    if rule.name == "simota":
        cost = quality_focal_loss(logit, close.clamp(0, 1)) + 3 * remote
    else:
        cost = 6 * remote - F.logsigmoid(logit)
    if rule.prior != "none":
        fit = (
            _nwd(grid.priors[a], objects[n], rule.constant) if rule.prior == "nwd" else _fit(grid.priors[a], objects[n])
        )
        cost = cost - rule.prior_weight * (fit + _LEAST).log()
    return cost


def _nwd(a: Tensor, b: Tensor, constant: float) -> Tensor:
    """Of pairs of boxes, `(P,)`."""
    return torch.exp(-(as_points(a) - as_points(b)).norm(dim=1) / constant)


def _fit(priors: Tensor, objects: Tensor) -> Tensor:
    """RFLA's distance of pairs, the prior as the receptive field (`rfla.rfd_kl`), `(P,)`."""
    field, side = priors[:, 2:] - priors[:, :2], (objects[:, 2:] - objects[:, :2]).clamp(min=1e-3)
    ratio = (field / side) ** 2
    shift = 4 * ((box_algebra.center(priors) - box_algebra.center(objects)) / side) ** 2
    divergence = (shift + ratio - ratio.log() - 1).sum(1) / 2
    return 1 / (1 + divergence.clamp(min=0))


def _rank(n: Tensor, cost: Tensor, count: int) -> Tensor:
    """Of each pair: how many pairs of its object cost less (or as much, and come before), `(P,)`."""
    order = torch.argsort(cost, stable=True)
    order = order[torch.argsort(n[order], stable=True)]
    each = torch.bincount(n, minlength=count)
    first = each.cumsum(0) - each
    rank = torch.empty_like(n)
    rank[order] = torch.arange(len(n), device=n.device) - first[n[order]]
    return rank


def _give(row: Tensor, n: Tensor, a: Tensor, cost: Tensor) -> None:
    """Gives each point, in place, to the object of its cheapest pair; of equal ones, to the first pair."""
    chosen = _rank(a, cost, len(row)) == 0
    row[a[chosen]] = n[chosen]


def _serve_the_starved(row: Tensor, n: Tensor, a: Tensor, cost: Tensor, count: int) -> None:
    """Objects without a point take their cheapest free one, in place, as long as there are any."""
    for _ in range(_ROUNDS):
        served = torch.zeros(count, dtype=torch.bool, device=row.device)
        served[row[row >= 0]] = True
        open_ = ~served[n] & (row[a] < 0)
        if not open_.any():
            return
        left, free, price = n[open_], a[open_], cost[open_]
        best = _rank(left, price, count) == 0
        _give(row, left[best], free[best], price[best])


def _qualities(rule: DynamicRule, row: Tensor, n: Tensor, a: Tensor, cost: Tensor, iou: Tensor, count: int) -> Tensor:
    """What each point is to score, `(A,)`."""
    quality = torch.zeros(len(row), device=row.device)
    mine = row[a] == n
    n, a, cost, iou = n[mine], a[mine], cost[mine], iou[mine]
    if rule.name == "simota":
        quality[a] = iou
        return quality
    largest = torch.zeros(count, device=row.device).scatter_reduce_(0, n, iou, "amax")
    cheapest = torch.full((count,), torch.inf, device=row.device).scatter_reduce_(0, n, cost, "amin")
    quality[a] = torch.exp(cheapest[n] - cost) * largest[n]
    return quality
