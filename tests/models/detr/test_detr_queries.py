"""Proposals of every cell, at the rim too; objects with noise; one query for each object. Boxes of 1 to 8 px."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from flyspeck import boxes as box_algebra
from flyspeck.models.assign import BACKGROUND, IGNORED
from flyspeck.models.assigners.nwd import nwd
from flyspeck.models.detr.losses import to_pixels
from flyspeck.models.detr.matching import MatchCost, match, pair_cost
from flyspeck.models.detr.queries import Noise, anchor_logits, cells_inside, logit, noised
from flyspeck.types import Targets
from needs import TRANSFORMERS

SIZE = (64, 96)
MAPS = [(16, 24), (8, 12), (4, 6)]


def target(*boxes: list[float], ignored: tuple[list[float], ...] = ()) -> Targets:
    found = torch.tensor([*boxes, *ignored], dtype=torch.float32).reshape(-1, 4)
    ignore = torch.arange(len(found)) >= len(boxes)
    return Targets(found, torch.where(ignore, -1, torch.arange(len(found)) % 2), ignore)


def anchors(scale: float = 2.0) -> Tensor:
    return to_pixels(anchor_logits(MAPS, scale, torch.zeros(1)).sigmoid(), SIZE)


def test_anchors_are_squares_around_the_middles_of_cells() -> None:
    found = anchors()
    assert found.shape == (16 * 24 + 8 * 12 + 4 * 6, 4)
    # The first cell of stride 4 has its middle at (2, 2) and a square of 8 px; that of stride 16 at (8, 8), with 32 px.
    assert_close(found[0], torch.tensor([-2.0, -2, 6, 6]), atol=1e-3, rtol=0)
    assert_close(found[-24], torch.tensor([-8.0, -8, 24, 24]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_objects_at_the_rim_are_proposed_like_any_other(side: int) -> None:
    """The library masks cells within a hundredth of the image of its border, and begins at 5 % of its side."""
    found, far = anchors(), (SIZE[1] - side, SIZE[0] - side)
    for x, y in ((0, 0), (far[0], 0), (0, far[1]), far, (far[0], SIZE[0] / 2)):
        box = torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32)
        assert float(nwd(box, found).max()) > 0.5  # within 4 px of the middle of a cell, and of 8 px
    assert torch.isfinite(anchor_logits(MAPS, 2.0, torch.zeros(1))).all()


def test_large_images_have_finite_anchors_at_the_rim() -> None:
    found = anchor_logits([(2500, 2)], 2.0, torch.zeros(1))
    assert torch.isfinite(found).all()
    assert_close(found.sigmoid()[0, 1], torch.tensor(0.5 / 2500), atol=1e-7, rtol=1e-3)


def test_what_shows_padding_proposes_nothing() -> None:
    assert cells_inside(MAPS, SIZE, [SIZE, SIZE], torch.device("cpu")) is None
    inside = cells_inside(MAPS, SIZE, [SIZE, (30, 50)], torch.device("cpu"))
    assert inside is not None
    assert inside[0].all()
    middles = box_algebra.center(anchors())
    wanted = (middles[:, 0] < 50 - 1e-2) & (middles[:, 1] < 30 - 1e-2)
    assert torch.equal(inside[1], wanted)


@given(st.floats(1e-4, 1 - 1e-4))
def test_logit_is_the_inverse_of_the_sigmoid(share: float) -> None:
    assert_close(
        logit(torch.tensor([share])).sigmoid(), torch.tensor([share], dtype=torch.float32), atol=1e-6, rtol=1e-4
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 12), st.integers(0, 7), st.integers(1, 30), st.integers(0, 2**31))
def test_noise_has_a_bound_and_gives_back_its_objects(first: int, second: int, limit: int, seed: int) -> None:
    torch.manual_seed(seed)
    counts = (first, second)
    truth = []
    for count in counts:
        corner = torch.rand(count, 2) * torch.tensor([SIZE[1] - 8.0, SIZE[0] - 8.0])
        truth.append(target(*torch.cat([corner, corner + 1 + 7 * torch.rand(count, 2)], 1).tolist()))
    found = noised(truth, SIZE, 2, Noise(limit))
    if not any(counts):
        assert found is None
        return
    assert found is not None
    most = min(limit, max(counts))
    assert found.rows.shape[1] == 2 * most * found.groups <= 2 * max(limit, most)
    boxes = to_pixels(found.boxes.sigmoid(), SIZE)
    for image, one in enumerate(truth):
        rows = found.rows[image]
        learns = rows >= 0
        assert int(learns.sum()) == found.groups * min(limit, len(one.objects))
        assert int((found.labels[image] < 2).sum()) == 2 * int(learns.sum())
        objects, moved = one.objects[rows[learns]], boxes[image][learns]
        side = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)
        assert bool(((moved - objects).abs() <= side / 2 + 1e-2).all())
        if len(one.objects) <= limit:
            assert torch.equal(
                rows[learns].bincount(minlength=len(one.objects)), torch.full((len(one.objects),), found.groups)
            )


def test_noise_in_an_ignore_region_is_not_punished() -> None:
    torch.manual_seed(0)
    one = target([40, 30, 43, 33], ignored=([0, 0, 96, 64],))
    found = noised([one, target([40, 30, 43, 33])], SIZE, 2, Noise(4))
    assert found is not None
    assert set(found.rows[0].tolist()) == {0, IGNORED}
    assert set(found.rows[1].tolist()) == {0, BACKGROUND}


def test_groups_do_not_see_each_other_and_queries_see_no_noise() -> None:
    found = noised([target([10, 10, 13, 13], [20, 20, 28, 28])], SIZE, 2, Noise(4))
    assert found is not None
    assert (found.groups, found.rows.shape[1]) == (2, 8)
    seen = found.mask(3) == 0
    group = torch.arange(8) // 4
    wanted = torch.ones(11, 11, dtype=torch.bool)
    wanted[8:, :8] = False
    wanted[:8, :8] = group[:, None] == group[None]
    assert torch.equal(seen, wanted)


def test_noise_can_be_left_out() -> None:
    assert noised([target([10, 10, 13, 13])], SIZE, 2, Noise(0)) is None


@TRANSFORMERS
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 2**31))
def test_matching_has_the_least_sum_of_all(queries: int, objects: int, seed: int) -> None:
    """Against all one-to-one choices, one by one."""
    from itertools import permutations

    torch.manual_seed(seed)
    corner = torch.rand(queries + objects, 2) * 40
    boxes = torch.cat([corner, corner + 1 + 7 * torch.rand(queries + objects, 2)], 1)
    truth, logits = target(*boxes[queries:].tolist()), torch.randn(1, queries, 2)
    cost = MatchCost()
    (rows,) = match(logits, boxes[None, :queries], [truth], size=SIZE, cost=cost)
    matched = torch.nonzero(rows >= 0).squeeze(1)
    assert len(matched) == min(queries, objects) == len(set(rows[matched].tolist()))
    pairs = pair_cost(logits[0], boxes[:queries], truth.objects, truth.object_labels, size=SIZE, cost=cost)
    found = float(pairs[matched, rows[matched]].sum())
    if queries >= objects:
        sums = [sum(float(pairs[q, n]) for n, q in enumerate(p)) for p in permutations(range(queries), objects)]
    else:
        sums = [sum(float(pairs[q, n]) for q, n in enumerate(p)) for p in permutations(range(objects), queries)]
    assert found == pytest.approx(min(sums), abs=1e-4)


def test_the_cost_of_a_pair_by_hand() -> None:
    """A score of 1/2: .25 * .25 * ln 2 - .75 * .25 * ln 2 = -.0866. Boxes of 4 px, 3 px apart in x, in an image of 64x96: L1 is
    3/96 = .03125; they share 1 x 4 of a union of 28 and a hull of 28, so GIoU is 1/7; W2 is 3, so NWD is exp(-3/12.8) = .791."""
    box, other = torch.tensor([[10.0, 10, 14, 14]]), torch.tensor([[13.0, 10, 17, 14]])
    parts = [MatchCost(2, 0, 0, 0), MatchCost(0, 5, 0, 0), MatchCost(0, 0, 2, 0), MatchCost(0, 0, 0, 2)]
    label = torch.zeros(1, dtype=torch.int64)
    found = [float(pair_cost(torch.zeros(1, 2), box, other, label, size=SIZE, cost=cost)) for cost in parts]
    assert found == pytest.approx([2 * -0.0866, 5 * 0.03125, -2 / 7, -2 * 0.7911], abs=1e-3)


def test_nwd_tells_tiny_boxes_apart_where_the_published_cost_does_not() -> None:
    objects = torch.tensor([[40.0, 30, 43, 33]])
    near, far = objects + torch.tensor([[4.0, 0, 4, 0]]), objects + torch.tensor([[30.0, 0, 30, 0]])
    boxes, logits, label = torch.cat([near, far]), torch.zeros(2, 1), torch.zeros(1, dtype=torch.int64)

    def gap(cost: MatchCost) -> float:
        pairs = pair_cost(logits, boxes, objects, label, size=(1024, 1024), cost=cost)[:, 0]
        return float(pairs[1] - pairs[0])

    published = gap(MatchCost(nwd=0))
    assert gap(MatchCost()) > published + 1


@TRANSFORMERS
def test_a_query_under_an_ignore_region_is_not_punished_and_may_still_learn() -> None:
    truth = target([40, 30, 43, 33], ignored=([30, 20, 60, 50],))
    boxes = torch.tensor([[[40.0, 30, 43, 33], [50, 40, 53, 43], [5, 5, 9, 9]]])
    rows = match(torch.zeros(1, 3, 2), boxes, [truth], size=SIZE, cost=MatchCost())
    assert rows.tolist() == [[0, IGNORED, BACKGROUND]]


@TRANSFORMERS
def test_costs_that_are_no_numbers_are_chosen_last() -> None:
    boxes = torch.tensor([[[torch.nan] * 4, [40.0, 30, 43, 33]]])
    rows = match(torch.zeros(1, 2, 2), boxes, [target([41, 30, 44, 33])], size=SIZE, cost=MatchCost())
    assert rows.tolist() == [[BACKGROUND, 0]]
