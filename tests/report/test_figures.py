"""Charts land their values where the axes say."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from flyspeck.report.figures import Bars, Series, bar_chart, line_chart, stacked_bars

WORDS = {"title": "T & <t>", "description": "D", "x_label": "x", "y_label": "y"}


def parse(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{markup}</div>")


def test_a_line_lies_where_the_axes_say():
    # the frame is 52..448 by 236..14 (y downwards): (0, 0), (5, 50) and (10, 100) are its corners and its middle
    markup = line_chart([Series("a", [0, 5, 10], [0, 50, 100])], **WORDS, x_range=(0, 10), y_range=(0, 100))
    points = re.search(r'<polyline class="s0" points="([^"]*)"', markup)
    assert points is not None
    assert points[1] == "52.0,236.0 250.0,125.0 448.0,14.0"


def test_logarithmic_axes():
    # 0.01, 0.1, 1 lie at equal distances
    markup = line_chart(
        [Series("a", [0.01, 0.1, 1], [1, 10, 100])],
        **WORDS,
        x_range=(0.01, 1),
        y_range=(1, 100),
        x_log=True,
        y_log=True,
    )
    assert "52.0,236.0 250.0,125.0 448.0,14.0" in markup


def test_series_differ_in_more_than_colour():
    root = parse(line_chart([Series(str(k), [0, 1], [0, k]) for k in range(6)], **WORDS))
    dashes = [line.get("stroke-dasharray") for line in root.iter("polyline")][:6]
    assert len(set(dashes)) == 6


def test_bars_have_heights_labels_and_whiskers():
    markup = bar_chart([Bars("a", [50, np.nan], [(40, 60), (np.nan, np.nan)])], ["g", "h"], **WORDS, y_range=(0, 100))
    root = parse(markup)
    (bar,) = list(root.iter("rect"))
    assert float(bar.get("height")) == pytest.approx(111, abs=0.1)  # half of 222
    assert len([p for p in root.iter("path") if p.get("class") == "whisker"]) == 1
    assert [t.text for t in root.iter("text") if t.get("class") == "value"] == ["50", "–"]


def test_stacked_shares_fill_the_height():
    root = parse(stacked_bars([Bars("a", [1, 0]), Bars("b", [3, 0])], ["g", "h"], **WORDS))
    bars = [r for r in root.iter("rect") if float(r.get("width")) > 30]
    assert sum(float(b.get("height")) for b in bars) == pytest.approx(222, abs=0.2)
    assert float(bars[1].get("height")) == pytest.approx(3 * float(bars[0].get("height")), abs=0.3)


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_nothing_to_draw_is_said(values):
    assert "nothing to draw" in line_chart([Series("a", values, values)], **WORDS)


def test_text_is_escaped():
    markup = line_chart([Series("<b>", [0, 1], [0, 1])], **WORDS)
    assert "&lt;b&gt;" in markup
    assert "T &amp; &lt;t&gt;" in markup
