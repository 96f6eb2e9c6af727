"""`flyspeck models`: what the zoo has."""

from __future__ import annotations

from typing import Any

import typer

from flyspeck.cli.plugin_option import name_waiting_plugins
from flyspeck.cli.shared_options import JSON


def models(
    search: str = typer.Argument("", metavar="[TEXT]", help="Show only names that contain this."),
    recount: bool = typer.Option(
        False, "--recount", help="Count each model anew and show it beside the published numbers."
    ),
    objects: float = typer.Option(
        None, "--objects", metavar="PX", help="Size of your objects: show the models worth their cost for it."
    ),
    measure: bool = typer.Option(False, "--measure", help="Time the measured models on this machine's CPU."),
    max_ms: float = typer.Option(None, "--max-ms", min=0, metavar="MS", help="Budget of time for an image, here."),
    max_memory: float = typer.Option(None, "--max-memory", min=0, metavar="MB", help="Budget of memory for an image."),
    as_json: bool = JSON,
) -> None:
    """Which model to take: what was measured, by size of object and cost; then all names, with their papers' counts."""
    from flyspeck.cli.models_measured import chosen, plain, show
    from flyspeck.models.backbones.transformers_models import NAMES, PREFIX
    from flyspeck.models.listed import LISTED
    from flyspeck.models.names import DYNAMIC
    from flyspeck.models.zoo import BACKBONES, DETECTORS, NECKS, SHORT
    from flyspeck.plugins import waiting

    measured = chosen(search, objects=objects, measure=measure, max_ms=max_ms, max_memory=max_memory)
    asked = objects is not None or measure or max_ms is not None or max_memory is not None
    rows = [_row(entry, recount) for entry in LISTED if search in entry.name]
    if as_json:
        import json

        parts = {"detectors": list(DETECTORS), "backbones": list(BACKBONES), "necks": list(NECKS), "short": SHORT}
        typer.echo(json.dumps({"measured": plain(measured), "models": rows, **parts, "plugins": waiting()}))
        return
    if measured:
        show(measured, objects=objects)
    if asked:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", title="\nPublished: the papers' counts", title_justify="left")
    for heading in ("name", "seed", "paper", "size", "convention", "published params", "GFLOPs"):
        table.add_column(
            heading, justify="right" if heading in ("size", "published params", "GFLOPs") else "left", no_wrap=True
        )
    if recount:
        table.add_column("counted here: params", justify="right")
        table.add_column("GFLOPs", justify="right")
    for row in rows:
        cells = [row["name"], row["seed"], row["paper"], "{}x{}".format(*row["size"]), row["convention"]]
        inexact = "" if row["reproduced"] else "~"
        gflops = f"{inexact}{row['published_gflops']:.2f}" if row["published_gflops"] else "-"
        cells += [inexact + _millions(row["published_params"]), gflops]
        if recount:
            cells += [_millions(row["params"]), f"{row['gflops']:.3f}"]
        table.add_row(*cells)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    if not all(row["reproduced"] for row in rows):
        console.print("\n~ published, but reproduced to 3 % only: --recount shows what is built here", highlight=False)
    if any(row["mean_of_factors"] for row in rows):
        console.print(
            f"{DYNAMIC} the GFLOPs are a mean over a data set's factors; counted is the largest", highlight=False
        )
    if not search:
        console.print("\nAny DETECTOR:BACKBONE[:NECK] of these parts builds:")
        for label, known in (("detectors", DETECTORS), ("backbones", BACKBONES), ("necks", NECKS)):
            console.print(f"  {label}: {', '.join(known)}", highlight=False)
        console.print("  and as backbones timm's models with a pyramid (extra timm): timm/NAME", highlight=False)
        published = ", ".join(f"{PREFIX}{name}" for name in NAMES)
        console.print(f"  and those of published detection transformers (extra detr): {published}", highlight=False)
        finer = [name for name, entry in BACKBONES.items() if min(entry.strides) <= 2]
        console.print(f"  backbones with a map of stride 2 (model.levels: 1-5): {', '.join(finer)}", highlight=False)
        console.print(f"  short: {', '.join(f'{name} is {whole}' for name, whole in SHORT.items())}", highlight=False)
        name_waiting_plugins()


def _millions(count: float | None) -> str:
    return "-" if not count else f"{count / 1e6:.2f} M"


def _row(entry: Any, count: bool) -> dict[str, Any]:
    row = {
        "name": entry.name,
        "seed": entry.seed,
        "paper": entry.paper,
        "size": entry.size,
        "convention": entry.convention,
        "published_params": entry.params or None,
        "published_gflops": entry.gflops or None,
        "mean_of_factors": entry.mean_of_factors,
        "reproduced": entry.tolerance <= 1e-3,
    }
    if count:
        import torch

        from flyspeck.models.build import build
        from flyspeck.models.profile import profile

        with torch.device("meta"):
            model = build(entry.name)
        found = profile(model, entry.size, name=entry.name, convention=entry.convention)
        row |= {"params": found.params, "gflops": found.gflops}
    return row
