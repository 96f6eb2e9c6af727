"""The entry point: finds the verb, loads only its file, and turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from flyspeck.cli import moved
from flyspeck.cli.examples import EXAMPLES
from flyspeck.cli.layout import MISUSE, Group, PlainApp, add_examples
from flyspeck.cli.plain_output import plain_output
from flyspeck.cli.plugin_option import take_plugins
from flyspeck.errors import UserError, one_line
from flyspeck.plugins import behind

# verb -> (module:attribute of a typer app or a function, one line of help). Loaded when the verb is called.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("flyspeck.cli.demo:demo", "The whole job on generated images, in minutes: start here."),
    "data": ("flyspeck.cli.data:app", "Annotated images: inspect, convert, shrink, tile, generate scenes."),
    "init": ("flyspeck.cli.init:init", "Annotated images to a recipe, every choice with its reason."),
    "auto": ("flyspeck.cli.auto:auto", "Annotated images and minutes to a detector, chosen by measuring."),
    "train": ("flyspeck.cli.train:train", "A recipe to a trained detector and its metrics."),
    "schema": ("flyspeck.cli.schema:schema", "What a recipe may say: a JSON schema for editors, or a page."),
    "distill": ("flyspeck.cli.distill:distill", "A small student that learns from a large teacher."),
    "prune": ("flyspeck.cli.prune:prune", "A trained detector without the channels that are worth least."),
    "quantise": ("flyspeck.cli.quantise:quantise", "A trained detector, to be trained on for INT8."),
    "models": ("flyspeck.cli.models:models", "The models by name, with their papers and counts."),
    "pretrain": ("flyspeck.cli.pretrain:pretrain", "Train a backbone as a classifier of small images."),
    "dpnet": ("flyspeck.cli.dpnet:dpnet", "Dynamic pooling: factor labels and the predictor."),
    "profile": ("flyspeck.cli.profile:profile", "Parameters, GFLOPs, memory and latency of a model."),
    "alpha": ("flyspeck.cli.alpha:alpha", "Fusion factors of a feature pyramid, counted from a data set."),
    "tune": ("flyspeck.cli.tune:app", "Searches that train short runs: the fusion factor by brute force."),
    "predict": ("flyspeck.cli.predict:predict", "Find objects in images of any size."),
    "export": ("flyspeck.cli.export:export", "A detector as ONNX or OpenVINO, with the same boxes."),
    "benchmark": ("flyspeck.cli.benchmark:benchmark", "What each engine costs and finds on this machine."),
    "card": ("flyspeck.cli.card:card", "A run to a small weights file with its model card."),
    "explain": ("flyspeck.cli.explain:explain", "What a model looks at: Grad-CAM, attention, teacher beside student."),
    "report": ("flyspeck.cli.report:report", "Runs to one HTML file: numbers by size, curves, worst images."),
    "eval": ("flyspeck.cli.evaluate:evaluate", "Score detections under a named protocol."),
}


class _LazyGroup(Group):
    """A group whose commands are imported on demand: `flyspeck --help` and `flyspeck data` never import torch."""

    _names_only = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in moved.VERBS:
            raise moved.moved_error(f"flyspeck {cmd_name}", moved.VERBS[cmd_name])
        if cmd_name not in VERBS:
            return None
        home, summary = VERBS[cmd_name]
        if self._names_only:
            return TyperCommand(cmd_name, help=summary)
        module, attribute = home.split(":")
        target = getattr(import_module(module), attribute)
        if not isinstance(target, typer.Typer):
            function, target = target, PlainApp(no_args_is_help=False)
            target.command(name=cmd_name, help=function.__doc__ or summary)(function)
        command = get_command(target)
        command.name = cmd_name
        take_plugins(command, cmd_name)
        add_examples(command, f"flyspeck {cmd_name}", EXAMPLES)
        return command

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """See click; names and summaries of the verbs, without importing any."""
        self._names_only = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._names_only = False

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])


app = PlainApp(name="flyspeck", cls=_LazyGroup, add_completion=True)


def _version(value: bool) -> None:
    if value:
        from flyspeck.version import VERSION

        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def root(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Find the tiny things in big images."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line of `flyspeck`; see `run_app`."""
    return run_app(app, argv)


def run_app(app: typer.Typer, argv: list[str] | None = None, *, program: str = "flyspeck") -> int:
    """Runs the command line of `program`, `sys.argv` where `argv` is None.

    Returns the exit code: 2 for a user's mistakes, 1 for a fault of the program, 130 for Ctrl-C.

    A mistake is one line on stderr; with `--debug` among the arguments, its traceback. A fault is one line too, which names the
    file that its traceback was written to.
    """
    with plain_output():
        return _run(app, argv, program)


def _run(app: typer.Typer, argv: list[str] | None, program: str) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        code = app(arguments, prog_name=program, standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except MISUSE as error:
        print(_misuse(error, program), file=sys.stderr)
        return 2
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if debug:
            raise
        where = one_line(str(error.filename or "system"), 1000)
        print(f"error: {where}: {one_line(str(error.strerror or error))}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except Exception as error:
        if debug:
            raise
        print(f"error: {_own_fault(error, program)}", file=sys.stderr)
        return 1


def _own_fault(error: Exception, program: str) -> str:
    """The line for an exception that nobody foresaw; its traceback goes to a file of its own in the temporary folder."""
    if isinstance(error, MemoryError):
        return (
            f"not enough memory{f' ({one_line(str(error), 200)})' if str(error) else ''}; see --help for what limits it"
        )
    import tempfile
    import traceback

    said = one_line(f"{type(error).__name__}: {error}", 300)
    plugin = behind(error)
    whose = f"a fault of {program}, not yours" if plugin is None else f"a fault of the plugin {plugin}"
    told = "please report" if plugin is None else "mend the plugin: see"
    try:
        number, name = tempfile.mkstemp(prefix=f"{program}-", suffix=".txt")
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{whose}: {said}; run it again with --debug and {told} what it prints"
    return f"{whose}: {said}; {told} {'it with ' if plugin is None else ''}{name}"


def _misuse(error: Any, program: str) -> str:
    """Typer's own error about a command line, in one line that says where help is; help itself where nothing was given."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return error.format_message()
    verb = error.ctx.command_path if getattr(error, "ctx", None) is not None else program
    return f"error: {' '.join(error.format_message().split()).rstrip('.')}; {verb} --help lists all options"


if __name__ == "__main__":
    sys.exit(main())
