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
    if not print_config:
        _check_data(recipe, set_)
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


def _check_data(recipe: Path, changes: list[str]) -> None:
    """Raises UserError for a recipe that is no YAML, or whose data are not there; all else is judged by those who know the
    fields, which takes torch.
    """
    from flyspeck.plain_yaml import read_yaml
    from flyspeck.plan.usable import check_there

    path = recipe / "recipe.yaml" if recipe.is_dir() else recipe
    content = read_yaml(path)[0] if path.is_file() else None
    # What is wrong with the plugins that it needs is said first.
    data = content.get("data") if isinstance(content, dict) and "plugins" not in content else None
    if isinstance(data, dict) and not any(change.startswith("data") for change in changes):
        places = [data.get(key) for key in ("train", "val")]
        check_there(*(path.parent / Path(place).expanduser() for place in places if isinstance(place, str)))
