"""What `flyspeck models` says of detectors that were measured: which to take, within a budget, for objects of a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import typer

from flyspeck.errors import UserError

if TYPE_CHECKING:
    from flyspeck.publish.measured import MeasuredModel

SIZES = {"tiny1": "2-8", "tiny2": "8-12", "tiny3": "12-20", "small": "20-32"}


def chosen(
    search: str, *, objects: float | None, measure: bool, max_ms: float | None, max_memory: float | None
) -> list[MeasuredModel]:
    """The measured models whose name has `search`, within the budget; with `objects`, those worth their cost for that size.

    Trained detectors come first. A budget makes each be timed here. Raises UserError where none is left.
    """
    from flyspeck.publish.measured import area_of, measured_here, measured_models, trained_models, worthwhile

    area = None if objects is None else area_of(objects)
    models = [m for m in (*trained_models(), *measured_models()) if search in m.name]
    if measure or max_ms is not None or max_memory is not None:
        done: dict[str, MeasuredModel] = {}
        for number, model in enumerate(models):
            typer.echo(f"measuring {number + 1} of {len(models)}: {model.name}", err=True)
            key = repr((model.file, model.model, model.size))
            done[key] = done.get(key) or measured_here(model)
            models[number] = _with_costs(model, done[key])
    if max_memory is not None and any(m.mb is None for m in models):
        raise UserError("this system does not tell the memory of a process", where="--max-memory", fix="leave it out")
    kept = [m for m in models if max_ms is None or (m.ms or 0) <= max_ms]
    kept = [m for m in kept if max_memory is None or (m.mb or 0) <= max_memory]
    if models and not kept:
        cheapest = min(models, key=lambda m: (m.ms or 0, m.mb or 0))
        memory = "" if cheapest.mb is None else f", {cheapest.mb:.0f} MB"
        raise UserError(
            f"no model is within the budget; the cheapest, {cheapest.name}, takes {cheapest.ms or 0:.1f} ms{memory}",
            fix="allow more, or fewer pixels",
        )
    return kept if area is None else worthwhile([m for m in kept if m.ap(area) >= 0], area)


def _with_costs(model: MeasuredModel, timed: MeasuredModel) -> MeasuredModel:
    return replace(model, ms=timed.ms, mb=timed.mb)


def plain(models: Sequence[MeasuredModel]) -> list[dict[str, Any]]:
    """As plain values."""
    return [{**asdict(model), "file": None if model.file is None else str(model.file)} for model in models]


def show(models: Sequence[MeasuredModel], *, objects: float | None) -> None:
    """A table: what each found by size, on which set, and what it costs; and what to take."""
    from rich.console import Console
    from rich.table import Table

    from flyspeck.publish.measured import area_of
    from flyspeck.train.model_config import ModelConfig

    console = Console(width=None if Console().is_terminal else 170)
    timed = any(model.ms is not None for model in models)
    table = Table(
        box=None, header_style="bold", title="Measured: AP50 in % by size of object in px", title_justify="left"
    )
    table.add_column("name", no_wrap=True)
    table.add_column("what", max_width=40)
    for heading in (*SIZES.values(), "all", "params", "GFLOPs", "at", *(("ms", "MB") if timed else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("measured on")
    table.add_column("training", max_width=40)
    starter = ModelConfig.model_fields["name"].default
    for model in models:
        aps = [f"{100 * model.ap(area):.1f}" if model.ap(area) >= 0 else "-" for area in (*SIZES, "all")]
        costs = [f"{model.parameters / 1e6:.2f} M", f"{model.gflops:.2f}", "{}x{}".format(*model.size)]
        costs += [f"{model.ms or 0:.1f}", "-" if model.mb is None else f"{model.mb:.0f}"] if timed else []
        name = f"{model.name}{' *' if model.name == starter else ''}{' (trained)' if model.file else ''}"
        table.add_row(name, model.what, *aps, *costs, model.data, model.training)
    console.print(table)
    console.print(
        "\nAP of different sets, and of trainings of different length, say nothing of each other. * is what a recipe gets that "
        "names no model;\n(trained): weights are at hand, by that name for model.start. ms and MB: --measure, or a budget "
        "(--max-ms, --max-memory).",
        highlight=False,
    )
    if objects is None:
        console.print(
            "Which to take: --objects PX shows the models that are worth their cost for objects of that size."
        )
        return
    area = area_of(objects)
    for data in dict.fromkeys(model.data for model in models):
        best = max((m for m in models if m.data == data), key=lambda m: m.ap(area))
        cost = f"{best.ms:.1f} ms" if best.ms is not None else f"{best.gflops:.2f} GFLOPs"
        console.print(
            f"take {best.name} for objects of {SIZES[area]} px: AP50 {100 * best.ap(area):.1f} % on {data}, {cost}",
            highlight=False,
        )
