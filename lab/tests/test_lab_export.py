"""The comparators leave PyTorch as the zoo's detectors do: by the plain runtimes, at every batch and size."""

from __future__ import annotations

from pathlib import Path

import pytest
from every_batch import assert_same
from every_model import COMPARATORS, matrix_of


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARATORS)
def test_a_comparator_runs_at_every_batch_and_size_in_every_engine(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    found = matrix_of(name, tmp_path)
    assert not isinstance(found, str), found
    assert_same(found)
