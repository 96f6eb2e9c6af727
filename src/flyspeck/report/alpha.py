"""The plot of a search for the fusion factor: a metric of merit against α (fusion factor paper, Fig. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flyspeck.errors import missing_extra


def plot_factors(means: Mapping[float | str, tuple[float, float, float]], path: Path, *, metric: str) -> None:
    """Writes an image of `metric` (in percent) against α, with the range over the seeds; named entries are level lines."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "report") from None
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    grid = sorted((key, value) for key, value in means.items() if not isinstance(key, str))
    alphas = [alpha for alpha, _ in grid]
    middle = [100 * value[0] for _, value in grid]
    below = [100 * (value[0] - value[1]) for _, value in grid]
    above = [100 * (value[2] - value[0]) for _, value in grid]
    axes.errorbar(alphas, middle, yerr=[below, above], marker="o", capsize=3, label="one factor for all edges")
    for name, value in means.items():
        if isinstance(name, str):
            axes.axhline(100 * value[0], linestyle="--", color="tab:orange", label=name)
    axes.set_xlabel("fusion factor α")
    axes.set_ylabel(f"{metric}, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
