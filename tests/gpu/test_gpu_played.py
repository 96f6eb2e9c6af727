"""The played GPU refuses what CUDA refuses: without that, all else here would say nothing."""

from __future__ import annotations

import pytest
import torch

CPU = torch.arange(6.0).reshape(2, 3)


def test_tensors_of_two_devices_do_not_mix(device: torch.device) -> None:
    there = CPU.to(device)
    for mix in (
        lambda: there + CPU,
        lambda: torch.cat([there, CPU]),
        lambda: torch.where(there > 1, there, CPU),
        lambda: torch.stack([CPU, there]),
        lambda: there @ CPU.T,
        lambda: CPU[there[0].long() > 0],
        lambda: torch.arange(3.0)[there[0].long()],
        lambda: there.masked_fill(CPU > 1, 0),
        lambda: torch.nn.Linear(3, 2)(there),
    ):
        with pytest.raises(RuntimeError):
            mix()


def test_what_cuda_allows_goes(device: torch.device) -> None:
    there = CPU.to(device)
    assert (there + torch.tensor(2.0)).device.type == device.type
    assert there[torch.tensor([1, 0])].to("cpu").tolist() == CPU[[1, 0]].tolist()
    there[:, 1:] = 0
    assert there.to("cpu")[0].tolist() == [0, 0, 0]
    assert there.new_zeros(2).device == there.device == torch.zeros_like(there).device
    assert torch.nonzero(there).device == there.device
