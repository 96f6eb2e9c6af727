"""`flyspeck-lab rows` and `recipe`: every row of the papers' tables, and the recipe of one."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.shared_options import JSON
from flyspeck_lab.cli.run import RESULTS, TABLES


def rows(
    wanted: str = typer.Argument("", metavar="[PAPER[/TABLE]]", help="003, or 003/table4; without it, all papers."),
    runs: Path = typer.Option(Path("runs"), "--runs", metavar="FOLDER", help="Folder of the run folders."),
    tables: Path = TABLES,
    results: Path = RESULTS,
    as_json: bool = JSON,
) -> None:
    """List every row of the papers' tables: what was printed, whether it runs, what was measured here."""
    import json

    from flyspeck_lab.paper_listing import described, lines
    from flyspeck_lab.paper_rows import all_rows

    found = list(all_rows(wanted.rstrip("/")))
    places = {"tables": tables, "results": results, "runs": runs}
    if as_json:
        typer.echo(json.dumps([described(one, **places) for one in found], ensure_ascii=False))
        return
    for line in lines(found, **places):
        typer.echo(line)


def recipe(
    row: str = typer.Argument(..., metavar="PAPER/TABLE/ROW", help="As `flyspeck-lab rows` lists it."),
    out: Path = typer.Option(
        Path("runs/recipes"), "--out", metavar="FOLDER", help="Where to write: the folder of the recipes."
    ),
) -> None:
    """Write the complete recipe of a row, every field explained, and those of the rows that it starts from."""
    from flyspeck_lab.paper_recipes import write_recipes
    from flyspeck_lab.paper_rows import find

    for path in write_recipes(find(row), out):
        typer.echo(path)
