"""`flyspeck tune`: searches that train short runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flyspeck.cli.layout import PlainApp
from flyspeck.cli.shared_options import DEVICE, JSON, SET, training_device
from flyspeck.cli.values import parse_numbers
from flyspeck.files import write_json

if TYPE_CHECKING:
    from flyspeck.train.config import Recipe

app = PlainApp(help="Searches that train short runs.")


@app.callback()
def tune() -> None:
    """Search for a setting by training short runs."""


@app.command("alpha")
def alpha(
    recipe: Path = typer.Argument(
        ..., metavar="RECIPE", help="A recipe (YAML); set its epochs short with --set train.epochs=2."
    ),
    grid: str = typer.Option(
        "0,0.25,0.5,0.75,1", "--grid", metavar="A,B,...", help="Fusion factors to try, the same on every edge."
    ),
    statistic: bool = typer.Option(
        True, "--statistic/--no-statistic", help="Also run the statistical factors of the training set (S-alpha)."
    ),
    seeds: int = typer.Option(1, "--seeds", min=1, metavar="N", help="Number of seeds that each factor is run with."),
    metric: str = typer.Option(
        "", "--metric", metavar="NAME", help="Metric to compare; default: the recipe's evaluate.best."
    ),
    out: Path | None = typer.Option(
        None, "--out", metavar="FOLDER", help="Where to write: the folder of the runs; default: runs/NAME-alpha."
    ),
    set_: list[str] = SET,
    as_json: bool = JSON,
    device: str = DEVICE,
) -> None:
    """Train a recipe at every fusion factor of a grid and plot the AP against it (brute force)."""
    import json
    import logging
    from dataclasses import asdict

    from flyspeck.errors import UserError
    from flyspeck.train.config import load_recipe
    from flyspeck.train.tune import best_factor, count_edges, mean_by_factor, tune_fusion

    factors = sorted(set(parse_numbers(grid, where="--grid", least=0, below=100, example="0,0.5,1")))
    wanted = load_recipe(recipe, set_)
    if wanted.model.fusion is not None:
        raise UserError(
            "the recipe sets model.fusion, which this search varies", where=recipe, fix="--set model.fusion=null"
        )
    folder = out or Path("runs") / f"{wanted.name}-alpha"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with training_device(device):
        trials = tune_fusion(
            wanted,
            folder,
            [*factors, "statistic"] if statistic else factors,
            run=_train,
            seeds=range(seeds),
            num_edges=count_edges(wanted.model),
        )
    metric = metric or wanted.evaluate.best
    means = mean_by_factor(trials, metric)
    best = best_factor(means, metric)
    summary = {
        "metric": metric,
        "best": best,
        "means": {str(key): value[0] for key, value in means.items()},
        "trials": [asdict(trial) for trial in trials],
    }
    write_json(folder / "alpha.json", summary)
    plotted = _plot(means, folder / "alpha.png", metric)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    for key, (mean, low, high) in means.items():
        spread = f"  ({100 * low:.1f} to {100 * high:.1f})" if seeds > 1 else ""
        typer.echo(f"  {key!s:>9}  {metric} {100 * mean:5.1f}{spread}{'  <- best' if key == best else ''}")
    typer.echo(f"{folder / 'alpha.json'}{f', {plotted}' if plotted else ''}")


def _train(recipe: Recipe, folder: Path) -> dict[str, float]:
    """One run, resumed where it was broken off."""
    from flyspeck.train.run import begun, train

    typer.echo(f"{folder.name}: fusion {recipe.model.fusion}, seed {recipe.train.seed}", err=True)
    return train(recipe, folder, resume=begun(folder))


def _plot(means: dict, path: Path, metric: str) -> Path | None:
    """The plot's path, or None with a note where matplotlib is missing: the metrics are not lost for it."""
    from flyspeck.errors import UserError
    from flyspeck.report.alpha import plot_factors

    try:
        plot_factors(means, path, metric=metric)
    except UserError as error:
        typer.echo(f"no plot: {error}", err=True)
        return None
    return path


