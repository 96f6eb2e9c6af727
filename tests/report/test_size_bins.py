"""An object is in one bin of sizes, and the same in everything that counts by size; named protocols alone are closed."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.grouping import features
from flyspeck.data.inspect import size_histogram
from flyspeck.evaluate import DetectionTable, customised, evaluate, protocol_named
from flyspeck.evaluate.checks import lone_objects
from flyspeck.evaluate.printing import table
from flyspeck.report import RunReport, html
from flyspeck.report.diagnosis import SIZES, diagnose, miss_rates
from flyspeck.report.figures import Series, line_chart
from flyspeck.report.gains import gains
from flyspeck.size_bins import BINS, bin_of, half_open, in_bins


def truth(sides: list[float], labels: list[int] | None = None) -> Annotations:
    """Squares of these sides, two images of one row each; the file's own areas are a little smaller, as of masks."""
    side = np.array(sides, np.float64)
    count = len(side)
    corner = np.stack([np.arange(count) * 200.0, np.zeros(count)], 1)
    return Annotations(
        image_ids=np.arange(2),
        file_names=("a.png", "b.png"),
        sizes=np.full((2, 2), 10_000),
        image_index=np.sort(np.arange(count) % 2),
        boxes=np.concatenate([corner, corner + side[:, None]], 1),
        labels=np.zeros(count, np.int64) if labels is None else np.array(labels),
        area=0.8 * side**2,
        ignore=np.zeros(count, bool),
        crowd=np.zeros(count, bool),
        box_ids=np.arange(1, count + 1),
        classes=("car", "bus"),
        category_ids=(1, 2),
    )


def found(annotations: Annotations, rows: slice) -> DetectionTable:
    boxes = annotations.boxes[rows]
    return DetectionTable.from_columns(
        image_index=annotations.image_index[rows],
        boxes=boxes,
        scores=np.linspace(0.9, 0.5, len(boxes)),
        labels=annotations.labels[rows],
    )


def report(annotations: Annotations, rows: slice) -> RunReport:
    detections = found(annotations, rows)
    return RunReport("run", annotations, detections, evaluate(annotations, detections, "flyspeck"))


sides = st.lists(st.sampled_from([2, 3.7, 8, 8 + 1e-12, 11.99, 12, 16, 20, 31, 32, 33, 96]), min_size=2, max_size=24)


@given(sides=sides)
@settings(max_examples=25)
def test_every_reporter_counts_alike(sides: list[float]) -> None:
    annotations = truth(sides)
    expected = [sum(low <= side < high for side in sides) for low, high in SIZES.values()]
    assert sum(expected) == len(sides)
    assert list(size_histogram(annotations.boxes).values())[1:] == expected
    columns = features(annotations, np.zeros(2, np.int64))[0][0]
    assert columns[4 : 4 + len(SIZES)].tolist() == expected  # after images, empty ones, regions and [0,2)
    run = report(annotations, slice(0, len(sides) // 2))
    diagnosis = diagnose(run)
    assert [diagnosis.recall(name).count for name in SIZES] == expected
    assert [sum(fates.values()) for fates in diagnosis.fate_of_objects().values()] == expected
    assert [sum(kinds.values()) for kinds in gains(diagnosis, diagnosis).values()] == expected
    own = customised(protocol_named("flyspeck"), size_edges=(2, 8, 12, 20, 32))
    boxes = replace(annotations, area=(annotations.boxes[:, 2] - annotations.boxes[:, 0]) ** 2)
    counts = evaluate(boxes, run.detections, own).counts
    assert counts is not None
    names = ("2-8", "8-12", "12-20", "20-32", "32+")
    assert [counts.row(name).objects for name in names] == expected
    shown = {curve.name for curve in miss_rates(run)}
    assert {name for name, number in zip(SIZES, expected, strict=True) if number} == shown - {"all", "2-20"}
    drawn = re.findall(r'<th scope="row">(\d+)(?:–\d+| and more)</th><td>(\d+)</td>', html._data(run))
    for (low, high), number in zip(SIZES.values(), expected, strict=True):
        assert sum(int(n) for start, n in drawn if low <= int(start) < high) == number


@given(st.lists(st.floats(0, 200), max_size=30))
def test_bins_are_those_of_a_loop(sizes: list[float]) -> None:
    areas = np.square(np.array(sizes))
    slow = [next(k for k in range(6) if (0, 2, 8, 12, 20, 32, 1e9)[k + 1] ** 2 > area) for area in areas]
    assert bin_of(areas).tolist() == slow
    assert in_bins(areas).tolist() == [slow.count(k) for k in range(len(BINS))]
    low, high = half_open(8, 12)
    assert [bool(low <= area <= high) for area in areas] == [k == 2 for k in slow]


def test_a_named_protocol_stays_closed() -> None:
    annotations = truth([8.0])
    annotations.area[:] = 64
    counts = evaluate(annotations, DetectionTable.empty(), "flyspeck").counts
    assert counts is not None
    assert [counts.row(name).objects for name in ("tiny1", "tiny2", "above32")] == [1, 1, 0]


def test_a_class_of_one_object_is_said() -> None:
    annotations = truth([5.0, 6.0, 40.0], [0, 0, 1])
    (note,) = lone_objects(annotations, protocol_named("flyspeck"))
    assert "'bus' (all)" in note
    (note,) = evaluate(annotations, DetectionTable.empty(), "coco_bbox").notes
    assert "'bus' (all)" in note
    assert lone_objects(truth([5.0, 6.0, 40.0]), protocol_named("flyspeck")) == ()
    assert lone_objects(truth([5.0, 6.0, 7.0, 8.0], [0, 0, 1, 1]), protocol_named("flyspeck")) == ()


@pytest.mark.parametrize(("name", "line"), [("flyspeck", "tiny1"), ("coco_bbox", "APs"), ("tinybenchmark_ap", "tiny1")])
def test_a_row_says_its_pixels_and_its_objects(name: str, line: str) -> None:
    annotations = truth([4.0, 5.0, 40.0, 60.0], [0, 0, 1, 1])
    result = evaluate(annotations, DetectionTable.empty(), name)
    rows = {text.split()[0]: text.split() for text in reversed(result.table().splitlines()) if text}
    pixels = {"tiny1": ("2-8", "1-8"), "APs": ("0-32",)}[line]
    assert rows[line][1] in pixels
    assert rows[line][2] == "2"
    text = table(protocol_named("flyspeck"), evaluate(annotations, DetectionTable.empty()).rows)
    assert ["above32", "32+", "2"] in [row.split()[:3] for row in text.splitlines()]


def test_a_size_keeps_its_look_whatever_else_is_drawn() -> None:
    annotations = truth([9.0, 10.0, 15.0, 16.0])  # none below 8 px
    page = html._curves([diagnose(report(annotations, slice(0, 4)))])
    looks: dict[str, set[str]] = {}
    for look, name in re.findall(
        r'<li><svg[^>]*><polyline class="s(\d)"[^>]*/>(?:(?!<li>).)*</svg> ([\d-]+) px</li>', page
    ):
        looks[name] = looks.get(name, set()) | {look}
    assert looks["8-12"] == {"2"}
    assert looks["12-20"] == {"3"}
    chart = line_chart(
        [Series("gone", [0, 1], [np.nan, np.nan]), Series("here", [0, 1], [1, 2])],
        title="t",
        description="d",
        x_label="x",
        y_label="y",
    )
    assert 'class="s1"' in chart  # the second run is the second in every figure
    assert 'class="s0"' not in chart
