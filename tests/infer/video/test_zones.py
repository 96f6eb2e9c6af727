from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flyspeck.errors import UserError
from flyspeck.infer.video.zones import (
    CountLine,
    CountRegion,
    Zone,
    margin_of,
    parse_line,
    parse_regions,
    parse_zones,
    remarks_on,
)

UP = CountLine("gate", (40, 100), (40, 0))  # seen along it, x > 40 lies to the right
SQUARE = CountRegion("pond", (((20, 20), (60, 20), (60, 60), (20, 60)),))


def events(zone: Zone, path: list[tuple[float, float]], margin: float = 0) -> list[str]:
    way, found = zone.begin(path[0]), []
    for point in path[1:]:
        found += way.follow(point, margin)
    return found


def test_a_line_by_hand() -> None:
    assert events(UP, [(10, 50), (30, 50), (50, 50), (70, 50)]) == ["in"]
    assert events(UP, [(70, 50), (50, 50), (30, 50)]) == ["out"]
    assert events(UP, [(10, 50), (70, 50), (10, 50), (70, 50)]) == ["in", "out", "in"]
    assert events(UP, [(10, 50), (40, 50), (70, 50)]) == ["in"], "a stop on the line is one crossing"
    assert events(UP, [(10, 50), (40, 50), (10, 50)]) == [], "a touch is none"
    assert events(UP, [(10, 120), (70, 120)]) == [], "past its end"
    assert events(UP, [(10, 100), (70, 100)]) == ["in"], "at its end"
    assert events(UP, [(40, 50), (70, 50)]) == [], "it began on the line"
    assert events(CountLine("r", UP.end, UP.start), [(10, 50), (70, 50)]) == ["out"], "the other way round"
    down = CountLine("shore", (0, 100), (200, 100))  # drawn to the right: downwards is in
    assert events(down, [(50, 90), (50, 110)]) == ["in"]


def test_a_box_that_trembles_on_a_line_is_not_counted() -> None:
    assert margin_of([0, 0, 4, 16]) == 2  # a quarter of 8 px
    still = [(39.0, 50.0), (41.0, 50.0)] * 20
    assert events(UP, still, margin=2) == []
    assert events(UP, [*still, (43, 50)], margin=2) == ["in"], "once, when it leaves to the other side"
    assert events(UP, [*still, (36, 50)], margin=2) == []
    assert events(UP, [(30, 50), (41, 50), (41.5, 120), (43, 120)], margin=2) == ["in"], "it crossed within the line"
    assert events(UP, [(30, 120), (41, 120), (41.5, 50), (43, 50)], margin=2) == [], "it crossed past its end"


def test_a_region_by_hand() -> None:
    assert events(SQUARE, [(10, 40), (30, 40), (50, 40), (70, 40)]) == ["enter", "exit"]
    assert events(SQUARE, [(10, 40), (70, 40)]) == ["enter", "exit"], "right through it between two frames"
    assert events(SQUARE, [(40, 40), (70, 40)]) == ["exit"], "it was inside from the start"
    assert events(SQUARE, [(10, 40), (40, 40)]) == ["enter"]
    assert events(SQUARE, [(10, 10), (70, 10)]) == []
    assert events(SQUARE, [(19, 40), (21, 40)] * 9, margin=2) == []
    assert events(SQUARE, [(19, 40), (21, 40), (23, 40)], margin=2) == ["enter"]
    ring = CountRegion("r", (*SQUARE.rings, ((30, 30), (50, 30), (50, 50), (30, 50))))
    assert events(ring, [(10, 40), (70, 40)]) == ["enter", "exit", "enter", "exit"], "there is a hole in it"
    assert ring.holds((25, 40))
    assert not ring.holds((40, 40))


COORDINATE = st.floats(-50, 150, allow_nan=False).map(lambda x: round(x, 3))
POINT = st.tuples(COORDINATE, COORDINATE)
STEPS = st.lists(st.floats(0.001, 0.999), max_size=12, unique=True).map(sorted)


def along(start: tuple[float, float], end: tuple[float, float], steps: list[float]) -> list[tuple[float, float]]:
    shares = [0.0, *steps, 1.0]
    return [(start[0] + s * (end[0] - start[0]), start[1] + s * (end[1] - start[1])) for s in shares]


@given(POINT, POINT, STEPS, st.floats(0, 5))
def test_a_crossing_is_counted_once_whatever_the_step(
    start: tuple[float, float], end: tuple[float, float], steps: list[float], margin: float
) -> None:
    """A straight way crosses a line once or not at all: at frames far apart, near, uneven, and on the line."""
    assume(min(abs(start[0] - 40), abs(end[0] - 40), abs(abs(end[0] - 40) - margin)) > 1e-6)
    at = start[1] + (40 - start[0]) / (end[0] - start[0] or 1) * (end[1] - start[1])
    assume(min(abs(at), abs(at - 100)) > 1e-6)  # not just at an end of the line, where rounding decides
    crosses = (start[0] < 40) != (end[0] < 40) and 0 <= at <= 100 and abs(end[0] - 40) > margin
    wanted = ["in" if end[0] > 40 else "out"] if crosses else []
    assert events(UP, along(start, end, steps), margin) == wanted


