"""What a run finds that another does not, by size: of runs on enlarged images, DPNet's Fig. 2."""

from __future__ import annotations

from html import escape

import numpy as np

from flyspeck.report import figures as fig
from flyspeck.report import tables
from flyspeck.report.diagnosis import FATES, SIZES, RunDiagnosis

KINDS = ("both", "gained", "lost", "neither")


def gains(first: RunDiagnosis, other: RunDiagnosis) -> dict[str, dict[str, int]]:
    """By size bin, how many objects `both` runs find, only `other` (`gained`), only `first` (`lost`), or `neither`.

    Each at its own working score, IoU 0.5. Both were measured on the same annotations.
    """
    if not np.array_equal(first.object_rows, other.object_rows):
        raise ValueError("the runs were matched to different objects")
    had, has = (d.fates == FATES.index("found") for d in (first, other))
    kinds = {"both": had & has, "gained": has & ~had, "lost": had & ~has, "neither": ~(had | has)}
    return {
        name: {kind: int((mask & (first.object_bins == b)).sum()) for kind, mask in kinds.items()}
        for b, name in enumerate(SIZES)
    }


def gains_figure(first: RunDiagnosis, other: RunDiagnosis) -> tuple[str, str]:
    """The chart under its heading, and its table, both HTML."""
    counts, groups = gains(first, other), list(SIZES)
    a, b = first.run.name, other.run.name
    words = {"both": "found by both", "gained": f"only by {b}", "lost": f"only by {a}", "neither": "by neither"}
    chart = fig.stacked_bars(
        [fig.Bars(words[kind], [counts[g][kind] for g in groups]) for kind in KINDS],
        groups,
        title=f"Objects gained and lost: {b} against {a}",
        description=f"Share of objects by size that both runs find, only {b}, only {a}, or neither. The table below has the "
        "counts.",
        x_label="size, px",
        y_label="objects, %",
    )
    rows = []
    for group in groups:
        total = sum(counts[group].values())
        net = counts[group]["gained"] - counts[group]["lost"]
        share = f"{100 * net / total:+.1f}" if total else "–"
        rows.append([group, *(str(counts[group][kind]) for kind in KINDS), share])
    caption = f"Objects by what finds them: {b} against {a}"
    data = tables.table(["size, px", *(words[k] for k in KINDS), "net gain, % of objects"], rows, caption=caption)
    return f'<figure class="half"><h3>{escape(f"{b} against {a}")}</h3>{chart}</figure>', data
