"""`flyspeck dpnet`: labels and predictor of a detector with dynamic pooling."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.moved import keep_moved

dpnet = typer.Typer(help="Dynamic pooling (DPNet): factor labels and the predictor.", no_args_is_help=True)


@dpnet.command()
def labels(
    run: Path = typer.Argument(..., help="Run folder of a recipe with a section `dynamic`."),
    on: str = typer.Option("train", "--on", help="train or val."),
    guidance: bool = typer.Option(True, "--guidance/--no-guidance", help="The guidance loss, or the detector's own."),
    ratio: float = typer.Option(1.1, "--ratio", min=1, help="T: good enough is up to so many times the least loss."),
    slack: float = typer.Option(
        None, "--slack", min=0, help="Instead of --ratio: up to so much more in the sum over an image's objects."
    ),
    again: bool = typer.Option(False, "--again", help="Compute them anew, over those that are there."),
    device: str = typer.Option("cpu", "--device", help="cpu, cuda, …"),
    as_json: bool = typer.Option(False, "--json", help="Print json: losses and labels of every image."),
) -> None:
    """How many images want which factor, and why. Computed once, kept in the run folder."""
    from flyspeck.errors import UserError
    from flyspeck.train.dynamic_fit import open_run
    from flyspeck.train.dynamic_labels import summary

    if on not in ("train", "val"):
        raise UserError(f"no set '{on}'", where="--on", fix="train or val")
    found = open_run(run).losses(on, guidance=guidance, again=again, device=device)
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
    run: Path = typer.Argument(..., help="Run folder of a recipe with a section `dynamic`."),
    out: Path = typer.Option(None, "--out", help="Run folder of detector and predictor; default RUN/dpnet."),
    set_: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="A field of dynamic.predictor: --set epochs=80."
    ),
    device: str = typer.Option("cpu", "--device", help="cpu, cuda, …"),
) -> None:
    """Train the factor predictor on the frozen detector; leaves a run folder with both, measured."""
    import logging

    import numpy as np
    import yaml

    from flyspeck.errors import UserError
    from flyspeck.train.config import parse_recipe
    from flyspeck.train.dynamic_fit import fit_predictor, measure_routed, open_run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    opened = open_run(run)
    recipe = opened.recipe.model_dump(mode="json")
    settings = recipe["dynamic"]["predictor"] or {}
    for assignment in set_:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"'{assignment}' sets nothing", where="--set", fix="write key=value")
        settings[key.strip()] = yaml.safe_load(value)
    recipe["dynamic"]["predictor"] = settings
    section = parse_recipe(recipe, where=run).dynamic
    assert section is not None
    assert section.predictor is not None
    folder, router = fit_predictor(opened, section.predictor, out=out, device=device)
    figures = measure_routed(opened, folder)
    shares = router.taken / max(1, int(np.sum(router.taken)))
    taken = ", ".join(f"{factor:g}: {share:.0%}" for factor, share in zip(router.switch.factors, shares, strict=True))
    typer.echo(f"{folder}: images by factor {taken}")
    best = opened.recipe.evaluate.best.partition("@")[0]
    if best in figures:
        typer.echo(f"  {best}  {100 * figures[best]:.1f}")


keep_moved(dpnet, "curve", old="flyspeck dpnet curve", new="flyspeck-lab curve")
