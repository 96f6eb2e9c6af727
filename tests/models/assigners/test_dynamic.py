"""Rules that look at what a detector says: against a slow twin, by hand, and on objects that no point lies in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flyspeck import boxes as box_algebra
from flyspeck.models.assign import BACKGROUND, IGNORED
from flyspeck.models.assigners.dynamic import DynamicRule, Grid, Said, assign_dynamically, near_pairs
from flyspeck.models.assigners.nwd import nwd
from flyspeck.models.assigners.rfla import rfd_kl
from flyspeck.models.heads.fcos import grid_points

STRIDES = (4, 8, 16)
SIZE = (48, 64)
NOTHING = torch.zeros(0, 4)


def grid() -> Grid:
    sizes = [(SIZE[0] // s, SIZE[1] // s) for s in STRIDES]
    points, cells = grid_points(sizes, SIZE, torch.device("cpu"))
    return Grid(points, cells, torch.cat([points - cells, points + cells], 1))


def said(seed: int, classes: int = 2) -> Said:
    """Boxes beside their priors, and any score."""
    generator = torch.Generator().manual_seed(seed)
    priors = grid().priors
    shift = torch.rand(priors.shape, generator=generator) - 0.5
    boxes = priors + shift * (priors[:, 2:] - priors[:, :2]).repeat(1, 2) * 0.4
    return Said(torch.randn(len(priors), classes, generator=generator) * 2, boxes)


def slow(
    rule: DynamicRule, says: Said, objects: Tensor, labels: Tensor, *, one_each: bool = False
) -> tuple[list[int], list[float]]:
    """Object by object, point by point, in plain numbers; what `assign_dynamically` gives."""
    g = grid()
    cost: dict[tuple[int, int], float] = {}
    overlap: dict[tuple[int, int], float] = {}
    for n, box in enumerate(objects):
        for a, (point, cell) in enumerate(zip(g.points.tolist(), g.cells.tolist(), strict=True)):
            off = [abs(point[i] - float(box[i] + box[i + 2]) / 2) for i in (0, 1)]
            inside = all(float(box[i]) < point[i] < float(box[i + 2]) for i in (0, 1))
            if any(off[i] > rule.radius * cell[i] for i in (0, 1)):
                continue
            if not inside and any(off[i] > rule.reach * cell[i] for i in (0, 1)):
                continue
            mine, own = says.boxes[a : a + 1], box[None]
            iou = float(box_algebra.iou(mine, own))
            logit = float(says.logits[a, labels[n]])
            score = 1 / (1 + math.exp(-logit))
            close = iou if rule.closeness == "iou" else (iou + float(nwd(mine, own, constant=rule.constant))) / 2
            if rule.name == "simota":
                entropy = -(close * math.log(score) + (1 - close) * math.log(1 - score))
                price = entropy * (close - score) ** 2 - 3 * math.log(close + 1e-6)
            else:
                price = -math.log(score) - 6 * math.log(close + 1e-6)
            prior = g.priors[a : a + 1]
            by_nwd, by_rfla = float(nwd(prior, own, constant=rule.constant)), float(rfd_kl(own, prior))
            fit = {"none": 1 - 1e-6, "nwd": by_nwd, "rfla": by_rfla}
            cost[n, a] = price - rule.prior_weight * math.log(fit[rule.prior] + 1e-6)
            overlap[n, a] = iou
    row = [BACKGROUND] * len(g.points)

    def give(pairs: list[tuple[int, int]]) -> None:
        for a in {a for _, a in pairs}:
            row[a] = min((n for n, b in pairs if b == a), key=lambda n: cost[n, a])

    asked: list[tuple[int, int]] = []
    for n in range(len(objects)):
        mine = [a for m, a in cost if m == n]
        k = rule.k
        if rule.name == "simota":
            k = max(1, int(sum(sorted((overlap[n, a] for a in mine), reverse=True)[: rule.k])))
        asked += [(n, a) for a in sorted(mine, key=lambda a: cost[n, a])[: 1 if one_each else k]]
    give(asked)
    for _ in range(8):
        starved = [n for n in range(len(objects)) if n not in row]
        free = {n: [a for m, a in cost if m == n and row[a] < 0] for n in starved}
        give([(n, min(left, key=lambda a: cost[n, a])) for n, left in free.items() if left])
    quality = [0.0] * len(row)
    for n in range(len(objects)):
        mine = [a for a, m in enumerate(row) if m == n]
        if not mine:
            continue
        largest, cheapest = max(overlap[n, a] for a in mine), min(cost[n, a] for a in mine)
        for a in mine:
            quality[a] = overlap[n, a] if rule.name == "simota" else math.exp(cheapest - cost[n, a]) * largest
    return row, quality


RULES = [
    DynamicRule(),
    DynamicRule("simota", closeness="iou", prior="none", reach=0.5),
    DynamicRule("task_aligned", k=4, prior="rfla"),
    DynamicRule("task_aligned", k=3, closeness="iou", prior="nwd", prior_weight=2),
]


@settings(max_examples=6, deadline=None)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("one_each", [False, True])
@given(
    st.lists(st.tuples(st.floats(0, 60), st.floats(0, 44), st.floats(1, 20), st.floats(1, 20)), min_size=1, max_size=5),
    st.integers(0, 1000),
)
def test_equals_the_slow_twin(rule: DynamicRule, one_each: bool, sides: list, seed: int) -> None:
    objects = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in sides])
    labels = torch.arange(len(objects)) % 2
    says = said(seed)
    found = assign_dynamically(rule, grid(), says, objects, labels, NOTHING, one_each=one_each)
    row, quality = slow(rule, says, objects, labels, one_each=one_each)
    if found.row.tolist() != row:  # equal costs, apart in the last digit: the same number of points all the same
        differ = sum(a != b for a, b in zip(found.row.tolist(), row, strict=True))
        assert differ <= 2
        return
    torch.testing.assert_close(found.quality, torch.tensor(quality), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("side", [0.5, 1, 2, 3, 8])
def test_a_box_that_holds_no_point_has_one(rule: DynamicRule, side: float) -> None:
    for x in torch.arange(8.0, 16, 0.75):
        box = torch.tensor([[x, 20.0, x + side, 20 + side]])
        found = assign_dynamically(rule, grid(), said(0), box, torch.tensor([1]), NOTHING)
        assert (found.row == 0).any()
        assert (found.quality <= 1).all()


def test_of_800_objects_none_starves_while_there_are_points() -> None:
    """Four objects on every cell of stride 4 cannot all have one; a quarter as many can."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(800, 2, generator=generator) * torch.tensor([60.0, 44.0])
    crowd = torch.cat([corner, corner + 2], 1)
    labels = torch.zeros(800, dtype=torch.int64)
    everyone = assign_dynamically(DynamicRule(), grid(), said(0), crowd, labels, NOTHING)
    assert (everyone.row >= 0).sum() == len(everyone.row)  # each point has somebody
    few = assign_dynamically(DynamicRule(), grid(), said(0), crowd[:60], labels[:60], NOTHING)
    assert len(few.row[few.row >= 0].unique()) == 60
    one = assign_dynamically(DynamicRule(), grid(), said(0), crowd[:60], labels[:60], NOTHING, one_each=True)
    assert sorted(one.row[one.row >= 0].tolist()) == list(range(60))


