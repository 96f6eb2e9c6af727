"""One prediction on many processes and machines, as `accelerate launch` and `torchrun` start them.

They share nothing but the folder of results: each writes its finished tiles to a journal there; when all are done, the first
one reads them back, runs what is still missing, merges, and writes the one result. So a stopped job is resumed on any number of
processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from flyspeck.errors import UserError
from flyspeck.infer.reading import Share
from flyspeck.together import joining, together

_IMAGES_EACH = 4  # fewer images than this for each process: tiles are dealt out instead


@dataclass(frozen=True)
class Processes:
    """This process's number `rank` among `world`."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Its number on its machine."""

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None) -> Processes:
        """What the launcher says in RANK, WORLD_SIZE and LOCAL_RANK; a process started by hand is alone."""
        said = os.environ if environment is None else environment
        try:
            world, rank = int(said.get("WORLD_SIZE", "1")), int(said.get("RANK", "0"))
            return Processes(rank, world, int(said.get("LOCAL_RANK", "0")))
        except ValueError as error:
            raise UserError(f"the launcher gave no numbers ({error})", where="RANK, WORLD_SIZE, LOCAL_RANK") from None

    @property
    def leads(self) -> bool:
        """Whether this process writes the result."""
        return self.rank == 0

    def share(self, num_images: int) -> Share:
        """Many images are dealt out whole, so that each is decoded once; of few, the tiles are."""
        return Share(self.rank, self.world, "tiles" if num_images < _IMAGES_EACH * self.world else "images")

    def device(self, asked: str) -> str:
        """`cuda` as this process's own, and so `auto` where there is CUDA."""
        if asked == "auto" and self.world > 1:
            asked = _best_here()
        return f"cuda:{self.local}" if asked == "cuda" and self.world > 1 else asked

    def together(self) -> AbstractContextManager[None]:
        """A context whose end is reached when all processes are there, as long as it takes: an error of one is one of all."""
        if self.world > 1:
            from datetime import timedelta

            from accelerate import PartialState

            # Processes finish hours apart where one machine is slower; the usual limit is minutes.
            with joining():
                PartialState(cpu=True, timeout=timedelta(days=30))
        return together(rank=self.rank, world=self.world)


def _best_here() -> str:
    """What `auto` is for torch; without torch an exported model is run, whose engine chooses."""
    try:
        from flyspeck.devices import torch_device

        return torch_device("auto").type
    except ImportError:
        return "auto"