@given(POINT, POINT, STEPS)
def test_a_region_is_entered_and_left_once_whatever_the_step(
    start: tuple[float, float], end: tuple[float, float], steps: list[float]
) -> None:
    whole = events(SQUARE, [start, end])
    way = (end[0] - start[0], end[1] - start[1])
    corner = min(abs(way[0] * (y - start[1]) - way[1] * (x - start[0])) for x, y in SQUARE.rings[0])
    assume(corner > 1e-3)  # not through a corner
    assume(min(SQUARE.depth(start), SQUARE.depth(end)) > 1e-3)
    assert events(SQUARE, along(start, end, steps)) == whole
    # In and out take turns, and what is inside at the end is what it says.
    assert all(a != b for a, b in pairwise(whole))
    assert SQUARE.holds(end) == (SQUARE.holds(start) + whole.count("enter") - whole.count("exit") == 1)


@given(st.lists(POINT, min_size=1, max_size=20))
def test_ins_and_outs_balance_on_a_line_across_everything(path: list[tuple[float, float]]) -> None:
    """Of a line without ends: those that came in less those that went out is where the object is now."""
    line = CountLine("all", (40, 1e4), (40, -1e4))
    found = events(line, path)
    assume(path[0][0] != 40)
    assume(path[-1][0] != 40)
    assert found.count("in") - found.count("out") == (path[-1][0] > 40) - (path[0][0] > 40)


def test_what_is_asked_for() -> None:
    assert parse_line("40,100,40,0:gate", 1) == UP
    assert parse_line(" 0, 1.5, 2, 3", 4).name == "line 4"
    assert parse_regions("20,20,60,20,60,60,20,60:pond", 1) == [SQUARE]
    zones = parse_zones(["0,0,9,9", "0,0,9,9:b"], ["0,0,9,0,9,9"])
    assert [(zone.kind, zone.name) for zone in zones] == [("line", "line 1"), ("line", "b"), ("region", "region 1")]
    assert remarks_on([UP, SQUARE], (100, 100)) == []
    assert remarks_on([UP], (100, 30)) == ["the line 'gate' lies outside of the frames of 30x100 px (width x height)"]


def test_regions_of_a_file(tmp_path: Path) -> None:
    ring = [[20, 20], [60, 20], [60, 60], [20, 60], [20, 20]]
    polygon = {"type": "Polygon", "coordinates": [ring]}
    named = {"type": "Feature", "properties": {"name": "pond"}, "geometry": polygon}
    path = tmp_path / "a.geojson"
    for content, names in (
        (polygon, ["a"]),
        (named, ["pond"]),
        ({"type": "FeatureCollection", "features": [named, {**named, "properties": None}]}, ["pond", "a 2"]),
        ({"type": "MultiPolygon", "coordinates": [[ring], [[[x + 100, y] for x, y in ring]]]}, ["a"]),
    ):
        path.write_text(json.dumps(content))
        found = parse_regions(str(path), 1)
        assert [region.name for region in found] == names
        assert found[0].rings[0] == SQUARE.rings[0]
    assert found[0].holds((140, 40))


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3", "a,b,c,d", "1,2,3,4,5,6", "1,1,1,1", "1,2,nan,4", "1,2,inf,4"])
def test_what_is_no_line(text: str) -> None:
    with pytest.raises(UserError, match="--count-line"):
        parse_line(text, 1)


@pytest.mark.parametrize("text", ["1,2,3,4", "0,0,1,1,2,2", "1,2,3", "x", "0,0,0,0,0,0:name"])
def test_what_is_no_region(text: str) -> None:
    with pytest.raises(UserError, match="--count-region"):
        parse_regions(text, 1)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 5000,
        '{"type":"Point","coordinates":[1,2]}',
        '{"type":"Polygon","coordinates":[1]}',
        '{"type":"Polygon","coordinates":[[[0,0],[1,1]]]}',
        '{"type":"Polygon","coordinates":[[["a",0],[1,1],[2,3]]]}',
        '{"type":"Polygon","coordinates":[[[1e999,0],[1,1],[2,3]]]}',
        '{"type":"FeatureCollection","features":[]}',
        '{"type":"FeatureCollection","features":7}',
        '{"type":"Feature","geometry":null}',
    ],
)
def test_a_file_that_holds_no_region(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(UserError, match=r"a\.geojson"):
        parse_regions(str(tmp_path / "a.geojson"), 1)
    with pytest.raises(UserError, match="cannot be read"):
        parse_regions(str(tmp_path / "b.geojson"), 1)


def test_names_are_told_apart() -> None:
    with pytest.raises(UserError, match="two are called 'a'"):
        parse_zones(["0,0,9,9:a", "0,0,5,9:a"], [])
    parse_zones(["0,0,9,9:a"], ["0,0,9,0,9,9:a"])  # a line and a region may share one
