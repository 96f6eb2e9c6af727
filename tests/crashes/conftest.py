"""What is crashed begins with these images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import make_quick

from small_training import write_squares


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_quick(monkeypatch)
        yield write_squares(tmp_path_factory.mktemp("squares")) / "data" / "squares"
