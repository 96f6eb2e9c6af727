"""Parameter groups partition the parameters; the schedule has the values that its words say."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from flyspeck.train.checks import few_steps
from flyspeck.train.config import TrainConfig
from flyspeck.train.ema import EMA
from flyspeck.train.optim import build_optimizer, lr_factor, parameter_groups, set_lr


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.head.weight.requires_grad_(True)


def test_groups_partition_the_trainable_parameters() -> None:
    toy = Toy()
    toy.backbone[0].bias.requires_grad_(False)  # type: ignore[union-attr]
    groups = parameter_groups(toy, lr=0.1, weight_decay=0.5, backbone_lr=0.1)
    listed = [id(p) for g in groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in toy.parameters() if p.requires_grad)
    by_id = {id(p): (g["weight_decay"], round(g["base_lr"], 6)) for g in groups for p in g["params"]}
    assert by_id[id(toy.backbone[0].weight)] == (0.5, 0.01)
    assert by_id[id(toy.backbone[1].weight)] == (0.0, 0.01)  # a norm layer
    assert by_id[id(toy.head.weight)] == (0.5, 0.1)
    assert by_id[id(toy.head.bias)] == by_id[id(toy.scale)] == (0.0, 0.1)


@pytest.mark.parametrize(
    ("step", "schedule", "expected"),
    [
        (0, "constant", 0.25),  # warm-up over 4 steps
        (3, "constant", 1.0),
        (10, "constant", 1.0),
        (7, "step", 1.0),
        (8, "step", 0.1),  # 8/12 = 2/3
        (11, "step", 0.01),
        (0, "cosine", 0.25),
        (6, "cosine", 0.01 + 0.99 / 2),  # half way
    ],
)
def test_lr_factor(step: int, schedule: str, expected: float) -> None:
    config = TrainConfig(schedule=schedule, warmup_steps=4, final_lr=0.01)  # type: ignore[arg-type]
    assert lr_factor(step, step / 12, config) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_set_lr_keeps_the_groups_apart(name: str) -> None:
    optimizer = build_optimizer(Toy(), TrainConfig(optimizer=name, lr=0.2, backbone_lr=0.5))  # type: ignore[arg-type]
    set_lr(optimizer, 0.1)
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {0.02, 0.01}


def test_ema_follows_parameters_and_buffers() -> None:
    toy = Toy()
    ema = EMA(toy, decay=0.5)
    before = ema.model.head.weight.clone()
    with torch.no_grad():
        toy.head.weight.add_(1)
        toy.backbone[1].running_mean.add_(2)  # type: ignore[union-attr]
        toy.backbone[1].num_batches_tracked.add_(3)  # type: ignore[union-attr]
    ema.update(toy)
    decay = min(0.5, 2 / 11)  # the first update: (1 + 1) / (10 + 1)
    torch.testing.assert_close(ema.model.head.weight, before + (1 - decay))
    torch.testing.assert_close(ema.model.backbone[1].running_mean, torch.full((4,), 2 * (1 - decay)))
    assert int(ema.model.backbone[1].num_batches_tracked) == 3


def test_a_cosine_that_restarts() -> None:
    config = TrainConfig(schedule="cosine_restarts", warmup_steps=0, final_lr=0.01, epochs=6, restart_epochs=2)
    factors = [lr_factor(step, step / 60, config) for step in range(60)]  # ten steps an epoch, twenty a cosine
    assert factors[0] == factors[20] == factors[40] == 1
    assert factors[:20] == pytest.approx(factors[20:40])
    assert factors[10] == pytest.approx(0.01 + 0.99 / 2)
    assert factors[19] < 0.02
    assert all(a > b for a, b in pairwise(factors[:20]))


def test_momentum_decay_and_rates_are_the_recipe_s() -> None:
    config = TrainConfig(optimizer="sgd", lr=0.3, momentum=0.7, weight_decay=0.02, backbone_lr=0.5)
    groups = build_optimizer(Toy(), config).param_groups
    assert {group["momentum"] for group in groups} == {0.7}
    assert {(group["weight_decay"], group["lr"]) for group in groups} == {
        (d, r) for d in (0.0, 0.02) for r in (0.15, 0.3)
    }


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_betas_are_the_recipe_s(name: str) -> None:
    optimizer = build_optimizer(Toy(), TrainConfig(optimizer=name, momentum=0.8, beta2=0.99))  # type: ignore[arg-type]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.99)}


SGD = {"lr": 0.01, "weight_decay": 1e-4, "warmup_steps": 200, "schedule": "step", "clip_grad": 35.0, "ema": None}


def test_a_recipe_that_says_sgd_means_what_it_meant_when_sgd_was_the_default() -> None:
    said = TrainConfig(optimizer="sgd").model_dump()
    assert {key: said[key] for key in SGD} == SGD
    assert (said["momentum"], said["beta2"], said["epochs"], said["batch_size"]) == (0.9, 0.999, 12, 8)
    assert TrainConfig(optimizer="sgd", lr=0.02, ema=0.9).model_dump() == said | {"lr": 0.02, "ema": 0.9}


def test_what_a_recipe_leaves_out_is_a_training_that_learns_in_short_time() -> None:
    said = TrainConfig()
    assert (said.optimizer, said.lr, said.schedule, said.clip_grad, said.ema) == ("adamw", 0.001, "cosine", 10.0, 0.998)
    assert TrainConfig.model_validate(said.model_dump()) == said  # a run folder's recipe says all of it
    assert TrainConfig(optimizer="adam").weight_decay == 1e-4
    for share in (0.0, 0.05, 0.2, 0.5, 1.0):  # of 40 steps, where 200 would be the warm-up
        warm = min(1.0, max((40 * share + 1) / 200, share / 0.1))
        factor = lr_factor(int(40 * share), share, said)
        assert factor == pytest.approx(warm * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2))
    with pytest.raises(ValidationError, match=r"an lr of 0.02 is SGD's.*train.optimizer: sgd"):
        TrainConfig(lr=0.02)
    assert TrainConfig(lr=0.02, optimizer="adamw").lr == 0.02  # said, so meant


def test_too_few_steps_are_said_with_epochs_that_would_do() -> None:
    assert few_steps(12, 300) is None
    line = few_steps(12, 7)
    assert line is not None
    assert "84 steps in all (12 epochs of 7)" in line
    assert "train.epochs 129 would be 903" in line
