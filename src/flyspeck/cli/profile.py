"""`flyspeck profile`: what a model costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from flyspeck.cli.shared_options import DEVICE, JSON, THREADS, WIDTH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from flyspeck.models.profile import Profile


def profile(
    names: list[str] = typer.Argument(..., metavar="NAME|RECIPE...", help="Zoo names or recipes (.yaml)."),
    size: str = typer.Option(
        "", "--size", metavar="HxW", help="Image size in pixels; default: that of the model's published counts."
    ),
    convention: Literal["macs", "mmcv", "thop", "ptflops"] | None = typer.Option(
        None, "--convention", help="What counts as a FLOP; default: as in the model's paper."
    ),
    num_classes: int | None = typer.Option(
        None, "--num-classes", min=1, metavar="N", help="Foreground classes; default: as published (1; SSD: 80)."
    ),
    levels: str | None = typer.Option(
        None, "--levels", metavar="FROM-TO", help="Pyramid levels, such as 2-6, 1-5 or 3-7: level k has stride 2^k."
    ),
    width: float = WIDTH,
    channels: int | None = typer.Option(
        None,
        "--channels",
        min=4,
        metavar="N",
        help="Channels of neck and head; without it the backbone's own: mostly 256.",
    ),
    frozen_stages: int | None = typer.Option(
        None, "--frozen-stages", min=0, metavar="N", help="Count as frozen: 0 the stem, 1 also stage 1, ..."
    ),
    frozen_norm: bool = typer.Option(False, "--frozen-norm", help="Count the backbone's norms as frozen."),
    latency: bool = typer.Option(False, "--latency", help="Also time the model."),
    rounds: int = typer.Option(20, "--rounds", min=2, metavar="N", help="Timed rounds: passes of the model."),
    threads: int | None = THREADS,
    device: str = DEVICE,
    plot: Path | None = typer.Option(
        None, "--plot", metavar="FILE", help="Write the share of GFLOPs by stage as an image."
    ),
    as_json: bool = JSON,
) -> None:
    """Parameters, GFLOPs by part and by stage under a named convention, memory, latency."""
    from dataclasses import replace

    import torch

    from flyspeck.cli.values import parse_size
    from flyspeck.devices import torch_device
    from flyspeck.models.backbones.freezing import freeze_norms, freeze_stages
    from flyspeck.models.detector import Detector
    from flyspeck.models.listed import default_convention, default_size
    from flyspeck.models.profile import measure_latency
    from flyspeck.models.profile import profile as count

    place = str(torch_device(device)) if latency else "cpu"
    found, by_factor, notes = [], [], []
    for name in names:
        image = parse_size(size) if size else default_size(name)
        with torch.device("meta"):
            model = _build(name, classes=num_classes, levels=levels, width=width, channels=channels)
        backbone = model.backbone if isinstance(model, Detector) else model
        if frozen_stages is not None:
            freeze_stages(backbone, frozen_stages)  # type: ignore[arg-type]
        if frozen_norm:
            freeze_norms(backbone)
        result = count(model, image, name=name, convention=convention or default_convention(name))
        if latency:
            real = _build(name, classes=num_classes, levels=levels, width=width, channels=channels)
            result = replace(result, latency=measure_latency(real, image, runs=rounds, threads=threads, device=place))
        found.append(result)
        notes.append(_grown(name, image))
        by_factor.append(_factors(model, image, name=name, convention=result.convention))
    if plot is not None:
        from flyspeck.report.stage_shares import plot_stage_shares

        plot_stage_shares(found, plot)
    if as_json:
        import json

        content = [
            {**result.to_json(), **({} if factors is None else factors)}
            for result, factors in zip(found, by_factor, strict=True)
        ]
        typer.echo(json.dumps(content[0] if len(content) == 1 else content))
    else:
        for result, factors, note in zip(found, by_factor, notes, strict=True):
            _print(result)
            if note:
                typer.echo(note)
            if factors is not None:
                _print_factors(factors)


def _build(name: str, *, classes: int | None, levels: str | None, width: float, channels: int | None) -> nn.Module:
    from flyspeck.models.build import build

    if not name.endswith((".yaml", ".yml")):
        return build(name, classes=_class_names(classes), levels=levels, width=width, channels=channels)
    from flyspeck.train.build import build_detector
    from flyspeck.train.config import load_recipe
    from flyspeck.train.dynamic import make_dynamic

    recipe = load_recipe(name)
    model = recipe.model
    if isinstance(model.fusion, str):
        model = model.model_copy(update={"fusion": None})  # factors change no count
    labels = _class_names(classes) or recipe.data.classes or ["object"]
    bands = recipe.data.channels or len(recipe.data.bands or ()) or 3
    detector = build_detector(model, classes=labels, mean=[0.5] * bands, std=[0.25] * bands, load=False)
    make_dynamic(detector, recipe.dynamic)
    return detector


def _grown(name: str, size: tuple[int, int]) -> str:
    """Of a recipe with crops that `size` (H, W) is larger than: a line on what the detector keeps of it; else nothing."""
    from flyspeck.train.config import load_recipe
    from flyspeck.train.viewing import WORTH_A_LINE

    recipe = load_recipe(name) if name.endswith((".yaml", ".yml")) else None
    if recipe is None or recipe.augment.crop is None or recipe.model.counts != "area":
        return ""
    height, width = recipe.augment.crop
    times = size[0] * size[1] / (height * width)
    if times < WORTH_A_LINE:
        return ""
    return (
        f"  note: {times:.1f} times the area of its crops of {height}x{width}: it looks at {times:.1f} times as many proposals or"
        " candidates there and keeps as many more detections (model.counts: area), which is not in the GFLOPs above"
    )


def _factors(
    model: nn.Module, size: tuple[int, int], *, name: str, convention: str
) -> dict[str, dict[str, dict[str, float]] | float] | None:
    """GFLOPs of a dynamic detector at each factor, predictor included, and the predictor's own; None for any other."""
    from flyspeck.models.detector import Detector
    from flyspeck.models.dynamic.cost import predictor_gflops, profile_factors
    from flyspeck.models.dynamic.pooling import is_dynamic

    if not isinstance(model, Detector) or not is_dynamic(model):
        return None
    costs = profile_factors(model, size, name=name, convention=convention)
    return {
        "factors": {
            f"{factor:g}": {"gflops": cost.gflops, **{f"{part}_gflops": g for part, g in cost.parts.items()}}
            for factor, cost in costs.items()
        },
        "predictor_gflops": predictor_gflops(model, size, convention=convention),
    }


