"""Figures as SVG text that sits in a page: no library, no script, readable in light and dark and without colour.

A series is told apart by its dashes and its marker as well as by its colour. Colours come from the page's CSS variables
(`--s0` to `--s6`), lines and text from `currentColor`. Every figure carries a title and a description for screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count

import numpy as np

_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 44
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4 1 4", "1 4")
_MARKERS = ("circle", "square", "triangle", "diamond", "cross", "bar", "plus")
_LOOKS = len(_DASHES)
_NUMBERS = count(1)


@dataclass(frozen=True)
class Series:
    """A line of a chart; NaN breaks it."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    look: int | None = None
    """Its colour, dashes and marker; None: by its place among all series given, drawn or not."""


@dataclass(frozen=True)
class Bars:
    """One series of a bar chart: a value a group, and its interval where it is known (NaN or none otherwise)."""

    name: str
    values: Sequence[float]
    intervals: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class _Axis:
    """One axis: its range, its ticks, and where a value lies in pixels."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        at = math.log10(max(value, 1e-12)) if self.log else value
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, -0.02), 1.02) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values within the range."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            powers = [10.0**k * f for k in range(first, last + 1) for f in ((1,) if last - first > 2 else (1, 2, 5))]
            return [p for p in powers if self.low * 0.999 <= p <= self.high * 1.001]
        span = self.high - self.low
        step = 10 ** math.floor(math.log10(span / 4)) if span > 0 else 1.0
        step *= next(f for f in (1, 2, 5, 10) if span / (step * f) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    x_log: bool = False,
    y_log: bool = False,
) -> str:
    """Lines with a legend; empty series are left out. `title` and `description` are what a screen reader says."""
    placed = [(k if s.look is None else s.look, s) for k, s in enumerate(series)]
    looks = [k for k, s in placed if np.isfinite(np.asarray(s.y, float)).any()]
    shown = [s for _, s in placed if np.isfinite(np.asarray(s.y, float)).any()]
    if not shown:
        return f'<p class="none">{escape(title)}: nothing to draw.</p>'
    x = _axis([s.x for s in shown], x_range, _LEFT, _WIDTH - _RIGHT, x_log)
    y = _axis([s.y for s in shown], y_range, _HEIGHT - _BOTTOM, _TOP, y_log)
    body = [_frame(x, y, x_label, y_label)]
    for k, one in zip(looks, shown, strict=True):
        points = [
            (x(float(a)), y(float(b)))
            for a, b in zip(one.x, one.y, strict=True)
            if math.isfinite(a) and math.isfinite(b)
        ]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        body.append(
            f'<polyline class="s{k % _LOOKS}" points="{path}" fill="none" stroke-dasharray="{_DASHES[k % _LOOKS]}"/>'
        )
        every = max(1, len(points) // 8)
        body += [_marker(k, a, b) for a, b in points[k % every :: every]]
    return _svg(body, title, description) + _legend([s.name for s in shown], looks)


def bar_chart(
    bars: Sequence[Bars],
    groups: Sequence[str],
    *,
    title: str,
    description: str,
    y_label: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    show: Callable[[float], str] = lambda value: f"{value:.0f}",
) -> str:
    """Grouped bars with their intervals as whiskers; each bar is labelled with its value."""
    known = [v for b in bars for v in b.values if math.isfinite(v)]
    if not known:
        return f'<p class="none">{escape(title)}: nothing to draw.</p>'
    high = max([*known, *(h for b in bars for _, h in b.intervals if math.isfinite(h))])
    y = _Axis(*(y_range or (0.0, high * 1.08 or 1.0)), _HEIGHT - _BOTTOM, _TOP)
    room = (_WIDTH - _LEFT - _RIGHT) / max(len(groups), 1)
    width = 0.78 * room / len(bars)
    body = [_frame(None, y, x_label, y_label)]
    for g, group in enumerate(groups):
        middle = _LEFT + (g + 0.5) * room
        body.append(_text("tick", middle, _HEIGHT - _BOTTOM + 15, escape(group)))
        for k, one in enumerate(bars):
            interval = one.intervals[g] if g < len(one.intervals) else (math.nan, math.nan)
            left = middle + (k - len(bars) / 2) * width
            body.append(_bar(k, one.values[g], interval, left, width, y, show, lettered=len(bars) > 1))
    legend = (
        _legend([f"{_LETTERS[k % _LOOKS]} {b.name}" for k, b in enumerate(bars)], range(len(bars)), bars=True)
        if len(bars) > 1
        else ""
    )
    return _svg(body, title, description) + legend


def _bar(
    k: int,
    value: float,
    interval: tuple[float, float],
    left: float,
    width: float,
    y: _Axis,
    show: Callable[[float], str],
    *,
    lettered: bool,
) -> str:
    """One bar with its value, its whisker and, among several series, the letter of its own."""
    middle, foot = left + width / 2, y(y.low)
    if not math.isfinite(value):
        return _text("value", middle, foot - 4, "–")
    top = y(value)
    parts = [
        f'<rect class="f{k % _LOOKS}" x="{left + 0.5:.1f}" y="{top:.1f}" width="{width - 1:.1f}" '
        f'height="{max(foot - top, 0):.1f}"/>'
    ]
    if lettered and foot - top > 13:
        parts.append(_text("inside", middle, foot - 4, _LETTERS[k % _LOOKS]))
    if all(map(math.isfinite, interval)):
        low, top = y(interval[0]), y(interval[1])
        ends = "".join(f"M{middle - 3:.1f} {at:.1f}h6" for at in (low, top))
        parts.append(f'<path class="whisker" d="M{middle:.1f} {low:.1f}V{top:.1f}{ends}"/>')
    if width > 13:
        parts.append(_text("value", middle, top - 4, show(value)))
    return "".join(parts)


def stacked_bars(
    parts: Sequence[Bars], groups: Sequence[str], *, title: str, description: str, x_label: str, y_label: str
) -> str:
    """Shares of 100 % a group, one part over the other, each with a hatching of its own; `values` are counts."""
    totals = [sum(part.values[g] for part in parts) for g in range(len(groups))]
    y = _Axis(0.0, 100.0, _HEIGHT - _BOTTOM, _TOP)
    room = (_WIDTH - _LEFT - _RIGHT) / max(len(groups), 1)
    body = [_frame(None, y, x_label, y_label)]
    for g, group in enumerate(groups):
        left, base = _LEFT + (g + 0.14) * room, 0.0
        middle = left + 0.36 * room
        body.append(_text("tick", middle, _HEIGHT - _BOTTOM + 15, escape(group)))
        for k, part in enumerate(parts):
            if not totals[g]:
                continue
            share = 100 * part.values[g] / totals[g]
            top, height = y(base + share), y(base) - y(base + share)
            body.append(
                f'<rect class="f{k % _LOOKS}" x="{left:.1f}" y="{top:.1f}" width="{0.72 * room:.1f}" height="{height:.1f}"/>'
            )
            if height > 13:
                body.append(_text("inside", middle, top + height / 2 + 4, f"{_MARKS[k]} {share:.0f}"))
            base += share
    return _svg(body, title, description) + _legend(
        [f"{_MARKS[k]} {p.name}" for k, p in enumerate(parts)], range(len(parts)), bars=True
    )


_LETTERS = "ABCDEFG"
_MARKS = ("✓", "≈", "⇄", "✗", "+", "·")


def _axis(values: Sequence, given: tuple[float, float] | None, start: float, stop: float, log: bool) -> _Axis:
    flat = np.concatenate([np.asarray(v, np.float64) for v in values])
    flat = flat[np.isfinite(flat) & ((flat > 0) | (not log))]
    low, high = given or (float(flat.min()) if len(flat) else 0.1, float(flat.max()) if len(flat) else 1.0)
    if given is None and not log:
        low = min(low, 0.0) if low < 0.4 * high else low
    if high <= low:
        high = low * 2 if log else low + 1
    return _Axis(low, high, start, stop, log)


def _frame(x: _Axis | None, y: _Axis, x_label: str, y_label: str) -> str:
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>']
    for tick in y.ticks():
        at = y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text("tick", _LEFT - 5, at + 4, f"{tick:g}", anchor="end"))
    if x is not None:
        for tick in x.ticks():
            at = x(tick)
            parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
            parts.append(_text("tick", at, _HEIGHT - _BOTTOM + 15, f"{tick:g}"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text("label", middle, _HEIGHT - 8, escape(x_label)))
    across = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<g transform="translate(13 {across}) rotate(-90)">{_text("label", 0, 0, escape(y_label))}</g>')
    return "".join(parts)


def _text(kind: str, x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _marker(kind: int, x: float, y: float) -> str:
    shapes = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>',
        "square": f'<rect x="{x - 2.7:.1f}" y="{y - 2.7:.1f}" width="5.4" height="5.4"/>',
        "triangle": f'<path d="M{x:.1f} {y - 3.6:.1f}l3.4 6h-6.8z"/>',
        "diamond": f'<path d="M{x:.1f} {y - 4:.1f}l3.4 4-3.4 4-3.4-4z"/>',
        "cross": f'<path class="open" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0-6l-6 6"/>',
        "bar": f'<path class="open" d="M{x:.1f} {y - 4:.1f}v8"/>',
        "plus": f'<path class="open" d="M{x:.1f} {y - 4:.1f}v8M{x - 4:.1f} {y:.1f}h8"/>',
    }
    return f'<g class="m{kind % _LOOKS}">{shapes[_MARKERS[kind % _LOOKS]]}</g>'


def _legend(names: Sequence[str], looks: Sequence[int], *, bars: bool = False) -> str:
    items = []
    for k, name in zip(looks, names, strict=True):
        line = (
            f'<polyline class="s{k % _LOOKS}" points="1,7 29,7" fill="none" stroke-dasharray="{_DASHES[k % _LOOKS]}"/>'
        )
        line += _marker(k, 15, 7)
        swatch = f'<rect class="f{k % _LOOKS}" x="1" y="1" width="28" height="12"/>' if bars else line
        items.append(
            f'<li><svg width="30" height="14" aria-hidden="true" focusable="false">{swatch}</svg> {escape(name)}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _svg(body: Sequence[str], title: str, description: str) -> str:
    number = next(_NUMBERS)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="t{number} d{number}">'
        f'<title id="t{number}">{escape(title)}</title><desc id="d{number}">{escape(description)}</desc>{"".join(body)}</svg>'
    )
