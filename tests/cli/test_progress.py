"""How far a verb has come: on a terminal a line that never wraps and goes at the end; elsewhere rare lines; none in Python."""

from __future__ import annotations

import importlib.abc
import io
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import flyspeck
from flyspeck.cli import start, terminal
from flyspeck.cli.terminal import ProgressBar, Steps
from flyspeck.progress import Advance

PROGRAM = """
import sys, time
import numpy as np
from flyspeck.cli import terminal
from flyspeck.types import Detections

terminal.PATIENCE = 0.1


def model(windows):
    time.sleep(0.4)
    box = np.array([[10, 10, 18, 18]], np.float32)
    return [Detections(box, np.array([0.9], np.float32), np.array([0]), w.shape[:2], ("dot",)) for w in windows]


if __name__ == "__main__":
    from flyspeck.cli.start import main

    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite does without them (`tests/conftest.py`): on a busy machine they would come at any time."""
    monkeypatch.setattr(terminal, "LINES", 10.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_lines_are_few_and_become_fewer() -> None:
    stream, clock = io.StringIO(), Clock()
    with Steps("reading", stream=stream, clock=clock) as steps:
        steps(Advance("detecting", 0.0))
        for tenth in range(1, 36_000):  # an hour
            clock.now = tenth / 10
            steps(Advance("detecting", tenth / 36_000, f"{tenth} of 36000 images"))
            steps.tick()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "detecting: 100 of 36000 images, 0:59:50 left"
    assert lines[1].startswith("detecting: 200 of 36000 images")
    assert 10 < len(lines) < 45
    assert "\r" not in stream.getvalue()


def test_what_is_quick_says_nothing() -> None:
    for stream in (io.StringIO(), Terminal()):
        clock = Clock()
        with Steps("a", stream=stream, clock=clock) as steps:
            for number in range(50):
                clock.now += 1.9
                steps.tick()
                steps(Advance(f"step {number}"))
        assert stream.getvalue() == ""


def test_a_step_without_a_share_says_how_long_it_has_taken() -> None:
    stream, clock = io.StringIO(), Clock()
    with Steps("loading the model", stream=stream, clock=clock) as steps:
        clock.now = 12.0
        steps.tick()
    assert stream.getvalue() == "loading the model: 0:00:12 so far\n"


@pytest.mark.parametrize("columns", [20, 80, 120])
def test_on_a_terminal_the_line_fits_and_goes(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_width", lambda _: columns)
    stream, clock = Terminal(), Clock()
    with Steps("", stream=stream, clock=clock) as steps:
        for number in range(1, 10):
            steps(Advance("detecting", number / 10, "x" * 200))
            clock.now += 3
            steps.tick()
    drawn = [part.partition("\x1b")[0] for part in stream.getvalue().split("\r") if part]
    assert max(map(len, drawn)) == columns - 1
    assert drawn[-1] == ""  # erased
    assert screen(stream.getvalue()) == []


def test_a_terminal_that_is_gone_stops_nothing() -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    clock = Clock()
    with Steps("reading", stream=Gone(), clock=clock) as steps:
        clock.now = 5
        steps.tick()
        steps(Advance("detecting", 0.5))


def test_the_bar_of_other_verbs_counts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINES", 0.0)
    with ProgressBar("tiling") as bar:
        bar.update(3, 4)
        bar._steps.tick()
    assert re.fullmatch(r"(tiling: .* so far\n)?tiling: 3 of 4, 0:00:00 left\n", capsys.readouterr().err)


def screen(text: str) -> list[str]:
    """The lines that are left on a terminal: carriage returns and erased ends done."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown, place = "", 0
        for part in re.split(r"(\r|\x1b\[K)", line):
            if part == "\r":
                place = 0
            elif part == "\x1b[K":
                shown = shown[:place]
            else:
                shown = shown[:place] + part + shown[place + len(part) :]
                place += len(part)
        lines.append(shown.rstrip())
    while lines and not lines[-1]:
        lines.pop()
    return lines


def recorded(command: Sequence[str], columns: int, folder: Path) -> tuple[int, str]:
    """Exit code, and what a terminal of so many columns received."""
    import fcntl
    import struct
    import termios

    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    path = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path])
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env={**os.environ, "PYTHONPATH": path}
    )
    os.close(theirs)
    received = b""
    while True:
        try:
            piece = os.read(mine, 4096)
        except OSError:
            break
        if not piece:
            break
        received += piece
    os.close(mine)
    return process.wait(), received.decode()


@pytest.fixture
def big_image(tmp_path: Path) -> Path:
    (tmp_path / "slow.py").write_text(PROGRAM)
    pixels = np.random.default_rng(0).integers(0, 255, (96, 640, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one large image with a long name.png")
    return tmp_path


@pytest.mark.parametrize("columns", [80, 120])
def test_predict_on_a_terminal(columns: int, big_image: Path) -> None:
    command = [sys.executable, "slow.py", "predict", "one large image with a long name.png", "--model", "slow:model"]
    command += ["--tile", "96x96", "--overlap", "8", "--out", "found", "--batch-size", "2", "--classes", "dot"]
    code, received = recorded(command, columns, big_image)
    assert code == 0, received
    drawn = [part.partition("\x1b")[0] for part in re.split(r"[\r\n]+", received) if "tiles" in part and "left" in part]
    assert drawn, received
    assert re.match(r"\[#*\.*\] +\d+ %, 0:00:0\d left, detecting: \d of 8 tiles$", drawn[0])
    assert max(map(len, drawn)) < columns
    left = screen(received)
    assert not [line for line in left if "left" in line or "so far" in line or "\x1b" in line]  # nothing of it stays
    assert left[-1].startswith("found: ")
    assert "Traceback" not in received
    assert max(map(len, left)) < columns  # nothing is broken within a word
    assert " ".join(" ".join(left).split()).count("suppression its own") == 1


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_no_traceback_and_says_how_to_go_on(times: int, big_image: Path) -> None:
    command = [sys.executable, "slow.py", "predict", "one large image with a long name.png", "--model", "slow:model"]
    command += ["--tile", "96x96", "--overlap", "8", "--out", "found", "--batch-size", "1", "--classes", "dot"]
    path = os.pathsep.join([str(big_image), *sys.path])
    process = subprocess.Popen(
        command,
        cwd=big_image,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    tiles = big_image / "found/tiles"
    for _ in range(600):
        if tiles.is_dir() and any(file.stat().st_size for file in tiles.iterdir()):
            break
        time.sleep(0.1)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    said = process.communicate(timeout=120)[1]
    # The second may meet the interpreter on its way out, whose own handlers are gone.
    assert process.returncode in (130, *([-signal.SIGINT] if times == 2 else [])), said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert said.splitlines()[-1] == "interrupted"
    assert "--resume goes on" in said


def test_python_is_silent_and_tells_whoever_asks(
    big_image: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(big_image)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    told: list[Advance] = []
    image, told_of = big_image / "one large image with a long name.png", threading.Lock()

    def tell(advance: Advance) -> None:
        with told_of:
            told.append(advance)

    given = {"model": "slow:model", "tile": 96, "overlap": 8, "classes": ["dot"]}
    flyspeck.predict(image, out=big_image / "a", **given)
    assert capfd.readouterr() == ("", "")
    flyspeck.predict(image, out=big_image / "b", progress=tell, **given)
    steps = list(dict.fromkeys(advance.step for advance in told))
    expected = ["looking for images", "loading the model", "detecting", "merging", "drawing", "writing the results"]
    assert [step for step in steps if step in expected] == expected
    shares = [advance.share for advance in told if advance.step == "detecting" and advance.share is not None]
    assert all(0 <= share <= 1 for share in shares)
    assert len(set(shares)) >= 7
    counted: list[int] = []
    given["path"] = given.pop("model")
    flyspeck.load_predictor(**given).predict([image], progress=counted.append)
    assert sum(counted) == 8


def test_ctrl_c_while_the_command_is_loaded_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> None:
            if name == "flyspeck.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "flyspeck.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert start.main(["--version"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")
