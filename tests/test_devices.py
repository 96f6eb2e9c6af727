from __future__ import annotations

import pytest
import torch

from flyspeck.devices import torch_device
from flyspeck.errors import UserError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def has(*, cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


def test_auto_takes_the_best_that_is_there(machine) -> None:
    for has, expected in (
        ({}, "cpu"),
        ({"mps": True}, "mps"),
        ({"cuda": 1}, "cuda"),
        ({"cuda": 2, "mps": True}, "cuda"),
    ):
        machine(**has)
        assert torch_device("auto") == torch.device(expected)


def test_what_is_named_and_there_is_taken(machine) -> None:
    machine(cuda=2, mps=True)
    for name in ("cpu", "cuda", "cuda:1", "mps"):
        assert torch_device(name) == torch.device(name)


@pytest.mark.parametrize(
    ("name", "cuda", "message"),
    [
        ("cuda", 0, "no CUDA device"),
        ("cuda:1", 0, "no CUDA device"),
        ("cuda:2", 2, "2 CUDA devices were found, no 'cuda:2'"),
        ("mps", 1, "no MPS device"),
        ("gpu", 1, "unknown device 'gpu'.*auto, cpu, cuda"),
    ],
)
def test_what_is_not_there_is_said(machine, name: str, cuda: int, message: str) -> None:
    machine(cuda=cuda)
    with pytest.raises(UserError, match=message) as caught:
        torch_device(name, where="train.device")
    assert caught.value.where == "train.device"