def test_points_inside_ignore_regions_are_no_background() -> None:
    region = torch.tensor([[10.0, 10, 30, 30]])
    box = torch.tensor([[12.0, 12, 20, 20]])
    found = assign_dynamically(DynamicRule(), grid(), said(0), box, torch.tensor([0]), region)
    inside = ((grid().points > region[0, :2]) & (grid().points < region[0, 2:])).all(1)
    assert (found.row[inside] != BACKGROUND).all()
    assert (found.row[~inside] != IGNORED).all()
    assert (found.row == 0).any()


def test_the_prior_picks_the_level() -> None:
    """A detector that says nothing yet: with the prior a box of 8 px belongs to stride 4 (squares of 8 px), without to any."""
    g = grid()
    box = torch.tensor([[30.0, 22, 38, 30]])
    wide = Said(torch.zeros(len(g.points), 1), torch.full((len(g.points), 4), 500.0))  # all boxes elsewhere
    fine = len(g.points[: 12 * 16])
    with_prior = assign_dynamically(DynamicRule(k=1), g, wide, box, torch.tensor([0]), NOTHING)
    assert int(torch.nonzero(with_prior.row == 0)[0]) < fine


def test_near_pairs_by_hand() -> None:
    """A box of 2 px around the corner (16, 16) of four cells of stride 4: 4 points at 2 px, within half a cell; none inside."""
    box = torch.tensor([[15.0, 15, 17, 17]])
    _, a = near_pairs(grid(), box, radius=2.5, reach=0.5)
    fine = a[a < 12 * 16]
    assert grid().points[fine].tolist() == [[14, 14], [18, 14], [14, 18], [18, 18]]
    assert len(near_pairs(grid(), box, radius=2.5, reach=0.0)[0]) == 0
