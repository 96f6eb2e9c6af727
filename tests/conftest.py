"""Fixtures for the whole suite."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from flyspeck.cli import terminal

# How long an example takes says something about the machine's load, nothing about the code.
settings.register_profile("flyspeck", deadline=None)
settings.load_profile("flyspeck")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long `-m fuzz` tries damaged files, with which seed, and where its counts go."""
    parser.addoption("--fuzz-minutes", type=float, default=2.0)
    parser.addoption("--fuzz-seed", type=int, default=None)
    parser.addoption("--fuzz-json", default="")
    parser.addoption("--crash-every", type=int, default=1, help="crash at every n-th operation only")
    parser.addoption(
        "--crash-modes", default="kill,torn,full,io,files,clock,short", help="kinds of failures, with commas between"
    )
    parser.addoption("--crash-json", default="", help="where the tests of every crash write their counts")
    parser.addoption("--deaths-json", default="", help="where those of processes that die write theirs")
    parser.addoption(
        "--installs-json", default="", help="where the tests of installations write what each extra brings"
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images, golden evaluator outputs and weights that lies beside the project, if it is there."""
    folder = Path(os.environ.get("FLYSPECK_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the reference data beside the project ({folder.name}/ is absent; set FLYSPECK_SHARED)")
    return folder


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(autouse=True)
def signals_on_the_usual_stack() -> None:
    """Python handles signals on the alternate stack of its thread, if there is one. Cores of OpenVINO that do not go in the
    reverse order of their coming (`infer/openvino_model.py: the_core`; some tests make their own) leave one behind whose memory
    is given back, and then the next signal, expected or not, ends the worker without a word.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(None, 2, 0)), None)  # 2: SS_DISABLE


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb says on stderr how far it has come, now and then: on a busy machine in the middle of what a test compares."""
    monkeypatch.setattr(terminal, "LINES", 1e9)
