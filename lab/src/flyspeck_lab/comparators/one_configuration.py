"""Detectors of one configuration: any other third part of a model's name is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flyspeck.errors import UserError


def only_base(what: str, *, fix: str = "leave it out") -> Callable[..., None]:
    """A detector's `find_configuration` that knows `base` alone, and raises UserError for the name of any other."""

    def find_configuration(name: str, **_: Any) -> None:
        if name != "base":
            raise UserError(f"no {what} configuration '{name}'", where="model name", fix=fix)

    return find_configuration
