"""How programs end that share their work: real pairs of processes, ending as Python does; none aborts, none hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import atexit, ctypes, gc, json, os, signal, sys, time
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # which a group and DistributedDataParallel import: here once
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from flyspeck import together
from flyspeck.infer.processes import Processes
from flyspeck.train.processes import in_step, join_processes

folder, codes = Path(sys.argv[1]), {}


def begin(name, rank):
    os.dup2(os.open(folder / f"{name}.{rank}", os.O_CREAT | os.O_WRONLY), 2)
    os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1", ACCELERATE_USE_CPU="true")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    init, store = distributed.init_process_group, f"file://{folder / name}"  # no port, which somebody else may have by now

    def by_file(**options):
        init("gloo", init_method=store, rank=rank, world_size=2, timeout=options.get("timeout", timedelta(days=1)))

    distributed.init_process_group = by_file


def gather():
    return distributed.all_gather([torch.empty(2), torch.empty(2)], torch.ones(2), async_op=True)


class Slow:
    '''Frees the interpreter's lock while the interpreter ends, as many a thing does that is taken down then.'''

    def __init__(self, sleep=time.sleep):
        self.sleep = sleep

    def __del__(self):
        self.sleep(0.2)


def late(rank):
    '''A thread of PyTorch ends an exchange while this one keeps the interpreter's lock, until the program ends.'''
    global slow
    distributed.barrier()
    if rank == 0:
        sys.setswitchinterval(1000)
        gather()
        ctypes.PyDLL(None).usleep(600_000)
        slow = Slow()
    else:
        time.sleep(0.3)
        gather().wait()


def prediction(rank):
    with Processes.from_environment().together():
        pass
    late(rank)


def training(rank):
    join_processes()
    net = DistributedDataParallel(torch.nn.Linear(2, 2))  # holds the group
    net.itself = [net]
    net(torch.ones(1, 2)).sum().backward()
    late(rank)


def gone(rank):
    accelerator = join_processes()
    if rank == 1:
        os._exit(7)
    with in_step(accelerator):
        pass


def hangs(rank):
    '''One fails within a step, its exchange under way; the other is stuck elsewhere until it is killed.'''
    together._PATIENCE = 0.3
    join_processes()
    distributed.barrier()
    if rank == 1:
        signal.pause()
    gather()
    sys.exit(3)


def forks(rank):
    accelerator = join_processes()
    if os.fork() == 0:
        return  # ends as a program does, with what its parent asked for at its end
    assert os.wait()[1] == 0
    with in_step(accelerator):
        pass


def of_a_host(rank):
    '''Who made the group before takes it down; asked after all that was registered later.'''
    atexit.register(lambda: (folder / f"host.{rank}.txt").write_text(str(distributed.is_initialized())))
    distributed.init_process_group()
    join_processes()
    distributed.barrier()


def ours(rank):
    atexit.register(lambda: (folder / f"ours.{rank}.txt").write_text(str(distributed.is_initialized())))
    join_processes(), join_processes()
    with Processes.from_environment().together():
        pass


gc.freeze()  # what is here already need not be looked through by each
for case in (prediction, training, gone, hangs, forks, of_a_host, ours):
    pids = []
    for rank in (0, 1):  # forked, since importing torch takes longer than all else
        pids.append(os.fork())
        if pids[-1] == 0:
            begin(case.__name__, rank)
            case(rank)
            break
    else:
        ends = [os.waitpid(pids[0], 0)]
        if case is hangs:
            os.kill(pids[1], signal.SIGKILL)
        ends.append(os.waitpid(pids[1], 0))
        codes[case.__name__] = [os.waitstatus_to_exitcode(status) for _, status in ends]
        continue
    break
else:
    (folder / "codes.json").write_text(json.dumps(codes))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_how_processes_end(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "codes.json").read_text()) == {
        "prediction": [0, 0],
        "training": [0, 0],
        "gone": [1, 7],
        "hangs": [3, -9],
        "forks": [0, 0],
        "of_a_host": [0, 0],
        "ours": [0, 0],
    }, {path.name: path.read_text()[-1000:] for path in tmp_path.glob("*.[01]")}
    assert [(tmp_path / f"host.{rank}.txt").read_text() for rank in (0, 1)] == ["True", "True"]
    assert [(tmp_path / f"ours.{rank}.txt").read_text() for rank in (0, 1)] == ["False", "False"]
