"""The processes of a run: one, or as many as a launcher started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator

from flyspeck.together import joining, share_failure, together


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


def in_step(processes: Processes) -> AbstractContextManager[None]:
    """What stands in it succeeds on all processes, or is an error on all: none waits for one that has failed."""
    return together(rank=processes.process_index, world=processes.num_processes, device=processes.device)


@contextmanager
def failing_for_all(processes: Processes) -> Iterator[None]:
    """What only one process does, between two points at which all are `in_step`: its error is told where the others are next."""
    try:
        yield
    except Exception as error:
        share_failure(error, rank=processes.process_index, world=processes.num_processes, device=processes.device)


def join_processes() -> Accelerator:
    """This process among those that `torchrun` or `accelerate launch` started, on GPUs or on CPUs.

    Without `cpu=True` accelerate takes processes on a machine without a GPU for strangers: each would train alone.
    The process leaves the others when the program ends.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    with joining():
        return Accelerator(cpu=several and not torch.cuda.is_available())
