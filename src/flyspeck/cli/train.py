"""`flyspeck train`: trains what a recipe says, and leaves a run folder."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import typer

from flyspeck.cli.shared_options import DEVICE, MINUTES, PRINT_CONFIG, RESUME, SET, training_device
from flyspeck.cli.terminal import loading
from flyspeck.errors import UserError


def train(
    recipe: Path = typer.Argument(..., metavar="RECIPE", help="A recipe (YAML), or a run folder to go on with."),
    out: Path | None = typer.Option(
        None, "--out", metavar="FOLDER", help="Where to write: the run folder; default: runs/NAME."
    ),
    minutes: float | None = MINUTES,
    resume: bool = RESUME,
    finish: bool = typer.Option(
        False, "--finish", help="End a run that was stopped: only bring its learning rate down (train.anneal)."
    ),
    set_: list[str] = SET,
    print_config: bool = PRINT_CONFIG,
    device: str = DEVICE,
) -> None:
    """Train a detector as a recipe says."""
    from flyspeck.plan.voice import minutes_of

    if not recipe.exists():  # before torch is loaded, which takes seconds
        raise UserError("no such recipe", where=recipe, fix="give a YAML file; recipes/ has examples")
    minutes = None if minutes is None else minutes_of(minutes)
    with nullcontext() if print_config else loading("train"):
        from flyspeck.train.trained import read_recipe
        from flyspeck.train.trained import train as run

    wanted, folder = read_recipe(recipe, set_ if minutes is None else [*set_, f"train.minutes={minutes}"])
    if print_config:
        from flyspeck.train.build import check_buildable
        from flyspeck.train.reference import commented

        check_buildable(wanted.model)
        typer.echo(commented(wanted), nl=False)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("flyspeck").setLevel(logging.INFO)
    with training_device(device):
        done = run(wanted, out=out or folder, resume=resume, finish=finish)
    width = max(map(len, done.metrics), default=0)
    typer.echo(f"{done.folder}: best weights, protocol {wanted.evaluate.protocol}")
    for name, value in done.metrics.items():
        typer.echo(f"  {name:<{width}}  {'-' if value < 0 else f'{100 * value:.1f}'}")
