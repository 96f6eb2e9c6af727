"""The option `--plugin`, the same for every verb."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.main import get_command

WITHOUT_PLUGINS = ("demo", "data scenes")
"""Verbs that build no model by name and read no annotations of a user."""


def _load_plugins(ctx: typer.Context, modules: list[str]) -> list[str]:
    if modules and not ctx.resilient_parsing:
        from flyspeck.plugins import load_plugin

        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # last: a file in the folder never stands in for an installed module
        for module in modules:
            load_plugin(module)
    return modules


def _with_option(
    plugin: list[str] = typer.Option(
        [],
        "--plugin",
        metavar="MODULE",
        callback=_load_plugins,
        is_eager=True,  # before any other value is looked at: they may name what the plugin brings
        expose_value=False,
        help="Also load this plugin: a module whose register() adds parts; may be repeated.",
    ),
) -> None: ...


def name_waiting_plugins() -> None:
    """Ends a list of parts: says which installed plugins may bring more."""
    from flyspeck.plugins import waiting

    if names := waiting():
        typer.echo(f"\ninstalled plugins, whose parts are listed with --plugin NAME: {', '.join(names)}")


def take_plugins(command: Any, path: str) -> None:
    """Gives a verb, or each verb of a group, the option `--plugin`: one way to load plugins for all of them."""
    verbs = getattr(command, "commands", None)
    if verbs is not None:
        for name, verb in verbs.items():
            take_plugins(verb, f"{path} {name}")
    elif path not in WITHOUT_PLUGINS and not command.hidden:
        shelf = typer.Typer(add_completion=False)
        shelf.command()(_with_option)
        command.params += [option for option in get_command(shelf).params if option.name == "plugin"]
