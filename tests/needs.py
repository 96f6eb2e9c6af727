"""Detectors and backbones that need an extra: their tests skip, with a message, where it is not installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import pytest

TRANSFORMERS = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("transformers", "scipy")), reason="needs the extra detr"
)
"""Marks a test of what is made of the library transformers."""
OF_TRANSFORMERS = ("dfine", "rtdetrv2")


def with_extras(names: Iterable[str]) -> list[Any]:
    """Model names as parameters of a test; those of a detection transformer are marked."""
    return [
        pytest.param(name, marks=TRANSFORMERS) if name.partition(":")[0] in OF_TRANSFORMERS else name for name in names
    ]
