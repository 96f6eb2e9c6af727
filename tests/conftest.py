"""Fixtures for the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from flyspeck.cli import terminal

# How long an example takes says something about the machine's load, nothing about the code.
settings.register_profile("flyspeck", deadline=None)
settings.load_profile("flyspeck")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images, golden evaluator outputs and weights that lies beside the project, if it is there."""
    folder = Path(os.environ.get("FLYSPECK_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the reference data beside the project ({folder.name}/ is absent; set FLYSPECK_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb says on stderr how far it has come, now and then: on a busy machine in the middle of what a test compares."""
    monkeypatch.setattr(terminal, "LINES", 1e9)