@app.command("lr")
def learning_rate(
    recipe: Path = typer.Argument(..., metavar="RECIPE", help="A recipe (YAML)."),
    steps: int = typer.Option(100, "--steps", min=20, metavar="N", help="Training steps, each at a higher rate."),
    low: float | None = typer.Option(
        None, "--low", min=1e-12, metavar="RATE", help="Rate of the first step; default: 1e-5 for SGD, 1e-6 for Adam."
    ),
    high: float | None = typer.Option(
        None, "--high", min=1e-12, metavar="RATE", help="Rate of the last step; default: 1 for SGD, 0.1 for Adam."
    ),
    out: Path | None = typer.Option(
        None,
        "--out",
        metavar="FOLDER",
        help="Where to write: the folder of lr.json and lr.html; default: runs/NAME-lr.",
    ),
    set_: list[str] = SET,
    as_json: bool = JSON,
    device: str = DEVICE,
) -> None:
    """Find a learning rate: a short training whose rate rises until the loss grows; prints the value for the recipe."""
    import json
    from dataclasses import asdict

    from flyspeck.errors import UserError
    from flyspeck.files import local_output
    from flyspeck.report.rates import rate_page
    from flyspeck.train.config import load_recipe
    from flyspeck.train.rate_search import find_rate
    from flyspeck.train.sections import MOST_OF_ADAM

    wanted = load_recipe(recipe, set_)
    folder = local_output(out or Path("runs") / f"{wanted.name}-lr")
    usual = (1e-5, 1.0) if wanted.train.optimizer == "sgd" else (1e-6, 0.1)
    first, last = low or usual[0], high or usual[1]
    if first >= last:
        raise UserError(f"rates from {first:g} to {last:g}", where="--low", fix="give the lower one first")

    def tell(step: int, rate: float, loss: float) -> None:
        if step % max(1, steps // 10) == 0:
            typer.echo(f"  step {step}/{steps} rate {rate:.1e} loss {loss:.3f}", err=True)

    with training_device(device):
        found = find_rate(wanted, low=first, high=last, steps=steps, tell=tell)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "lr.json", asdict(found))
    page = rate_page(
        found.rates,
        found.losses,
        found.smoothed,
        folder / "lr.html",
        name=wanted.name,
        lr=found.lr,
        lowest=found.lowest,
    )
    if as_json:
        typer.echo(json.dumps({"lr": found.lr, "lowest": found.lowest, "steps": len(found.rates)}))
        return
    typer.echo(
        f"train.lr={found.lr:g}: the loss falls fastest there; it is lowest at {found.lowest:.1e}, and grows beyond"
    )
    # A recipe that names no optimizer would be asked which one such a rate is meant for.
    own = wanted.train.optimizer
    named = f"--set train.optimizer={own} " if own != "sgd" and found.lr > MOST_OF_ADAM else ""
    typer.echo(f"the recipe has {wanted.train.lr:g}: {named}--set train.lr={found.lr:g} changes it; the curve: {page}")


@app.command("look")
def look(
    run: Path = typer.Argument(..., metavar="RUN", help="A run folder; its recipe names the images."),
    steps: int = typer.Option(600, "--steps", min=1, metavar="N", help="Training steps of 16 windows."),
    shrink: int = typer.Option(
        2, "--shrink", min=1, metavar="N", help="Detector pixels along a side for each of the look's."
    ),
    lost: float = typer.Option(
        0.05, "--lost", metavar="SHARE", help="Share of found validation objects that it may pass over."
    ),
) -> None:
    """Train the first look that lets `predict --skip` pass over empty tiles; writes look.safetensors into the run."""
    from flyspeck.data.bands import rule_of
    from flyspeck.errors import UserError
    from flyspeck.evaluate import DetectionTable
    from flyspeck.train.checkpoint import load_weights, weights_file
    from flyspeck.train.config import load_recipe
    from flyspeck.train.inputs import enlargement, read_sets, spread
    from flyspeck.train.presence import LOOK_FILE, LookSettings, found_objects, save_look, train_look

    if not 0 <= lost < 1:
        raise UserError(f"a share of {lost}", where="--lost", fix="choose one from 0 to below 1")
    if not (run / "recipe.yaml").is_file():
        raise UserError("no run folder with a recipe.yaml", where=run)
    data = load_recipe(run / "recipe.yaml").data
    train, val = read_sets(data)
    _, description = load_weights(weights_file(run))
    settings = LookSettings(shrink=shrink, steps=steps, lost=lost)
    val = spread(val, settings.max_images)
    results = run / "detections.json"
    findable = found_objects(val, DetectionTable.from_coco(results, val)) if results.is_file() else None
    network, calibration = train_look(
        train,
        val,
        mean=description["mean"],
        std=description["std"],
        rule=rule_of(description),
        enlarge=enlargement(data),
        settings=settings,
        findable=findable,
        progress=lambda step, loss: typer.echo(f"  step {step}/{steps} loss {loss:.3f}"),
    )
    save_look(run / LOOK_FILE, network, settings, calibration)
    whose = "validation objects that the detector finds" if results.is_file() else "validation objects"
    kept = f", {100 * calibration.empty_kept:.0f} % of {calibration.empty_windows} empty windows run"
    typer.echo(
        f"{run / LOOK_FILE}: threshold {calibration.threshold:.3f}, passes over {100 * calibration.lost:.2f} % of "
        f"{calibration.objects} {whose}, each taken alone{kept if calibration.empty_windows else ''}"
    )
