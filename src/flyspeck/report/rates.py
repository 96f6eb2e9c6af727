"""The page of a learning-rate range test: the loss against the rate."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from flyspeck.files import write_text
from flyspeck.report import figures


def rate_page(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    out: Path,
    *,
    name: str,
    lr: float,
    lowest: float,
) -> Path:
    """Writes one HTML file, readable in light and dark, that reaches nothing; returns its path. `lr` and `lowest` are marked."""
    top, bottom = max(smoothed), min(min(losses), min(smoothed))
    chart = figures.line_chart(
        [
            figures.Series("running mean of the loss", rates, smoothed),
            figures.Series("loss of each step", rates, [min(loss, 1.1 * top) for loss in losses]),
            figures.Series(f"fastest fall, {lr:g}", [lr, lr], [bottom, top]),
            figures.Series(f"lowest, {lowest:.1e}", [lowest, lowest], [bottom, top]),
        ],
        title=f"Loss against the learning rate, {name}",
        description="The loss of a short training whose learning rate rises from step to step.",
        x_label="learning rate",
        y_label="loss",
        x_log=True,
    )
    css = resources.files("flyspeck.report").joinpath("page.css").read_text(encoding="utf-8")
    write_text(
        out,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(name)}: learning rate</title>'
        f"<style>{css}</style></head><body><main><h1>{escape(name)}: learning rate</h1><p>The loss falls fastest at "
        f"<code>train.lr={lr:g}</code>; it is lowest at {lowest:.1e}, and grows beyond.</p>"
        f'<figure style="max-width:760px">{chart}</figure></main></body></html>\n',
    )
    return out
