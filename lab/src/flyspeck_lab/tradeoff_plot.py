"""Accuracy against GFLOPs of a detector that chooses its factor, as an image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flyspeck.errors import missing_extra


def plot_tradeoff(found: Mapping[str, Any], path: Path | str) -> None:
    """Writes the curve of `dynamic_curve.tradeoff`: the predictor's, random choices at the same cost, single factors."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "report") from error
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curve = sorted(found["curve"], key=lambda p: p["gflops"])
    x = [p["gflops"] for p in curve]
    axes.plot(x, [100 * p["metric"] for p in curve], "-o", markersize=3, label="predictor, by threshold")
    if curve and curve[0]["random"]:
        axes.plot(
            [g - found["predictor_gflops"] for g in x],
            [100 * sum(p["random"]) / len(p["random"]) for p in curve],
            "--",
            label=f"random, mean of {len(curve[0]['random'])}",
        )
    static = found["static"]
    axes.plot([p["gflops"] for p in static], [100 * p["metric"] for p in static], "s", label="one factor for all")
    for p in static:
        axes.annotate(f"{p['factor']:g}", (p["gflops"], 100 * p["metric"]), textcoords="offset points", xytext=(5, -11))
    chosen = found["chosen"]
    axes.plot(chosen["gflops"], 100 * chosen["metric"], "D", label=f"{chosen['rule']} {chosen['threshold']:g}")
    for name, point in found["oracle"].items():
        axes.plot(point["gflops"], 100 * point["metric"], "x", label=f"oracle, {name}")
    axes.set_xlabel("GFLOPs an image")
    axes.set_ylabel(f"{found['metric']} in percent")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
