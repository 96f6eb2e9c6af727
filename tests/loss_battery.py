"""What every box loss must do on boxes of 1 to 8 px; each check takes a loss of `(N, 4)` boxes and their targets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flyspeck import boxes as box_algebra

Loss = Callable[[Tensor, Tensor], Tensor]
SHIFTS = [(0.5, 0.0), (3.0, 2.0), (30.0, -20.0)]
"""Of the prediction from its target, in px."""
ANCHOR = torch.tensor([[40.0, 40, 48, 48]])


def encoded(loss: Callable[..., Tensor], **options: float) -> Loss:
    """`loss` of the offsets from an anchor, as heads use it: of boxes like the others."""

    def of_boxes(prediction: Tensor, target: Tensor) -> Tensor:
        anchors = ANCHOR.expand(len(prediction), 4)
        return loss(box_algebra.encode(prediction, anchors), box_algebra.encode(target, anchors), **options)

    return of_boxes


def square(x: float, y: float, side: float) -> Tensor:
    return torch.tensor([[x, y, x + side, y + side]])


def check_a_step_against_the_gradient(loss: Loss, side: int, shift: tuple[float, float]) -> None:
    """A small step comes nearer to a box of `side` px, `shift` px away."""
    target = square(44 - side / 2, 44 - side / 2, side)
    prediction = (target + torch.tensor([shift * 2]) + torch.tensor([[-0.25, 0, 0.25, 0]])).requires_grad_()
    before = loss(prediction, target)
    (gradient,) = torch.autograd.grad(before, prediction)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    step = prediction.detach() - 0.01 * gradient / gradient.norm()
    assert loss(step, target) < before


def check_equal_boxes(loss: Loss, side: int) -> None:
    """Equal boxes cost nothing, and boxes of equal centres are told apart by their sides."""
    target = square(44 - side / 2, 44 - side / 2, side)
    equal = target.clone().requires_grad_()
    found = loss(equal, target)
    assert float(found.detach()) == pytest.approx(0, abs=1e-3)
    (gradient,) = torch.autograd.grad(found, equal)
    assert torch.isfinite(gradient).all()
    around = [loss(square(44 - s / 2, 44 - s / 2, s), target) for s in (side + 0.5, side + 1.0, side + 4.0)]
    assert 1e-3 < float(around[0]) < float(around[1]) < float(around[2])


def check_sums(loss: Loss) -> None:
    """No boxes cost nothing, and the loss of two is the sum of theirs."""
    nothing = torch.zeros(0, 4, requires_grad=True)
    found = loss(nothing, torch.zeros(0, 4))
    assert float(found.detach()) == 0
    found.backward()
    boxes = torch.cat([square(40, 40, 3), square(42, 41, 8)])
    targets = torch.cat([square(41, 40, 4), square(42, 43, 7)])
    parts = sum(loss(boxes[i : i + 1], targets[i : i + 1]) for i in range(2))
    assert_close(loss(boxes, targets), parts)
