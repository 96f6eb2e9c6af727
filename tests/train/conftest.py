"""A data set and a recipe small enough to train in seconds: written to disk and read back like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flyspeck.train.config import Recipe, parse_recipe
from tiny_sets import write_tiny_set


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `train.json` (12 images) and `val.json` (6)."""
    return write_tiny_set(tmp_path_factory.mktemp("tiny_set"))


RecipeMaker = Callable[..., Recipe]


@pytest.fixture
def make_recipe(tiny_set: Path) -> RecipeMaker:
    """A recipe on `tiny_set`; keyword arguments are sections that are merged over the defaults."""

    def make(**sections: dict[str, Any]) -> Recipe:
        content: dict[str, Any] = {
            "data": {"train": str(tiny_set / "train.json"), "val": str(tiny_set / "val.json")},
            "augment": {"flip": 0.5, "photometric": 0.3},
            "model": {
                "name": "retinanet:mobilenet_v2",
                "width": 0.25,
                "channels": 16,
                "norm": "gn",
                "freeze_norms": True,
                "anchors": {"octaves": 1},
                "head": {"depth": 1},
            },
            "train": {
                "epochs": 2,
                "batch_size": 4,
                "optimizer": "sgd",
                "lr": 0.01,
                "warmup_steps": 2,
                "workers": 0,
                "log_every": 1,
            },
            "evaluate": {"batch_size": 4},
        }
        for name, section in sections.items():
            content[name] = {**content.get(name, {}), **section}
        return parse_recipe(content)

    return make
