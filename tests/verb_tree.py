"""Every verb of `flyspeck` and `flyspeck-lab`, by walking the commands as they are built."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from typer.main import get_command

from flyspeck.cli.main import app
from flyspeck_lab.cli.main import app as laboratory


def leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, command) of every verb at or below `command`, without those that moved."""
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    for name in command.list_commands(None):
        inner = command.get_command(None, name)
        if not inner.hidden:
            yield from leaves(inner, f"{path} {name}")


@cache
def all_verbs() -> dict[str, Any]:
    """Path, as it is typed, to command. Built once: hundreds of tests ask."""
    return {
        **dict(leaves(get_command(app), "flyspeck")),
        **dict(leaves(get_command(laboratory), "flyspeck-lab")),
    }


def parse(words: list[str], verbs: dict[str, Any]) -> dict[str, Any]:
    """The values that a command line gives its verb, without running it; typer's errors and `UserError` come through."""
    path = max((p for p in verbs if words[: len(p.split())] == p.split()), key=len, default=None)
    assert path is not None, f"no verb in {words}"
    return verbs[path].make_context(path, words[len(path.split()) :]).params
