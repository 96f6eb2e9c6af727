"""Engines of OpenVINO come and go in any order, and a signal afterwards is handled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13

from flyspeck.infer.openvino_model import OpenVinoSession, the_core

path = Path(sys.argv[1])
given = opset13.parameter([1, 4], np.float32, "given")
openvino.save_model(openvino.Model([opset13.relu(given)], [given], "small"), path)
sessions = [OpenVinoSession(path) for _ in range(3)]
for session in sessions:
    assert session.run([np.full((1, 4), 2, np.float32)])[0].tolist() == [[2, 2, 2, 2]]
del session
while sessions:
    del sessions[0]  # the first that came goes first
heard = []
signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
os.kill(os.getpid(), signal.SIGUSR1)
assert heard
assert the_core() is the_core()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_a_signal_after_engines_have_gone(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "m.xml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
