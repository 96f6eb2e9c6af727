"""`flyspeck distill`: a teacher, a student that learns from it, and a table of both."""

from __future__ import annotations

import logging
from pathlib import Path

import typer


def distill(
    recipe: Path = typer.Argument(..., help="A recipe (YAML) with a section `distill`, or a run folder."),
    out: Path | None = typer.Option(None, "--out", help="Folder of all stages; default runs/NAME."),
    resume: bool = typer.Option(False, "--resume", help="Keep finished stages and go on from the last checkpoint."),
    teacher: Path | None = typer.Option(
        None, "--teacher", help="Recipe, run folder or weights; else the recipe's own."
    ),
    method: str | None = typer.Option(
        None, "--method", help="none, response, single or hierarchical; else the recipe's."
    ),
    cache_teacher: bool = typer.Option(False, "--cache-teacher", help="Compute the teacher's outputs once, in --out."),
    against: list[Path] = typer.Option([], "--against", metavar="RUN", help="Further run folders for the table."),
    set_: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Change a field: --set distill.weight=0.5."),
    print_config: bool = typer.Option(False, "--print-config", help="Print the complete recipe and stop."),
) -> None:
    """Train a student on the ground truth and on what a teacher computes; teacher first, if it is a recipe."""
    from flyspeck.train.config import dump_recipe, load_recipe

    if recipe.is_dir():
        out, recipe = out or recipe, recipe / "recipe.yaml"
    changes = [*set_]
    if teacher is not None:
        changes.append(f"distill.teacher={teacher.resolve()}")
    if method is not None:
        changes.append(f"distill.method={method}")
    wanted = load_recipe(recipe, changes)
    folder = out or Path("runs") / wanted.name
    if cache_teacher and wanted.distill is not None and wanted.distill.cache is None:
        cached = wanted.distill.model_copy(update={"cache": str((folder / "teacher_outputs").resolve())})
        wanted = wanted.model_copy(update={"distill": cached})
    if print_config:
        typer.echo(dump_recipe(wanted), nl=False)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("flyspeck").setLevel(logging.INFO)
    from flyspeck.train.distill.stages import distill as run

    table = run(wanted, folder, resume=resume, against=against)
    typer.echo(f"{folder / 'table.md'}:\n\n{table.text()}", nl=False)
