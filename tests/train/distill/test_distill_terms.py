"""The equations: what they give for equal maps, against plain loops, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from flyspeck.train.distill import terms

TERMS = {
    "spatial": lambda s, t: terms.pixel_l2(s, t),
    "where": lambda s, t: terms.attention_l2(
        terms.attention(terms.cell_energy(s)), terms.attention(terms.cell_energy(t))
    ),
    "which": lambda s, t: terms.attention_l2(
        terms.attention(terms.channel_energy(s)), terms.attention(terms.channel_energy(t))
    ),
    "regions": lambda s, t: terms.context_l2(terms.pool_regions(s), terms.pool_regions(t)),
    "relations": lambda s, t: terms.relation_l2(
        terms.relations(terms.pool_regions(s)), terms.relations(terms.pool_regions(t))
    ),
}


def maps(channels: int, *, seed: int = 0, size: tuple[int, int] = (4, 6), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", TERMS)
def test_equal_pyramids_cost_nothing_and_others_do(name: str) -> None:
    a, b = maps(5), maps(5, seed=1)
    assert_close(TERMS[name](a, a.clone()), torch.tensor(0.0))
    assert float(TERMS[name](a, b)) > 1e-3


@pytest.mark.parametrize("name", TERMS)
def test_gradients(name: str) -> None:
    student, teacher = maps(3, dtype=torch.float64), maps(3, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: TERMS[name](s, teacher), student.requires_grad_())


def test_the_pixel_term_against_a_loop() -> None:
    student, teacher = maps(3), maps(3, seed=1)
    weights = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(2))
    weights /= weights.sum((1, 2), keepdim=True)
    total = 0.0
    for i in range(2):
        for y in range(4):
            for x in range(6):
                total += float(weights[i, y, x]) * float((student[i, :, y, x] - teacher[i, :, y, x]).pow(2).sum()) / 3
    assert_close(terms.pixel_l2(student, teacher, weights), torch.tensor(total / 2))
    # Without weights it is the plain mean squared error.
    assert_close(terms.pixel_l2(student, teacher), F.mse_loss(student, teacher))


def test_attention_by_hand() -> None:
    # Two cells and two channels: squares 9 16 | 0 0; cell energies (4.5, 8) / 9.179, channel energies (12.5, 0) / 12.5.
    one = torch.tensor([[[[3.0, 4.0]], [[0.0, 0.0]]]])
    length = (4.5**2 + 8**2) ** 0.5
    assert_close(terms.attention(terms.cell_energy(one)), torch.tensor([[[4.5 / length, 8 / length]]]))
    assert_close(terms.attention(terms.channel_energy(one)), torch.tensor([[1.0, 0.0]]))
    # Attention of another cell alone is as far as it can be: the squared distance of two orthogonal unit vectors is 2.
    left, right = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    assert_close(terms.attention_l2(left, right), torch.tensor(2.0))


def test_regions_and_relations_by_hand() -> None:
    # A map of 4x4 with quadrants 1 2 / 3 4: the mean, the quadrants, the sixteen cells.
    quadrants = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    found = terms.pool_regions(quadrants[None, None])
    assert found.shape == (1, 1, 21)
    assert_close(found[0, 0, :5], torch.tensor([2.5, 1.0, 2.0, 3.0, 4.0]))
    assert_close(found[0, 0, 5:].view(4, 4), quadrants)
    directions = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 2.0, 1.0]]])  # three regions: east, north, north-east
    half = 0.5**0.5
    assert_close(terms.relations(directions), torch.tensor([[[1.0, 0.0, half], [0.0, 1.0, half], [half, half, 1.0]]]))


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (2, 3)])
def test_regions_of_any_size_are_plain_averages(size: tuple[int, int]) -> None:
    m = maps(3, size=size)
    whole = torch.cat([F.adaptive_avg_pool2d(m, g).flatten(2) for g in terms.GRIDS], 2)
    assert_close(terms.pool_regions(m), whole)


def adapter(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, 3, generator=generator, dtype=dtype), torch.randn(5, generator=generator, dtype=dtype)


def test_sums_before_the_adapter_equal_those_after_it() -> None:
    student, teacher = maps(3, dtype=torch.float64), maps(5, seed=1, dtype=torch.float64)
    weight, bias = adapter(torch.float64)
    weights = torch.rand(2, 4, 6, dtype=torch.float64)
    weights /= weights.sum((1, 2), keepdim=True)
    adapted = F.conv2d(student, weight[:, :, None, None], bias)
    energy = terms.cell_energy(teacher)
    quick = terms.adapted_l2(student, weight, bias, teacher, weights, energy=energy)
    assert_close(quick, terms.pixel_l2(adapted, teacher, weights))
    assert_close(terms.adapted_channels(student, weight, bias), terms.channel_energy(adapted))
    # A teacher that is the adapted student costs nothing.
    equal = terms.adapted_l2(student, weight, bias, adapted, weights, energy=terms.cell_energy(adapted))
    assert_close(equal, torch.zeros_like(equal), atol=1e-12, rtol=0)


def test_gradients_of_sums_before_the_adapter() -> None:
    student, teacher = maps(3, dtype=torch.float64).requires_grad_(), maps(5, seed=1, dtype=torch.float64)
    weight, bias = (t.requires_grad_() for t in adapter(torch.float64))
    weights = torch.rand(2, 4, 6, dtype=torch.float64)
    energy = terms.cell_energy(teacher)
    assert torch.autograd.gradcheck(
        lambda s, w, b: terms.adapted_l2(s, w, b, teacher, weights, energy=energy), (student, weight, bias)
    )
    assert torch.autograd.gradcheck(terms.adapted_channels, (student, weight, bias))


def test_attended_weights_still_sum_to_one() -> None:
    weights = torch.full((2, 4, 6), 1 / 24)
    found = terms.attended(weights, terms.attention(terms.cell_energy(maps(3))))
    assert_close(found.sum((1, 2)), torch.ones(2))
    assert float(found.max()) > 1 / 24


def test_similarity_ignores_rotations_and_sees_noise() -> None:
    m = maps(4, size=(8, 8))
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(5)))[0]
    turned = torch.einsum("oc,bchw->bohw", rotation, m) * 3
    assert_close(terms.similarity(m, turned), torch.tensor(1.0))
    assert float(terms.similarity(m, maps(4, seed=9, size=(8, 8)))) < 0.3
    # A part of the cells says nearly the same as all of them.
    some, whole = (
        terms.similarity(m, turned + maps(4, seed=9, size=(8, 8)), max_cells=40),
        terms.similarity(m, turned + maps(4, seed=9, size=(8, 8))),
    )
    assert abs(float(some) - float(whole)) < 0.2
