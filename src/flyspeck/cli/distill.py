"""`flyspeck distill`: a teacher, a student that learns from it, and a table of both."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import typer

from flyspeck.cli.shared_options import DEVICE, PRINT_CONFIG, RESUME, SET, training_device
from flyspeck.cli.terminal import loading
from flyspeck.train.distill.method_names import MethodName


def distill(
    recipe: Path = typer.Argument(
        ..., metavar="RECIPE", help="A recipe (YAML) with a section `distill`, or a run folder."
    ),
    out: Path | None = typer.Option(
        None, "--out", metavar="FOLDER", help="Where to write: the folder of all stages; default: runs/NAME."
    ),
    resume: bool = RESUME,
    teacher: Path | None = typer.Option(
        None, "--teacher", metavar="PATH", help="Recipe, run folder or weights; default: the recipe's own."
    ),
    method: MethodName | None = typer.Option(
        None, "--method", help="What the student learns from; default: the recipe's."
    ),
    cache_teacher: bool = typer.Option(False, "--cache-teacher", help="Compute the teacher's outputs once, in --out."),
    compare: list[Path] = typer.Option(
        [], "--compare", metavar="RUN", help="A further run folder for the table; may be repeated."
    ),
    set_: list[str] = SET,
    print_config: bool = PRINT_CONFIG,
    device: str = DEVICE,
) -> None:
    """Train a student on the ground truth and on what a teacher computes; teacher first, if it is a recipe."""
    from flyspeck.train.config import load_recipe

    if recipe.is_dir():
        out, recipe = out or recipe, recipe / "recipe.yaml"
    changes = [*set_]
    if teacher is not None:
        changes.append(
            f"distill.teacher={json.dumps(str(teacher.resolve()))}"
        )  # a path may hold what YAML reads as more
    if method is not None:
        changes.append(f"distill.method={json.dumps(method)}")
    wanted = load_recipe(recipe, changes)
    folder = out or Path("runs") / wanted.name
    if cache_teacher and wanted.distill is not None and wanted.distill.cache is None:
        cached = wanted.distill.model_copy(update={"cache": str((folder / "teacher_outputs").resolve())})
        wanted = wanted.model_copy(update={"distill": cached})
    if print_config:
        from flyspeck.train.build import check_buildable
        from flyspeck.train.reference import commented

        check_buildable(wanted.model)
        typer.echo(commented(wanted), nl=False)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("flyspeck").setLevel(logging.INFO)
    with loading("distill"):
        from flyspeck.train.distill.stages import distill as run

    with training_device(device):
        table = run(wanted, folder, resume=resume, against=compare)
    typer.echo(f"{folder / 'table.md'}:\n\n{table.text()}", nl=False)
