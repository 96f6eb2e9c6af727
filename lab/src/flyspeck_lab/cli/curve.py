"""`flyspeck-lab curve`: what the choice of factors trades."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.shared_options import DEVICE, JSON


def curve(
    run: Path = typer.Argument(
        ..., metavar="RUN", help="Run folder that `flyspeck dpnet fit` left (RUN/dpnet), or RUN itself."
    ),
    out: Path = typer.Option(
        None,
        "--out",
        metavar="FOLDER",
        help="Where to write: the folder of tradeoff.json and .png; default: the run's.",
    ),
    random: int = typer.Option(
        3, "--random", min=0, metavar="N", help="Random choices at the same cost, so many draws."
    ),
    oracle: bool = typer.Option(
        False, "--oracle", help="Also choices by the labels of the validation set (slow once)."
    ),
    slack: float = typer.Option(
        None,
        "--slack",
        min=0,
        metavar="LOSS",
        help="Loss that may be added to the sum over an image's objects by the cheapest factor of --oracle; default: "
        "the predictor's own slack.",
    ),
    metric: str = typer.Option(
        None, "--metric", metavar="NAME", help="Metric to compare; default: the recipe's evaluate.best."
    ),
    points: int = typer.Option(20, "--points", min=2, metavar="N", help="Points of the curve."),
    bootstrap: int = typer.Option(
        500, "--bootstrap", min=0, metavar="N", help="Resamples of the images for the interval; 0 leaves it out."
    ),
    seed: int = typer.Option(0, "--seed", min=0, metavar="N", help="Seed of random choices and resamples."),
    device: str = DEVICE,
    as_json: bool = JSON,
) -> None:
    """Accuracy against GFLOPs by threshold, against random choices and single factors; no network runs again."""
    import json

    from flyspeck.errors import UserError
    from flyspeck.files import write_json
    from flyspeck.train.dynamic_fit import FOLDER, open_run
    from flyspeck_lab.dynamic_curve import lines, tradeoff
    from flyspeck_lab.dynamic_run import open_candidates, oracle_places
    from flyspeck_lab.tradeoff_plot import plot_tradeoff

    if slack is not None and not oracle:
        raise UserError("a slack of no oracle", where="--slack", fix="give --oracle too")
    folder = run / FOLDER if (run / FOLDER / "best.safetensors").is_file() else run
    opened = open_run(folder)
    candidates, probabilities, decision = open_candidates(opened, metric=metric)
    oracles = oracle_places(opened, candidates.annotations, slack=slack, device=device) if oracle else {}
    found = tradeoff(
        candidates, probabilities, decision=decision, oracles=oracles,
        draws=random, steps=points, samples=bootstrap, seed=seed,
    )  # fmt: skip
    where = out or folder
    where.mkdir(parents=True, exist_ok=True)
    write_json(where / "tradeoff.json", found)
    try:
        plot_tradeoff(found, where / "tradeoff.png")
    except UserError as error:
        typer.echo(f"note: not drawn: {error}", err=True)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for line in lines(found):
        typer.echo(line)
    typer.echo(f"{where}: tradeoff.json, tradeoff.png")
