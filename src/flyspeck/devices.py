"""The device that a user names (`cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the best that is there), and its free memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flyspeck.errors import UserError

if TYPE_CHECKING:
    import torch


def free_memory(device: str = "cpu") -> int:
    """Bytes that nothing uses: of a CUDA device its own, else of main memory; 2 GB where the system does not say."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        line = next(line for line in text.splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 2 * 10**9


def processors() -> int:
    """How many of the machine's processors this process may use."""
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in vars(os) else os.cpu_count() or 1


def check_device(name: str, *, where: str = "--device") -> None:
    """Raises UserError as `torch_device` does, before any work; torch is loaded for what may not be there alone."""
    if name not in ("auto", "cpu"):
        torch_device(name, where=where)


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
        if device.type not in (
            "cpu",
            "cuda",
            "mps",
        ):  # one that a package adds to torch, or none on which anything is computed
            (torch.ones(1, device=device) + 1).cpu()
    except (RuntimeError, AssertionError, ImportError):
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
