"""What a norm does besides norming is kept where the norm is frozen or exchanged."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from odd_norms import ActNorm, FunctionalActNorm, ResidualNorm, X, shake
from torch import nn
from torch.testing import assert_close

from flyspeck.models.backbones.freezing import FrozenNorm, freeze_norms
from flyspeck.models.deformable import replace_batch_norms
from flyspeck.models.follows import what_follows
from flyspeck.models.layers import group_norm


@pytest.mark.parametrize("norm", [ActNorm(4), FunctionalActNorm(4), nn.BatchNorm2d(4)])
def test_a_frozen_norm_keeps_its_activation(norm: nn.BatchNorm2d) -> None:
    net = shake(nn.Sequential(nn.Conv2d(4, 4, 3), copy.deepcopy(norm)))
    names = list(net.state_dict())
    with torch.no_grad():
        expected = net(X)
    assert freeze_norms(net) == 1
    assert freeze_norms(net) == 1  # again changes nothing
    assert list(net.state_dict()) == names
    for made in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        made.train()
        state = copy.deepcopy(made.state_dict())
        assert_close(made(X), expected)
        assert isinstance(made[1], FrozenNorm)
        assert isinstance(made[1], type(norm))
        assert not any(p.requires_grad for p in made[1].parameters())
        assert all(torch.equal(a, b) for a, b in zip(state.values(), made.state_dict().values(), strict=True))


def test_an_exchanged_norm_keeps_its_activation() -> None:
    net = nn.Sequential(nn.Conv2d(4, 16, 3), ActNorm(16))
    replace_batch_norms(net, group_norm)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    with torch.no_grad():
        assert float(net(X).min()) == 0


def test_what_follows_a_norm() -> None:
    act = nn.SiLU()
    assert isinstance(what_follows(nn.BatchNorm2d(4).eval()), nn.Identity)
    assert what_follows(ActNorm(4, act).eval()) is act
    assert what_follows(ResidualNorm(4).eval()) is None
    rest = what_follows(FunctionalActNorm(4).eval())
    assert rest is not None
    assert_close(rest(X), X * torch.sigmoid(1.5 * X) - 0.25)
