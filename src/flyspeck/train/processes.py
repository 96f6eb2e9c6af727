"""The processes of a run: one, or as many as a launcher started."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator


def join_processes() -> Accelerator:
    """This process among those that `torchrun` or `accelerate launch` started, on GPUs or on CPUs.

    Without `cpu=True` accelerate takes processes on a machine without a GPU for strangers: each would train alone.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(cpu=several and not torch.cuda.is_available())
