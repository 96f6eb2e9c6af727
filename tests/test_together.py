"""An error of one process is one of all: two real processes that exchange by gloo; none is left waiting."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flyspeck.errors import UserError
from flyspeck.together import share_failure, together

PROGRAM = """
import json, sys
from pathlib import Path

import numpy as np
from accelerate import PartialState

from flyspeck.errors import UserError
from flyspeck.infer.job_images import DrawRule, ImageJob
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.processes import Processes
from flyspeck.infer.source import find_items
from flyspeck.train.processes import failing_for_all, in_step, join_processes

out, said = Path(sys.argv[1]), []


def told(what):
    try:
        what()
    except (UserError, ZeroDivisionError) as error:
        said.append(f"{type(error).__name__}: {error}")
    else:
        said.append("nothing")


processes = Processes.from_environment()
accelerator = join_processes()
rank = processes.rank


def fails_on(number, error, context):
    def run():
        with context():
            if rank == number:
                raise error
    return run


def main_alone():
    with failing_for_all(accelerator):
        if rank == 0:
            raise UserError("the disk is full", where="run")
    with in_step(accelerator):
        pass


def reading():
    class Broken(Predictor):
        def stream(self, *arguments, **options):
            if rank == 1:
                raise ZeroDivisionError("a model of its own")
            return super().stream(*arguments, **options)

    from flyspeck.types import Detections

    items, _ = find_items([sys.argv[2]])
    model = lambda windows: [Detections.empty(w.shape[:2], ("a",)) for w in windows]
    model.classes = ("a",)
    ImageJob(items=items, categories=None, truth=None, made_with={}, drawing=DrawRule(images=0, score=0.3, heat=False),
             out=out / "found", formats=["csv"], classes=("a",), resume=False, overwrite=False,
             say=lambda line: None, warn=lambda line: None, progress=lambda one: None).run(Broken(model), processes)


def refused():
    (out / "other").mkdir(exist_ok=True)
    (out / "other" / "detections.csv").touch()
    items, _ = find_items([sys.argv[2]])
    ImageJob(items=items, categories=None, truth=None, made_with={}, drawing=DrawRule(images=0, score=0.3, heat=False),
             out=out / "other", formats=["csv"], classes=("a",), resume=False, overwrite=False,
             say=lambda line: None, warn=lambda line: None, progress=lambda one: None).run(None, processes)


told(fails_on(1, UserError("broken", where="a.png"), lambda: in_step(accelerator)))
told(fails_on(0, ZeroDivisionError("x"), processes.together))
told(fails_on(7, UserError("nobody"), processes.together))
told(main_alone)
told(reading)
told(refused)
(out / f"{rank}.json").write_text(json.dumps(said))
"""


def test_one_process_raises_its_own_error() -> None:
    with pytest.raises(ZeroDivisionError), together(rank=0, world=1):
        raise ZeroDivisionError
    share_failure(None, rank=0, world=1)
    with pytest.raises(UserError, match="mine"):
        share_failure(UserError("mine"), rank=0, world=1)


def test_what_fails_on_one_process_fails_on_both(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(9):
        Image.new("L", (32, 32)).save(tmp_path / "images" / f"{number}.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "ACCELERATE_USE_CPU": "true"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(tmp_path / "images")],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in both:
        try:
            _, error = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 0, error[-2000:]
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    refused = main.pop(), other.pop()
    assert main == [
        "UserError: process 2 of 2 failed: a.png: broken; what it says is to be mended",
        "ZeroDivisionError: x",
        "nothing",
        "UserError: run: the disk is full",
        "UserError: process 2 of 2 failed: ZeroDivisionError: a model of its own; what it says is to be mended",
    ]
    assert other == [
        "UserError: a.png: broken",
        "UserError: process 1 of 2 failed: ZeroDivisionError: x; what it says is to be mended",
        "nothing",
        "UserError: process 1 of 2 failed: run: the disk is full; what it says is to be mended",
        "ZeroDivisionError: a model of its own",
    ]
    assert "'detections.csv' is there, and no prediction is known to have written it" in refused[0]
    assert refused[1].startswith("UserError: process 1 of 2 failed: ")
    assert "'detections.csv' is there" in refused[1]
