"""`flyspeck dpnet`: labels and predictor of a detector with dynamic pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from flyspeck.cli.layout import PlainApp
from flyspeck.cli.moved import keep_moved
from flyspeck.cli.shared_options import DEVICE, JSON, SET, training_device

dpnet = PlainApp(help="Dynamic pooling (DPNet): factor labels and the predictor.")

PREDICTOR = "dynamic.predictor."
"""Where a recipe has the fields that `fit` may still change."""


@dpnet.command()
def labels(
    run: Path = typer.Argument(..., metavar="RUN", help="Run folder of a recipe with a section `dynamic`."),
    part: Literal["train", "val"] = typer.Option("train", "--part", help="The set whose images are labelled."),
    guidance: bool = typer.Option(True, "--guidance/--no-guidance", help="The guidance loss, or the detector's own."),
    positives: Literal["best", "matched"] = typer.Option(
        "best", "--guidance-positives", help="Of the guidance loss: as dynamic.predictor.positives in a recipe."
    ),
    folds: int = typer.Option(
        1,
        "--folds",
        min=1,
        max=100,
        metavar="N",
        help="Folds of the training set: so many detectors are trained, each labels the part that it has not seen.",
    ),
    ratio: float = typer.Option(
        1.1, "--ratio", min=1, metavar="FACTOR", help="T: good enough is up to so many times the least loss."
    ),
    slack: float = typer.Option(
        None,
        "--slack",
        min=0,
        metavar="LOSS",
        help="Loss that may be added to the sum over an image's objects, instead of --ratio.",
    ),
    again: bool = typer.Option(False, "--again", help="Compute them anew, over those that are there."),
    device: str = DEVICE,
    as_json: bool = JSON,
) -> None:
    """How many images want which factor, and why. Computed once, kept in the run folder."""
    from flyspeck.errors import UserError
    from flyspeck.train.dynamic_fit import open_run
    from flyspeck.train.dynamic_labels import LossKind, summary
    from flyspeck.train.run import train_without

    if positives == "matched" and not guidance:
        raise UserError(
            "positives of a loss that has none", where="--guidance-positives", fix="leave out --no-guidance"
        )
    if folds > 1 and part == "val":
        raise UserError("no detector has learnt validation images", where="--folds", fix="leave it out")
    kind = LossKind(guidance, positives, folds)
    with training_device(device):
        found = open_run(run).losses(part, kind=kind, again=again, device=device, train_without=train_without)
    if as_json:
        import json

        good, wanted = found.labels(ratio, slack=slack).tolist(), found.wanted(ratio, slack=slack).tolist()
        rows = zip(found.image_ids, found.objects.tolist(), found.losses.tolist(), good, wanted, strict=True)
        images = [
            {"image_id": i, "objects": n, "losses": loss, "good_enough": yes, "cheapest": found.factors[place]}
            for i, n, loss, yes, place in rows
        ]
        typer.echo(
            json.dumps(
                {
                    "factors": found.factors,
                    "positives": found.kind.positives,
                    "folds": found.kind.folds,
                    "ratio": None if slack is not None else ratio,
                    "slack": slack,
                    "images": images,
                }
            )
        )
        return
    for line in summary(found, ratio=ratio, slack=slack):
        typer.echo(line)


@dpnet.command()
def fit(
    run: Path = typer.Argument(..., metavar="RUN", help="Run folder of a recipe with a section `dynamic`."),
    out: Path = typer.Option(
        None, "--out", metavar="FOLDER", help="Where to write: the run folder of both; default: RUN/dpnet."
    ),
    set_: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Train the factor predictor on the frozen detector; leaves a run folder with both, measured."""
    import logging

    import numpy as np

    from flyspeck.errors import UserError
    from flyspeck.plain_yaml import Places, set_value
    from flyspeck.train.config import parse_recipe
    from flyspeck.train.dynamic_fit import fit_predictor, measure_routed, open_run
    from flyspeck.train.run import train_without

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    opened = open_run(run)
    recipe = opened.recipe.model_dump(mode="json")
    recipe["dynamic"]["predictor"] = recipe["dynamic"]["predictor"] or {}
    places = Places(run)
    for assignment in set_:
        if not assignment.strip().startswith(PREDICTOR):
            fix = f"only fields of {PREDICTOR[:-1]} change now, as in --set {PREDICTOR}epochs=80"
            raise UserError(f"'{assignment.partition('=')[0].strip()}' is fixed by the run", where="--set", fix=fix)
        set_value(recipe, places, assignment)
    section = parse_recipe(recipe, locate=places).dynamic
    assert section is not None
    assert section.predictor is not None
    with training_device(device):
        folder, router = fit_predictor(opened, section.predictor, out=out, device=device, train_without=train_without)
    metrics = measure_routed(opened, folder)
    shares = router.taken / max(1, int(np.sum(router.taken)))
    taken = ", ".join(f"{factor:g}: {share:.0%}" for factor, share in zip(router.switch.factors, shares, strict=True))
    typer.echo(f"{folder}: images by factor {taken}")
    best = opened.recipe.evaluate.best.partition("@")[0]
    if best in metrics:
        typer.echo(f"  {best}  {100 * metrics[best]:.1f}")


keep_moved(dpnet, "curve", old="flyspeck dpnet curve", new="flyspeck-lab curve")
