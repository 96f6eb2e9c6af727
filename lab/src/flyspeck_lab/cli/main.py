"""The entry point of `flyspeck-lab`."""

from __future__ import annotations

import sys

import typer

from flyspeck.cli.main import run_app
from flyspeck_lab.cli.curve import curve
from flyspeck_lab.cli.prepare import prepare
from flyspeck_lab.cli.run import page, run

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
for verb in (run, page, prepare, curve):
    app.command()(verb)


@app.callback()
def root(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Measure the papers' claims: tables, their data sets, and what they compare with."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, as `flyspeck` does."""
    return run_app(app, argv)


if __name__ == "__main__":
    sys.exit(main())
