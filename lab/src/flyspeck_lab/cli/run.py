"""`flyspeck-lab run` and `page`: tables of measurements, row by row, and the page made of them."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.shared_options import THREADS

TABLES = typer.Option(Path("benchmarks/tables"), "--tables", metavar="FOLDER", help="Folder of the tables.")
RESULTS = typer.Option(Path("benchmarks/results"), "--results", metavar="FOLDER", help="Folder of the result files.")


def run(
    names: list[str] = typer.Argument(
        None, metavar="[TABLE...]", help="Tables (benchmarks/tables/NAME.yaml, or files), or `all`."
    ),
    data: Path = typer.Option(
        Path("data"), "--data", metavar="FOLDER", help="Folder of the data sets; the table names what lies in it."
    ),
    grade: str = typer.Option("cpu", "--grade", metavar="NAME", help="Which size of the table: cpu, full, gpu, ..."),
    rows: str = typer.Option(
        "", "--rows", metavar="A,B,...", help="Only these rows (and what they need), with commas between."
    ),
    seeds: int | None = typer.Option(
        None, "--seeds", min=1, metavar="N", help="Number of seeds of each row, at most; default: all of the table's."
    ),
    minutes: float | None = typer.Option(
        None, "--minutes", min=0, metavar="N", help="Minutes to spend: after them no further row is begun."
    ),
    list_: bool = typer.Option(
        False, "--list", help="List the rows, what is done and left, what the claims will see, and stop."
    ),
    processes: int = typer.Option(
        1, "--processes", min=1, metavar="N", help="Rows run side by side: one small training does not fill a GPU."
    ),
    runs: Path = typer.Option(Path("runs/bench"), "--runs", metavar="FOLDER", help="Folder of the run folders."),
    tables: Path = TABLES,
    results: Path = RESULTS,
    threads: int | None = THREADS,
    rescore: bool = typer.Option(False, "--rescore", help="Score finished runs again instead of training more."),
) -> None:
    """Run the rows and seeds of tables that are not done yet, and judge their claims."""
    import logging

    from flyspeck.cli.values import parse_names
    from flyspeck.errors import UserError, counted
    from flyspeck_lab.page import summary
    from flyspeck_lab.power import foretold
    from flyspeck_lab.runner import Order, rejudge, rescore_table, run_tables, states
    from flyspeck_lab.table import find_tables, load_table

    if not names:
        known = ", ".join(sorted(path.stem for path in tables.glob("*.yaml")))
        raise UserError("no table named", where=tables, fix=f"all, or {known}" if known else "give a YAML file")
    wanted = [load_table(path) for path in find_tables(names, tables)]
    chosen = parse_names(rows, where="--rows") if rows else None
    if chosen and len(wanted) > 1:
        raise UserError(f"{len(wanted)} tables", where=f"--rows {rows}", fix="name the one table whose rows are meant")
    if list_:
        done = [path for path in sorted(tables.glob("*.yaml")) if (results / f"{path.stem}.json").is_file()]
        measured = [load_table(path) for path in done]
        for table in wanted:
            typer.echo(f"{table.name}: {table.title}")
            for state in states(table, grade, results, runs, rows=chosen, seeds=seeds):
                spent = f"  {state.seconds:.0f} s" if state.seconds else ""
                extra = "  extra" if state.job.row.extra else ""
                typer.echo(f"  {state.status:<9} {state.job.row.name:<28} seed {state.job.seed}{spent}{extra}")
            told = foretold(table, grade, measured, results, seeds=seeds)
            if told:
                typer.echo("  In points, by the spread of the trainings that are done:")
            for line in told:
                typer.echo(f"  {line}")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("flyspeck").setLevel(logging.INFO)
    import torch

    from flyspeck_lab.kinds import Folders

    if threads is not None:
        torch.set_num_threads(threads)
    places = Folders(data=data, runs=runs)
    if rescore:
        count = sum(rescore_table(table, grade, places=places, results_folder=results) for table in wanted)
        for table in wanted:
            rejudge(table, results)
        typer.echo(f"{counted(count, 'run')} scored again")
        return
    order = Order(grade, places, results, rows=chosen, seeds=seeds, minutes=minutes)
    if processes > 1:
        from flyspeck_lab.side_by_side import run_side_by_side

        done, left = run_side_by_side(find_tables(names, tables), order, processes=processes)
    else:
        done, left = run_tables(wanted, order)
    for table in wanted:
        rejudge(table, results)
        typer.echo(summary(table, grade, results))
    typer.echo(f"{done} done, {left} left")


def page(
    docs: Path = typer.Option(Path("docs/results.md"), "--docs", metavar="FILE", help="The page with the markers."),
    tables: Path = TABLES,
    results: Path = RESULTS,
) -> None:
    """Write the results of all tables into the page of results, between its markers."""
    from flyspeck_lab.page import write_page
    from flyspeck_lab.table import load_table

    written = write_page(docs, [load_table(path) for path in sorted(tables.glob("*.yaml"))], results)
    typer.echo(f"{docs}: {written} tables")
