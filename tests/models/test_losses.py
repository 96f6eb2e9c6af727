"""Every box loss on boxes of 1-8 px: values by hand, gradients that are finite and point to the object, empty images."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from flyspeck.models.assigners.nwd import nwd_loss
from flyspeck.models.losses import diou_loss, focal_loss, giou_loss, mean_over_processes, smooth_l1
from loss_battery import SHIFTS, Loss, check_a_step_against_the_gradient, check_equal_boxes, check_sums, encoded, square

LOSSES: dict[str, Loss] = {
    "diou": diou_loss,
    "giou": giou_loss,
    "nwd": nwd_loss,
    "smooth_l1": encoded(smooth_l1, beta=1 / 9),
    "l1": encoded(smooth_l1, beta=0.0),
}


def test_overlap_losses_by_hand() -> None:
    # (0, 0, 2, 2) and (1, 0, 3, 2): IoU 2/6; hull 3 x 2; centres 1 apart, diagonal squared 13.
    a, b = square(0, 0, 2), square(1, 0, 2)
    assert_close(diou_loss(a, b), torch.tensor(1 - 1 / 3 + 1 / 13))
    assert_close(giou_loss(a, b), torch.tensor(1 - 1 / 3))  # the hull holds nothing else
    # 3 px apart: no overlap. Hull 5 x 2, of which 2 lie in neither; diagonal squared 29.
    far = square(3, 0, 2)
    assert_close(diou_loss(a, far), torch.tensor(1 + 9 / 29))
    assert_close(giou_loss(a, far), torch.tensor(1 + 2 / 10))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("side", range(1, 9))
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_step_against_the_gradient_comes_nearer_to_a_tiny_box(
    name: str, side: int, shift: tuple[float, float]
) -> None:
    check_a_step_against_the_gradient(LOSSES[name], side, shift)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("side", range(1, 9))
def test_equal_boxes_cost_nothing_and_equal_centres_are_told_apart(name: str, side: int) -> None:
    check_equal_boxes(LOSSES[name], side)


@pytest.mark.parametrize("name", LOSSES)
def test_no_boxes_cost_nothing_and_a_sum_is_a_sum(name: str) -> None:
    check_sums(LOSSES[name])


def test_positives_are_the_mean_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes count 6, 0, 1 and 3: each divides by 2.5, so that their mean gradient is that of the 10 together."""

    def all_reduce(total: torch.Tensor) -> None:
        total += 0 + 1 + 3

    count = torch.tensor(6.0)
    assert_close(mean_over_processes(count, count.device), torch.tensor(6.0))
    assert_close(mean_over_processes(0, count.device), torch.tensor(1.0))
    assert_close(mean_over_processes(0.25, count.device, at_least=0.5), torch.tensor(0.5))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    assert_close(mean_over_processes(count, count.device), torch.tensor(2.5))
    assert count == 6  # the caller's own stays


@pytest.mark.parametrize("name", ["diou", "giou", "nwd"])
def test_a_prediction_without_area_still_has_a_gradient(name: str) -> None:
    target = square(44, 44, 2)
    for thin in (torch.tensor([[46.0, 44, 46, 46]]), torch.tensor([[50.0, 50, 50, 50]])):
        prediction = thin.clone().requires_grad_()
        LOSSES[name](prediction, target).backward()
        assert prediction.grad is not None
        assert torch.isfinite(prediction.grad).all()


def test_focal_loss_by_hand_and_of_logits_that_are_sure() -> None:
    # p = 1/2: 0.25 x 0.5^2 x ln 2 for an object, 0.75 x ... for background.
    loss = focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert_close(loss, torch.tensor([0.25, 0.75]) * 0.25 * 0.6931472)
    assert_close(focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]), alpha=-1), torch.tensor([0.25, 0.25]) * 0.6931472)
    sure = torch.tensor([60.0, -60.0, 60.0, -60.0], requires_grad=True)
    losses = focal_loss(sure, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    losses.sum().backward()
    assert_close(losses[:2], torch.zeros(2))
    assert_close(losses[2:], torch.tensor([0.75, 0.25]) * 60)
    assert torch.isfinite(sure.grad).all()  # type: ignore[arg-type]
