"""Cell weights: tiny objects count, padding does not, and vectorised rows and columns equal a loop over cells."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from flyspeck.train.distill import terms
from flyspeck.train.distill.foreground import cell_weights, touched, valid_cells
from flyspeck.types import Targets

IMAGE, MAP = (64, 96), (16, 24)  # stride 4


def targets(*boxes: list[float], ignore: bool = False) -> Targets:
    table = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Targets(table, torch.zeros(len(table), dtype=torch.int64), torch.full((len(table),), ignore))


def weigh(target: Targets, **options: float) -> Tensor:
    return cell_weights([target], IMAGE, [IMAGE], MAP, **{"foreground": 0.5, **options})[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("side", range(1, 9))
def test_a_tiny_object_has_its_share_whatever_its_size(side: int) -> None:
    weights = weigh(targets([41.0, 21.0, 41.0 + side, 21.0 + side]))
    rows, columns = touched(torch.tensor([[41.0, 21.0, 41.0 + side, 21.0 + side]]), IMAGE, MAP)
    inside = (rows.T @ columns) > 0
    assert_close(weights[inside].sum(), torch.tensor(0.5))
    assert_close(weights.sum(), torch.tensor(1.0))
    assert len(weights[inside].unique()) == 1


def test_a_tiny_object_is_not_drowned() -> None:
    # The student is wrong in the one cell of a 3 px object, and nowhere else. A plain mean sees 1 of 384 cells.
    teacher = torch.zeros(1, 4, *MAP)
    teacher[:, :, 5, 10] = 1.0
    target = targets([41.0, 21.0, 44.0, 24.0])
    plain = terms.pixel_l2(torch.zeros_like(teacher), teacher, weigh(target, foreground=0.0)[None])
    weighted = terms.pixel_l2(torch.zeros_like(teacher), teacher, weigh(target)[None])
    assert_close(plain, torch.tensor(1 / 384))
    assert_close(weighted, torch.tensor(0.5))


def test_objects_count_alike_or_by_size() -> None:
    # 4 px in one cell and 16 px in sixteen cells.
    small, large = [0.0, 0.0, 4.0, 4.0], [32.0, 32.0, 48.0, 48.0]
    alike = weigh(targets(small, large))
    assert_close(alike[0, 0], torch.tensor(0.25))
    assert_close(alike[8:12, 8:12], torch.full((4, 4), 0.25 / 16))
    # Power 1: sizes 4 and 16 share the foreground 4 : 1.
    tilted = weigh(targets(small, large), size_power=1.0)
    assert_close(tilted[0, 0], torch.tensor(0.4))
    assert_close(tilted[8:12, 8:12].sum(), torch.tensor(0.1))


@pytest.mark.parametrize("target", [targets(), targets([8.0, 8.0, 12.0, 12.0], ignore=True)])
def test_without_objects_all_cells_count_alike(target: Targets) -> None:
    assert_close(weigh(target), torch.full(MAP, 1 / 384))


def test_objects_everywhere_leave_no_background() -> None:
    assert_close(weigh(targets([0.0, 0.0, 96.0, 64.0])), torch.full(MAP, 1 / 384))


def test_the_padding_counts_nothing() -> None:
    # The true image is 30 x 50: rows 0-7 and columns 0-12 show some of it.
    weights = cell_weights([targets([40.0, 20.0, 46.0, 26.0])], IMAGE, [(30, 50)], MAP, foreground=0.5)[0]
    assert_close(weights.sum(), torch.tensor(1.0))
    assert weights[8:].sum() == 0
    assert weights[:, 13:].sum() == 0
    assert (weights[:8, :13] > 0).all()
    assert_close(valid_cells(IMAGE, (30, 50), MAP, torch.device("cpu")).sum(), torch.tensor(8.0 * 13))


boxes = st.lists(
    st.tuples(st.floats(0, 90, width=32), st.floats(0, 60, width=32), st.floats(0.5, 20, width=32)),
    min_size=1,
    max_size=5,
)


@given(boxes, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.3, 0.9]))
def test_weights_equal_a_loop_over_cells(found: list[tuple[float, float, float]], power: float, share: float) -> None:
    table = torch.tensor([[x, y, min(x + s, 96.0), min(y + s, 64.0)] for x, y, s in found])
    weights = weigh(targets(*table.tolist()), foreground=share, size_power=power)
    size = ((table[:, 2] - table[:, 0]) * (table[:, 3] - table[:, 1])).sqrt()
    parts = size**-power / (size**-power).sum()
    wanted = torch.zeros(MAP)
    for part, (x1, y1, x2, y2) in zip(parts, table.tolist(), strict=True):
        cells = [
            (r, c)
            for r in range(16)
            for c in range(24)
            if x1 < 4 * c + 4 and x2 > 4 * c and y1 < 4 * r + 4 and y2 > 4 * r
        ]
        for r, c in cells:
            wanted[r, c] += share * part / len(cells)
    background = wanted == 0
    wanted[background] = (1 - share) / background.sum()
    assert_close(weights, wanted, rtol=1e-4, atol=1e-7)
