"""The comparators as a loaded plugin, and a data set and a recipe that train in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flyspeck.plugins import load_plugin
from small_training import base_recipe, write_squares


@pytest.fixture(autouse=True, scope="session")
def comparators() -> None:
    """`free_anchor`, `libra_rcnn` and `grid_rcnn` are in the table, however the laboratory is installed."""
    load_plugin("flyspeck_lab.comparators")


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A folder with `data/squares/train.json` (8 images) and `val.json` (5)."""
    return write_squares(tmp_path)


@pytest.fixture
def base() -> dict[str, Any]:
    """A recipe's mapping without the paths of its data."""
    return base_recipe()
