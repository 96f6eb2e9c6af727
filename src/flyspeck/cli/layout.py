"""How every command looks: one plain layout of help with an example, one line for a mistake, one line for an old option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from flyspeck.cli.choices import open_choices
from flyspeck.cli.moved import refuse_moved
from flyspeck.errors import UserError, nearest
from flyspeck.files import local_output

MISUSE: type[Exception] = typer.BadParameter.__mro__[2]
"""The common base of typer's own errors about a command line, which it does not export by name."""


WRITTEN = ("--out", "--plot", "--fix", "--results", "--runs", "--docs", "--html")
"""Options, of any command, whose value is a path that is written to."""


def path_of(ctx: Any) -> str:
    """The command's name as it is typed: `flyspeck data inspect`."""
    names = []
    while ctx.parent is not None:
        names.append(ctx.info_name)
        ctx = ctx.parent
    return " ".join([ctx.command.name or "flyspeck", *reversed(names)])


class Verb(TyperCommand):
    """A command: old options answer with their new name, open choices are listed in the help, the example is last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Before anything else is looked at, options that were renamed; then what is to be written, and cannot be."""
        if not ctx.resilient_parsing:
            refuse_moved(path_of(ctx), args)
        rest = super().parse_args(ctx, args)
        for option in self.params:
            name, value = option.opts[0], ctx.params.get(option.name or "")
            if name in WRITTEN and value is not None and not ctx.resilient_parsing:
                local_output(value, where=name)
        return rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The plain layout; what a plugin may add to is listed as it is now."""
        for option in self.params:
            names = open_choices(path_of(ctx), option.opts[0])
            if names:
                option.help = f"{option.help} Known: {', '.join(names)}."  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example on a line of its own, whole, so that it can be copied."""
        if self.epilog:
            formatter.write(f"\nExample:\n  {self.epilog}\n")


class Group(TyperGroup):
    """A group of commands; one that does not exist is answered with the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See click. Raises UserError for an unknown command."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            known = [name for name in self.list_commands(ctx) if not getattr(self.commands.get(name), "hidden", False)]
            raise UserError(f"no command '{args[0]}'", where=path_of(ctx), fix=nearest(args[0], known))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each command with its whole first sentence, where click cuts it."""
        known = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, verb.get_short_help_str(1000)) for name, verb in known if verb is not None and not verb.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class PlainApp(typer.Typer):
    """Commands in the one layout: `Verb`s in a `Group`, without boxes and colours."""

    def __init__(self, *, name: str | None = None, help: str | None = None, **settings: Any) -> None:
        settings = {"cls": Group, "add_completion": False, "no_args_is_help": True, **settings}
        super().__init__(name=name, help=help, rich_markup_mode=None, pretty_exceptions_enable=False, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """Typer's decorator, with `Verb` for the class."""
        return super().command(name, **{"cls": Verb, **settings})


def add_examples(command: Any, path: str, examples: Mapping[str, str]) -> None:
    """Gives every verb at or below `command`, which is typed as `path`, its example."""
    verbs = getattr(command, "commands", None)
    if verbs is None:
        command.epilog = examples.get(path)
        return
    for name, verb in verbs.items():
        add_examples(verb, f"{path} {name}", examples)
