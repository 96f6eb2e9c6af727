"""A training that several processes of this machine share, started from a program: what `torchrun` does from a shell.

PyTorch divides each layer among its threads and waits for all of them after each: a small detector gains little by a second
core, and loses much where another program holds one of them up. Processes that share a batch meet once a step.

No torch at import: each process sets its number of threads before it loads it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import sys
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from flyspeck.errors import UserError

MEMORY = 1_500_000_000
"""Bytes that a process should have for itself."""
PATIENCE = 20.0
"""Seconds for the others to leave, once the first has ended."""
LAST_WORDS = 3.0
"""Seconds for each of them to say what is wrong, where one has failed."""
MOST = 4
"""Processes that share a batch: there is one image of four for each then."""


def processes_for(cpus: int, memory: int, batch: int) -> int:
    """How many processes share batches of so many images on `cpus` processors with so much free memory, in bytes; 1: none do."""
    most = max(1, min(cpus, MOST, memory // MEMORY))
    return max(number for number in range(1, most + 1) if batch % number == 0)


def train_together(recipe: Path, folder: Path, *, processes: int, threads: int = 1) -> bool:
    """Trains the recipe into `folder` by so many processes of `threads` threads each, on the processor.

    Returns whether the first one, which writes the run, has ended well. Its output goes where this one's does. Where one of them
    fails before that, the others are ended.
    """
    context, port = multiprocessing.get_context("spawn"), _free_port()
    started: list[BaseProcess] = [
        context.Process(target=_work, args=(recipe, folder, rank, processes, port, threads))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    first = started[0]
    try:
        while first.exitcode is None and not any(process.exitcode for process in started):
            # The first one's is always there: it may end between the two lines, and what waits for nothing waits for ever.
            connection.wait([process.sentinel for process in started if process is first or process.exitcode is None])
    finally:
        for process in started:
            process.join(PATIENCE if first.exitcode == 0 else LAST_WORDS)
            process.terminate()
            process.join()
    return first.exitcode == 0


def _free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _work(recipe: Path, folder: Path, rank: int, world: int, port: int, threads: int) -> None:
    """One of the processes."""
    said = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in said.items()} | {"OMP_NUM_THREADS": str(threads)})
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name may lead nowhere
    if rank == 0:
        logging.basicConfig(level=logging.INFO, format="  %(message)s")
        logging.getLogger("flyspeck").setLevel(logging.INFO)
    else:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    import torch

    from flyspeck.train.config import load_recipe
    from flyspeck.train.run import train

    torch.set_num_threads(threads)
    try:
        train(load_recipe(recipe), folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
