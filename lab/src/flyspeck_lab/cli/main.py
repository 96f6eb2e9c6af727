"""The entry point of `flyspeck-lab`."""

from __future__ import annotations

import sys

import typer

from flyspeck.cli.layout import PlainApp
from flyspeck.cli.main import run_app
from flyspeck_lab.cli.curve import curve
from flyspeck_lab.cli.gpu import gpu, pack
from flyspeck_lab.cli.prepare import prepare
from flyspeck_lab.cli.rows import recipe, rows
from flyspeck_lab.cli.run import page, run

PROGRAM = "flyspeck-lab"
EXAMPLES = {
    run: "flyspeck-lab run alpha --data data --grade cpu --minutes 60",
    page: "flyspeck-lab page --docs docs/results.md",
    prepare: "flyspeck-lab prepare tinyperson --root data/tinyperson --overlap 30",
    curve: "flyspeck-lab curve runs/dpnet --random 3 --oracle",
    rows: "flyspeck-lab rows 003/table4",
    recipe: "flyspeck-lab recipe 003/table4/retinanet-sm-s-alpha --out runs/recipes",
    pack: "flyspeck-lab pack --data data --out packed --megabytes 45",
    gpu: "flyspeck-lab gpu --minutes 11 --data packed --out runs/gpu/out",
}

app = PlainApp(name=PROGRAM, add_completion=True)
for verb, example in EXAMPLES.items():
    app.command(epilog=example)(verb)


@app.callback()
def root(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Measure the papers' claims: tables, their data sets, and what they compare with."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, as `flyspeck` does."""
    return run_app(app, argv, program=PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
