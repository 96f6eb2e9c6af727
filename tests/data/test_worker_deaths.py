"""A process that reads images and dies, as where memory runs out: one line at the batch that is waited for, and nowhere else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import get_worker_info

from flyspeck.data.loading import DetectionDataset, Loader, make_loader
from flyspeck.data.readers import read_annotations
from flyspeck.data.worker_deaths import _Held
from flyspeck.errors import UserError
from small_training import write_squares

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="no such signals here")


@pytest.fixture
def loader(tmp_path: Path) -> Iterator[Loader]:
    squares = write_squares(tmp_path) / "data" / "squares"
    dataset = DetectionDataset(read_annotations(squares / "train.json"), channels=1)
    made = make_loader(dataset, batch_size=2, workers=2, divisor=16)
    yield made
    made.close()


def dying(monkeypatch: pytest.MonkeyPatch, position: int, number: int) -> None:
    """The worker that reads this image of the epoch kills itself by a signal."""
    plain = DetectionDataset.draw

    def draw(self: DetectionDataset, draw: Any, attempt: int = 0) -> Any:
        if draw.position == position and get_worker_info() is not None:
            os.kill(os.getpid(), number)
        return plain(self, draw, attempt)

    monkeypatch.setattr(DetectionDataset, "draw", draw)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, r"\(signal: Killed\), as a system does that has no memory left"),
        (signal.SIGBUS, r"\(signal: Bus error\), as where shared memory, /dev/shm, is full"),
    ],
)
@pytest.mark.parametrize("position", [0, 7])
def test_a_worker_that_dies_is_one_line(
    loader: Loader, monkeypatch: pytest.MonkeyPatch, position: int, number: int, words: str
) -> None:
    dying(monkeypatch, position, number)
    begun = time.perf_counter()
    with pytest.raises(UserError, match=f"^workers: a process that reads images was ended by the system {words}; free"):
        list(loader.epoch(0))
    assert multiprocessing.active_children() == []  # the other is not left behind
    assert time.perf_counter() - begun < 30


def test_it_is_told_where_a_batch_is_asked_for(loader: Loader) -> None:
    """Not in the middle of what the main process does when it happens."""
    batches = loader.epoch(0)
    next(batches)
    first = multiprocessing.active_children()[0].pid or 0
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert sum(range(1000)) == 499500  # PyTorch's own handler would raise here, if not before
    with pytest.raises(UserError, match="Killed"):
        list(batches)
    assert [batch.image_ids for batch in loader.epoch(0)] == [batch.image_ids for batch in loader.epoch(0)]


def test_another_program_hears_of_its_children(loader: Loader) -> None:
    """A handler of SIGCHLD that somebody else has set stays, and what it raises is raised."""
    heard: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, frame: heard.append(number))
    try:
        list(loader.epoch(0))
        process = multiprocessing.get_context("fork").Process(target=int)
        process.start()
        process.join()
        assert heard
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("said", "waiting", "raised"),
    [("DataLoader worker died", False, False), ("DataLoader worker died", True, True), ("another", False, True)],
)
def test_what_a_handler_raises(said: str, waiting: bool, raised: bool) -> None:
    held, asked = _Held(), []

    def theirs(*words: Any) -> None:
        asked.append(words)
        raise RuntimeError(said)

    held.theirs, held.waiting = theirs, waiting
    with pytest.raises(RuntimeError, match=said) if raised else nullcontext():
        held(signal.SIGCHLD, None)
    assert asked == [(signal.SIGCHLD, None)]
    assert held.noted == ("" if raised else said)
