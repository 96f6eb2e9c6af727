"""Fixtures for the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

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
