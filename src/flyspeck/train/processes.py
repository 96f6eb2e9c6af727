"""The processes of a run: one, or as many as a launcher started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator


class Processes(Protocol):
    """What a measurement asks of the processes that share it."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    @property
    def process_index(self) -> int:
        """From 0."""
        ...

    @property
    def num_processes(self) -> int:
        """That take part."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process that works by itself, whatever others are doing: it waits for nobody."""

    device: torch.device
    process_index: int = 0
    num_processes: int = 1


def join_processes() -> Accelerator:
    """This process among those that `torchrun` or `accelerate launch` started, on GPUs or on CPUs.

    Without `cpu=True` accelerate takes processes on a machine without a GPU for strangers: each would train alone.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(cpu=several and not torch.cuda.is_available())