def _print_factors(found: Mapping[str, Any]) -> None:
    for factor, cost in found["factors"].items():
        typer.echo(f"  factor {factor:<9} {cost['gflops']:>14.3f}  GFLOPs")
    if found["predictor_gflops"]:
        typer.echo(f"    of it, predictor {found['predictor_gflops']:>10.3f}")


def _class_names(count: int | None) -> list[str] | None:
    return None if count is None else [f"class{i}" for i in range(count)]


def _print(result: Profile) -> None:
    height, width = result.size
    typer.echo(f"{result.name} at {height}x{width}, convention {result.convention}")
    for label, count in (
        ("parameters", result.params),
        ("  trainable", result.params_trainable),
        ("  convolutions", result.params_conv),
    ):
        typer.echo(f"  {label:<16} {count:>14,}  {count / 1e6:9.3f} M")
    typer.echo(f"  {'GFLOPs':<16} {result.gflops:>14.3f}")
    total = max(result.gflops, 1e-12)
    for part, gflops in result.parts.items():
        typer.echo(f"    {part:<14} {gflops:>14.3f}  {100 * gflops / total:8.1f} %")
        if part == "backbone":
            for stage, share in result.stages.items():
                typer.echo(f"      {stage:<12} {share:>14.3f}  {100 * share / total:8.1f} %")
    typer.echo(f"  {'peak memory':<16} {result.peak_memory_mb:>14.1f}  MB (weights and live activations, float32)")
    if result.latency is not None:
        timed = result.latency
        typer.echo(
            f"  {'latency':<16} {timed.median_ms:>14.2f}  ms median of {timed.runs} runs "
            f"({timed.p10_ms:.2f} to {timed.p90_ms:.2f} from the 10th to the 90th percentile), "
            f"{timed.threads} thread{'s' if timed.threads > 1 else ''}, {timed.device}"
        )
