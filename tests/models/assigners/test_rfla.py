"""Hierarchical assignment: worked examples, a slow twin, whatever the block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import flyspeck.models.assign as assign_module
from flyspeck.models.assign import BACKGROUND, IGNORED
from flyspeck.models.assigners.base import Priors
from flyspeck.models.assigners.rfla import RFLA, receptive_anchors, rfd_kl, rfd_wasserstein
from flyspeck.types import FeatureSpec

NOTHING = torch.zeros(0, 4)


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def row_of_squares(count: int, side: float = 10.0) -> Priors:
    """Squares side by side along x, whose field (20 px at half) is the square itself."""
    left = side * torch.arange(count)
    return Priors.on_levels(torch.stack([left, left * 0, left + side, left * 0 + side], 1), [count])


def test_the_k_best_learn_and_ties_with_the_last() -> None:
    priors = row_of_squares(5)
    assert_close(RFLA([20.0]).fields(priors), priors.boxes)
    object_ = boxes((10, 0, 20, 10))  # the second square
    assert RFLA([20.0], k=1)(priors, object_, NOTHING).tolist() == [BACKGROUND, 0, BACKGROUND, BACKGROUND, BACKGROUND]
    # The second best are two, equally far.
    assert RFLA([20.0], k=2)(priors, object_, NOTHING).tolist() == [0, 0, 0, BACKGROUND, BACKGROUND]
    assert RFLA([20.0], k=99)(priors, object_, NOTHING).tolist() == [0] * 5  # more than there are


def test_a_prior_wanted_by_two_goes_to_the_better_fit_whatever_their_order() -> None:
    priors = row_of_squares(2)
    big, small = (10.0, 0.0, 20.0, 10.0), (13.0, 3.0, 17.0, 7.0)
    assert RFLA([20.0], k=1)(priors, boxes(big, small), NOTHING).tolist() == [1, 0]  # the loser takes what is free
    assert RFLA([20.0], k=1)(priors, boxes(small, big), NOTHING).tolist() == [0, 1]
    three = boxes(big, small, (14, 4, 16, 6))
    assert RFLA([20.0], k=1)(priors, three, NOTHING).tolist() == [1, 0]  # nothing is left for the third


def test_the_second_step_supplements_with_shrunk_fields() -> None:
    # Two levels in one place: fields of 10 and 11 px. An object of 10.4 px fits the 11 at first (KL punishes less), and
    # the shrunk ones, 9 and 9.9, make it the 11 again; an object of 9 px takes the 10, then the shrunk 10.
    priors = Priors.on_levels(boxes((0, 0, 10, 10), (-0.5, -0.5, 10.5, 10.5)), [1, 1])
    assigner = RFLA([20.0, 22.0], k=1, decay=0.9, ignore_from=2.0)
    object_ = boxes((-0.25, -0.25, 10.25, 10.25))  # 10.5 px: nearest 11, but shrunk by 0.9 nearest 9.9, the same prior
    assert assigner(priors, object_, NOTHING).tolist() == [BACKGROUND, 0]
    # 9.95 px takes the field of 10 px; shrunk to 9 and 9.9, the second level's fits best: it is the supplement.
    assert assigner(priors, boxes((0.025, 0.025, 9.975, 9.975)), NOTHING).tolist() == [0, 0]
    alone = RFLA([20.0, 22.0], k=1, decay=1.0, ignore_from=2.0)
    assert alone(priors, boxes((0.025, 0.025, 9.975, 9.975)), NOTHING).tolist() == [0, BACKGROUND]


def test_a_near_perfect_prior_that_nobody_took_is_ignored() -> None:
    left = torch.arange(5.0)  # one pixel apart
    priors = Priors.on_levels(torch.stack([left, left * 0, left + 10, left * 0 + 10], 1), [5])
    assigned = RFLA([20.0], k=1, decay=1.0)(priors, boxes((0, 0, 10, 10)), NOTHING).tolist()
    # KL of a shift d: 2 d^2 / 100, so 1 / (1 + 0.02), 1 / 1.08, 1 / 1.18 and 1 / 1.32 = 0.76.
    assert assigned == [0, IGNORED, IGNORED, IGNORED, BACKGROUND]


def test_fields_keep_an_anchors_shape_and_follow_the_level() -> None:
    # Level 0: anchors of mean size 8 (16x4 and 8x8), field 17.5; level 1: 16x16, field 45.5.
    priors = Priors.on_levels(boxes((0, 0, 16, 4), (0, 0, 8, 8), (0, 0, 16, 16)), [2, 1])
    fields = RFLA([35, 91]).fields(priors)
    assert_close(fields[:, 2:] - fields[:, :2], torch.tensor([[35.0, 8.75], [17.5, 17.5], [45.5, 45.5]]))
    assert_close((fields[:, 2:] + fields[:, :2]) / 2, (priors.boxes[:, 2:] + priors.boxes[:, :2]) / 2)


def test_receptive_fields_in_the_place_of_anchors() -> None:
    grid = receptive_anchors([FeatureSpec(8, 4), FeatureSpec(8, 8)], receptive_fields=[35, 91], ratios=(0.5, 1, 2))
    sizes = [[(w * h) ** 0.5 for w, h in level] for level in grid.shapes]
    assert_close(torch.tensor(sizes), torch.tensor([[17.5] * 3, [45.5] * 3]))
    with pytest.raises(ValueError, match="for 1 levels"):
        receptive_anchors([FeatureSpec(8, 4)], receptive_fields=[35, 91])


@pytest.mark.parametrize("wrong", [{"k": 0}, {"decay": 0.0}, {"decay": 1.5}, {"fraction": 0.0}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="RFLA needs"):
        RFLA([35], **wrong)  # type: ignore[arg-type]


def slow_twin(priors: Priors, objects: Tensor, distance: str, k: int, decay: float) -> list[int]:
    function = rfd_kl if distance == "kl" else rfd_wasserstein
    assigner = RFLA([20.0], distance=distance)  # type: ignore[arg-type]
    fields = assigner.fields(priors)
    center, half = (fields[:, :2] + fields[:, 2:]) / 2, (fields[:, 2:] - fields[:, :2]) / 2 * decay
    shrunk = torch.cat([center - half, center + half], 1)
    steps = []
    for where, number in ((fields, k), (shrunk, 1)):
        values = function(objects, where).tolist()
        best: dict[int, tuple[float, int]] = {}
        for n, row in enumerate(values):
            bound = sorted(row, reverse=True)[min(number, len(row)) - 1]
            for a, value in enumerate(row):
                if value >= bound and value > best.get(a, (-1.0, -1))[0]:
                    best[a] = (value, n)
        steps.append((best, values))
    result = []
    for a in range(len(fields)):
        if a in steps[0][0]:
            result.append(steps[0][0][a][1])
        elif a in steps[1][0]:
            result.append(steps[1][0][a][1])
        else:
            nearest = max(row[a] for row in steps[1][1])
            result.append(IGNORED if nearest >= torch.tensor(0.8).item() else BACKGROUND)
    for n in range(len(objects)):
        if n not in result and min(result) < 0:
            row = function(objects, fields).tolist()[n]
            result[max((a for a in range(len(row)) if result[a] < 0), key=lambda a: row[a])] = n
    return result


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([8, 1 << 22]),
    st.sampled_from(["kl", "wasserstein"]),
)
def test_equals_the_slow_twin_whatever_the_block(seed: int, objects: int, priors: int, block: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)

    def some(n: int) -> Tensor:
        corner = torch.randint(0, 24, (n, 2), generator=generator).float()
        return torch.cat([corner, corner + torch.randint(1, 9, (n, 2), generator=generator)], 1)

    truth, offered = some(objects), Priors.on_levels(some(priors), [priors])
    before = assign_module._BLOCK
    assign_module._BLOCK = block
    try:
        fast = RFLA([20.0], distance=kind)(offered, truth, NOTHING)  # type: ignore[arg-type]
    finally:
        assign_module._BLOCK = before
    assert fast.tolist() == slow_twin(offered, truth, kind, 3, 0.9)
