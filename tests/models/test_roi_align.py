"""Our RoIAlign against torchvision's, which is its slow twin, and against sums done by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flyspeck.models.heads.roi import RoIPool
from flyspeck.models.roi_align import pyramid_roi_align, torchvision_roi_align, weighted_cells

SIDES = st.floats(0.01, 40)
PLACES = st.floats(-12, 30)


@st.composite
def regions_on(draw: st.DrawFn, images: int) -> Tensor:
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        x, y, w, h = draw(PLACES), draw(PLACES), draw(SIDES), draw(SIDES)
        rows.append([draw(st.integers(0, images - 1)), x, y, x + w, y + h])
    return torch.tensor(rows, dtype=torch.float32)


@given(
    regions=regions_on(2),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    output=st.integers(1, 7),
    sampling=st.integers(1, 4),
    aligned=st.booleans(),
)
@settings(deadline=None)
def test_values_and_gradients_are_torchvisions(
    regions: Tensor, shape: tuple[int, int], output: int, sampling: int, aligned: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(2, 3, *shape, generator=generator)
    ours, theirs = cells.clone().requires_grad_(), cells.clone().requires_grad_()
    pooled = weighted_cells(ours, regions, output, sampling, aligned)
    expected = torchvision_roi_align(theirs, regions, output, sampling, aligned)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)
    weight = torch.rand(pooled.shape, generator=generator)
    (pooled * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_a_ramp_is_read_at_the_middle_of_each_bin() -> None:
    """On f(x, y) = x + 100 y, sampled at cell centres (halves), a bin's mean is f at its middle: by hand."""
    cells = (torch.arange(8.0) + 0.5 + 100 * (torch.arange(8.0)[:, None] + 0.5)).reshape(1, 1, 8, 8)
    pooled = weighted_cells(cells, torch.tensor([[0, 2.0, 3.0, 4.0, 5.0]]), 2, 2, True)
    torch.testing.assert_close(pooled[0, 0], torch.tensor([[352.5, 353.5], [452.5, 453.5]]))


def test_a_region_off_the_map_reads_nothing() -> None:
    cells = torch.ones(1, 2, 4, 4, requires_grad=True)
    pooled = weighted_cells(cells, torch.tensor([[0, 20.0, 20.0, 25.0, 25.0]]), 3, 2, True)
    assert pooled.abs().sum() == 0
    pooled.sum().backward()
    assert cells.grad is not None
    assert cells.grad.abs().sum() == 0


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_tiny_regions_on_every_level_in_their_order(size: int) -> None:
    maps = [torch.rand(2, 3, 16 >> k, 20 >> k) for k in range(3)]
    level = torch.tensor([2, 0, 1, 0, 2])
    corner = torch.tensor([[1.0, 1.0], [7.3, 2.2], [4.0, 5.5], [12.0, 9.9], [0.0, 0.0]])
    regions = torch.cat([torch.tensor([[0.0], [1], [1], [0], [1]]), corner, corner + size / 4], 1)
    pooled = pyramid_roi_align(maps, regions, level, 7, 2, True)
    for i, number in enumerate(level.tolist()):
        alone = torchvision_roi_align(maps[number], regions[i : i + 1], 7, 2, True)
        torch.testing.assert_close(pooled[i], alone[0], atol=1e-5, rtol=1e-5)


def test_no_region_at_all() -> None:
    maps = [torch.rand(1, 4, 8, 8, dtype=torch.bfloat16, requires_grad=True)]
    pooled = RoIPool([4.0])(maps, [torch.zeros(0, 4)], (32, 32))
    assert pooled.shape == (0, 4, 7, 7)
    assert pooled.dtype == torch.float32


def test_gradient_check() -> None:
    cells = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    regions = torch.tensor([[0, 0.3, 0.7, 2.1, 4.4], [0, -1.0, 2.0, 5.0, 3.1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c: weighted_cells(c, regions, 3, 2, True), (cells,), nondet_tol=0.0)
