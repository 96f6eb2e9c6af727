"""Verbs that are in `flyspeck-lab` now: each answers with one line that names its new command."""

from __future__ import annotations

import typer

from flyspeck.errors import UserError
from flyspeck.plugins import IN_LAB

VERBS = {"bench": "flyspeck-lab run"}
"""Verbs of `flyspeck` itself that moved, and their commands now."""


def moved_error(old: str, new: str) -> UserError:
    """The error of the command `old`, which is `new` now."""
    return UserError(f"`{old}` is now `{new}`", fix=IN_LAB)


def keep_moved(app: typer.Typer, name: str, *, old: str, new: str) -> None:
    """Keeps `name` as a hidden command of `app` that takes any arguments and raises UserError: `old` is `new` now."""

    def command() -> None:
        raise moved_error(old, new)

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(name, hidden=True, add_help_option=False, context_settings=settings)(command)
