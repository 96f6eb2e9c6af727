"""A detector for tests of what a suppression decides: a head that holds its rule and nothing else."""

from __future__ import annotations

from flyspeck.models.detector import Head
from flyspeck.models.postprocess import Suppression


class Suppressing(Head):
    """A network of nothing but a rule."""

    def __init__(self, rule: Suppression) -> None:
        super().__init__()
        self.suppression = rule

    def losses(self, *_: object) -> dict:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {}

    def detect(self, *_: object) -> list:  # pyright: ignore[reportIncompatibleMethodOverride]
        return []
