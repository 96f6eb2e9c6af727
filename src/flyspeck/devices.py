"""The device that a user names: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the best that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flyspeck.errors import UserError

if TYPE_CHECKING:
    import torch


def torch_device(name: str = "auto", *, where: str = "--device") -> torch.device:
    """The device of that name. `auto` is a CUDA device where there is one, else Apple's (mps), else the processor.

    Raises UserError for a name that is no device, and for a device that this machine does not have.
    """
    import torch

    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device '{name}'", where=where, fix="auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device was found", where=where, fix="use cpu, or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"{torch.cuda.device_count()} CUDA devices were found, no '{name}'", where=where, fix="count from 0"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("no MPS device was found", where=where, fix="use cpu, or auto")
    return device
