"""NWD, SimD and the receptive field distances by hand, against slow twins, and where boxes are tiny or equal."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from flyspeck.models.assigners.nwd import nwd, nwd_loss, squared_wasserstein
from flyspeck.models.assigners.rfla import rfd_kl, rfd_wasserstein
from flyspeck.models.assigners.simd import RatioMeans, SimD, simd


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def some(n: int, generator: torch.Generator, largest: float = 30) -> Tensor:
    corner = 40 * torch.rand(n, 2, generator=generator)
    return torch.cat([corner, corner + 1 + largest * torch.rand(n, 2, generator=generator)], 1)


def test_wasserstein_by_hand() -> None:
    a = boxes((0, 0, 8, 8))
    # Centres (4, 4) and (7, 8), equal shapes: 9 + 16. Equal centres, half sides 4 and 2: 4 + 4. Both at once: 33.
    b = boxes((3, 4, 11, 12), (2, 2, 6, 6), (5, 6, 9, 10), (0, 0, 8, 8))
    assert_close(squared_wasserstein(a, b), torch.tensor([[25.0, 8, 33, 0]]))
    assert_close(nwd(a, b, constant=12.8)[0, 0], torch.tensor(math.exp(-5 / 12.8)))
    assert_close(rfd_wasserstein(a, b), torch.tensor([[1 / 26, 1 / 9, 1 / 34, 1]]))


def test_kl_by_hand() -> None:
    # A field twice the object, same centre: each axis 4 + ln(1/4) - 1, half the sum of both is 3 - ln 4.
    same = rfd_kl(boxes((0, 0, 8, 8)), boxes((-4, -4, 12, 12)))
    assert_close(same, torch.tensor([[1 / (1 + 3 - math.log(4))]]))
    # 4 px to the right: 4 * 16 / 64 = 1 more on one axis, half of it in the divergence.
    beside = rfd_kl(boxes((0, 0, 8, 8)), boxes((0, -4, 16, 12)))
    assert_close(beside, torch.tensor([[1 / (1 + 3.5 - math.log(4))]]))
    # It is no distance: a field half the object: each axis 1/4 + ln 4 - 1.
    other = rfd_kl(boxes((-4, -4, 12, 12)), boxes((0, 0, 8, 8)))
    assert_close(other, torch.tensor([[1 / (1 + 0.25 + math.log(4) - 1)]]))


def test_simd_by_hand() -> None:
    a = boxes((0, 0, 8, 8))
    # Shifted by 4 of 8 + 8 px along x: 2 * 1/4. Along y: 1 * 1/4. Twice 8 px wider: 2 * 16/32.
    b = boxes((4, 0, 12, 8), (0, 4, 8, 12), (-8, 0, 16, 8), (0, 0, 8, 8))
    assert_close(simd(a, b, m=2, n=1), torch.exp(-torch.tensor([[0.5, 0.25, 1, 0]])))
    # Shifted along both: the root of the squares' sum; place and shape add up.
    both = simd(a, boxes((4, 4, 12, 12), (-4, 0, 20, 8)), m=2, n=1)
    place = 2 * 4 / 32  # centre 8 against 4
    assert_close(both, torch.exp(-torch.tensor([[math.hypot(0.5, 0.25), place + 1]])))


def test_the_means_of_simd_by_hand_and_by_a_slow_twin() -> None:
    means = RatioMeans()
    # Centres at x 2 against 4 and 12, sides 4 + 8: 2/12 and 10/12; at y 2 against 4 twice: 2/12.
    means.add(boxes((0, 0, 4, 4)), boxes((0, 0, 8, 8), (8, 0, 16, 8)))
    assert means.values == pytest.approx((0.5, 1 / 6))
    with pytest.raises(ValueError, match="no pair"):
        _ = RatioMeans().values
    generator = torch.Generator().manual_seed(0)
    images = [(some(n, generator), some(a, generator)) for n, a in ((3, 7), (0, 5), (2, 4))]
    means, pairs = RatioMeans(), []
    for objects, anchors in images:
        means.add(objects, anchors)
        pairs += [(o, a) for o in objects.tolist() for a in anchors.tolist()]
    for axis, value in enumerate(means.values):
        ratios = [
            abs((o[axis] + o[axis + 2]) - (a[axis] + a[axis + 2])) / 2 / (o[axis + 2] - o[axis] + a[axis + 2] - a[axis])
            for o, a in pairs
        ]
        assert value == pytest.approx(sum(ratios) / len(ratios))
    with pytest.raises(ValueError, match="above 0"):
        SimD(foreground=0.7, background=0.3, m=0, n=1)


def slow_kl(o: list[float], f: list[float]) -> float:
    total = 0.0
    for axis in (0, 1):
        g, w = o[axis + 2] - o[axis], f[axis + 2] - f[axis]
        d = (o[axis] + o[axis + 2]) / 2 - (f[axis] + f[axis + 2]) / 2
        # Gaussians of deviation side/2: ln(s_g/s_f) + (s_f^2 + d^2) / (2 s_g^2) - 1/2.
        total += math.log(g / w) + ((w / 2) ** 2 + d**2) / (2 * (g / 2) ** 2) - 0.5
    return 1 / (1 + total)


@given(st.integers(0, 10_000))
def test_kl_equals_the_textbook_and_similarities_have_their_bounds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = some(4, generator), some(5, generator)
    twin = torch.tensor([[slow_kl(o, f) for f in b.tolist()] for o in a.tolist()])
    assert_close(rfd_kl(a, b), twin, rtol=1e-4, atol=1e-6)
    for function in (nwd, rfd_wasserstein, lambda p, q: simd(p, q, m=3.0, n=4.0)):
        values = function(a, b)
        assert ((values >= 0) & (values <= 1)).all()
        assert_close(values, function(b, a).T)  # symmetric, unlike KL
        assert_close(function(a, a).diagonal(), torch.ones(4))
    assert_close(rfd_kl(a, a).diagonal(), torch.ones(4))


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_nwd_still_tells_tiny_boxes_apart_where_iou_is_zero(side: int) -> None:
    object_ = boxes((10, 10, 10 + side, 10 + side))
    moved = torch.cat([object_ + side + step for step in (1, 2, 4)])  # beside it: no overlap at all
    values = nwd(object_, moved)[0]
    assert (values[:-1] > values[1:]).all()
    assert values[0] > 0.3  # 9 px away in x and y: exp(-12.7 / 12.8)


def test_the_loss_by_hand_and_its_gradient_where_boxes_are_equal() -> None:
    prediction = boxes((0, 0, 8, 8), (0, 0, 8, 8)).requires_grad_()
    loss = nwd_loss(prediction, boxes((3, 4, 11, 12), (0, 0, 8, 8)))
    assert_close(loss, torch.tensor(1 - math.exp(-5 / 12.8)), atol=1e-3, rtol=0)  # equal boxes cost 1e-3 px / 12.8
    loss.backward()
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()
    assert (prediction.grad[0, :2] < 0).all()  # down the slope is towards the object
    assert_close(nwd_loss(boxes(), boxes()), torch.tensor(0.0))


@pytest.mark.parametrize("side", [1, 2, 4, 8])
@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0, 100.0])
def test_gradients_of_the_loss_on_tiny_boxes_are_finite_and_point_to_the_object(side: int, shift: float) -> None:
    target = boxes((20, 20, 20 + side, 20 + side))
    prediction = (target + shift).requires_grad_()
    before = nwd_loss(prediction, target)
    before.backward()
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()
    if shift:
        after = nwd_loss(prediction.detach() - 0.1 * prediction.grad.sign(), target)
        assert after < before
