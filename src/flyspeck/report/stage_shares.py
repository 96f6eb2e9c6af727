"""The share of GFLOPs by stage, as stacked bars: Fig. 2 of arXiv:2303.11267."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flyspeck.errors import missing_extra
from flyspeck.files import make_folder

if TYPE_CHECKING:
    from flyspeck.models.profile import Profile


def plot_stage_shares(profiles: Sequence[Profile], path: Path | str) -> None:
    """Writes one stacked bar per profile: the percentage of the backbone's GFLOPs that each stage takes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "report") from error
    figure = Figure(figsize=(2.0 + 1.3 * len(profiles), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(dict.fromkeys(stage for p in profiles for stage in p.stages))
    bottoms = [0.0] * len(profiles)
    for stage in names:
        shares = [100 * p.stages.get(stage, 0.0) / max(sum(p.stages.values()), 1e-12) for p in profiles]
        bars = axes.bar(range(len(profiles)), shares, bottom=bottoms, label=stage, width=0.6)
        axes.bar_label(bars, labels=[f"{s:.0f} %" if s >= 4 else "" for s in shares], label_type="center")
        bottoms = [b + s for b, s in zip(bottoms, shares, strict=True)]
    axes.set_xticks(range(len(profiles)), [f"{p.name}\n{sum(p.stages.values()):.2f} G" for p in profiles])
    axes.set_xlim(-0.5, len(profiles) - 0.5)
    axes.set_ylabel(f"share of the backbone's GFLOPs ({profiles[0].convention})")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False)
    make_folder(Path(path).parent)
    figure.savefig(path, dpi=150)
