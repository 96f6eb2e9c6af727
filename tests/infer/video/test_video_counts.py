from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_making import rows

from flyspeck.infer.reading import Result
from flyspeck.infer.video.counts import CountTable
from flyspeck.infer.video.reader import VideoFrame, VideoInfo
from flyspeck.infer.video.zones import Zone, parse_zones
from flyspeck.types import Detections

CLASSES = ("boat", "bird")
Seen = tuple[int, float, float, int]
"""Track, centre x and y, label."""


def count(folder: Path, zones: list[Zone], frames: list[tuple[float, list[Seen]]], rate: int = 10) -> None:
    folder.mkdir(exist_ok=True)
    table = CountTable(folder, zones, VideoInfo((100, 200), Fraction(rate)))
    for number, (seconds, seen) in enumerate(frames, start=1):
        boxes = [[x - 2, y - 2, x + 2, y + 2] for _, x, y, _ in seen]
        extra = {"track": np.array([track for track, *_ in seen], np.int64)}
        found = Detections(boxes, [0.9] * len(seen), [k for *_, k in seen], (100, 200), CLASSES, extra=extra)
        item = VideoFrame("v", np.zeros((1, 1, 3), np.uint8), number, seconds=seconds)
        table.add(Result(item, found))
    table.close()


def counted(folder: Path) -> dict[tuple[str, ...], int]:
    keys = ("minute", "kind", "name", "direction", "class")
    return {tuple(line[k] for k in keys): int(line["count"]) for line in rows(folder / "counts.csv")}


def test_two_minutes_by_hand(tmp_path: Path) -> None:
    """Boat 1 sails from x 10 at 0 s to x 90 at 80 s, a px a second, over the line at x = 50: at 51.5 s it is 1.5 px beyond.

    The margin is 1 px. Bird 2 is there from 70 s on, left of the line. A third object is in no track.
    """
    frames = []
    for tenth in range(0, 801, 5):
        seconds = tenth / 10
        seen: list[Seen] = [(1, 10 + seconds, 30, 0), (-1, 100, 90, 0)]
        if seconds >= 70:
            seen.append((2, 20, 60, 1))
        frames.append((seconds, seen))
    count(tmp_path, parse_zones(["50,100,50,0:gate"], ["0,0,45,0,45,100,0,100:shore"]), frames)
    found = counted(tmp_path)
    lines = [line[1:4] for line in found if (line[0], line[4]) == ("0", "*")]
    assert list(found) == [(m, *line, name) for m in "01" for line in lines for name in ("*", "boat", "bird")]
    assert {line: n for line, n in found.items() if n or line[4] == "*"} == {
        ("0", "tracks", "", "seen", "*"): 1,
        ("0", "tracks", "", "seen", "boat"): 1,
        ("0", "tracks", "", "new", "*"): 1,
        ("0", "tracks", "", "new", "boat"): 1,
        ("0", "line", "gate", "in", "*"): 1,
        ("0", "line", "gate", "in", "boat"): 1,
        ("0", "line", "gate", "out", "*"): 0,
        ("0", "region", "shore", "enter", "*"): 0,
        ("0", "region", "shore", "exit", "*"): 1,
        ("0", "region", "shore", "exit", "boat"): 1,
        ("0", "region", "shore", "inside", "*"): 1,
        ("0", "region", "shore", "inside", "boat"): 1,
        ("1", "tracks", "", "seen", "*"): 2,
        ("1", "tracks", "", "seen", "boat"): 1,
        ("1", "tracks", "", "seen", "bird"): 1,
        ("1", "tracks", "", "new", "*"): 1,
        ("1", "tracks", "", "new", "bird"): 1,
        ("1", "line", "gate", "in", "*"): 0,
        ("1", "line", "gate", "out", "*"): 0,
        ("1", "region", "shore", "enter", "*"): 0,
        ("1", "region", "shore", "exit", "*"): 0,
        ("1", "region", "shore", "inside", "*"): 1,
        ("1", "region", "shore", "inside", "bird"): 1,
    }
    first, last = rows(tmp_path / "counts.csv")[0], rows(tmp_path / "counts.csv")[-1]
    assert (first["start"], first["end"], first["frames"]) == ("0", "60", "120")
    assert (last["start"], last["end"], last["frames"]) == ("60", "80.1", "41")
    crossings = [
        tuple(line[k] for k in ("frame", "seconds", "track", "kind", "direction", "class"))
        for line in rows(tmp_path / "crossings.csv")
    ]
    # x is 45 at 35 s and 46 < x at 36.5; x is 50 at 40 s and 51 < x at 41.5 s
    assert crossings == [("74", "36.5", "1", "region", "exit", "boat"), ("84", "41.5", "1", "line", "in", "boat")]


def test_minutes_without_a_frame_are_listed(tmp_path: Path) -> None:
    count(tmp_path, [], [(0.0, [(1, 5, 5, 0)]), (200.0, [(1, 5, 5, 0)])])
    lines = [
        (one["minute"], one["frames"], one["direction"], one["class"], one["count"])
        for one in rows(tmp_path / "counts.csv")
    ]
    assert [line for line in lines if line[2:4] == ("seen", "*")] == [
        ("0", "1", "seen", "*", "1"),
        ("1", "0", "seen", "*", "0"),
        ("2", "0", "seen", "*", "0"),
        ("3", "1", "seen", "*", "1"),
    ]
    assert not (tmp_path / "crossings.csv").exists()


def test_a_leap_of_years_writes_no_million_lines(tmp_path: Path) -> None:
    count(tmp_path, [], [(0.0, []), (1e12, [])])
    assert len(rows(tmp_path / "counts.csv")) == 4 * 3  # two minutes, seen and new; all classes, boat, bird


def test_a_track_counts_under_the_class_it_is_mostly_taken_for(tmp_path: Path) -> None:
    frames: list[tuple[float, list[Seen]]] = [(k / 10, [(1, 30 + 3 * k, 50, int(k == 3))]) for k in range(10)]
    count(tmp_path, parse_zones(["40,100,40,0"], []), frames)
    assert counted(tmp_path)["0", "line", "line 1", "in", "boat"] == 1
    assert counted(tmp_path)["0", "tracks", "", "seen", "bird"] == 0


STEP = st.sampled_from([1, 2, 3, 5, 7, 11])


@settings(max_examples=25, deadline=None)
@given(st.data(), STEP)
def test_every_crossing_is_counted_once_whatever_the_frame_step(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, step: int
) -> None:
    """Objects on straight ways, each at its speed; the tables sum to what geometry says, by class and direction."""
    ways = data.draw(
        st.lists(
            st.tuples(st.integers(0, 39), st.integers(61, 99), st.booleans(), st.integers(0, 1)), min_size=1, max_size=5
        )
    )
    every = list(range(0, 201, step))
    frames: list[tuple[float, list[Seen]]] = []
    for k in every:
        seen: list[Seen] = []
        for track, (left, right, back, label) in enumerate(ways):
            share = k / every[-1]
            x = right + share * (left - right) if back else left + share * (right - left)
            seen.append((track, x, 10 + track, label))
        frames.append((k * 1.1, seen))  # over three minutes
    folder = tmp_path_factory.mktemp("counts")
    count(folder, parse_zones(["50,100,50,0:g"], []), frames)
    wanted = Counter(("out" if back else "in", CLASSES[label]) for _, _, back, label in ways)
    told = Counter[tuple[str, str]]()
    for line in rows(folder / "counts.csv"):
        if line["kind"] == "line" and line["class"] != "*":
            told[line["direction"], line["class"]] += int(line["count"])
    assert told == wanted
    assert len(rows(folder / "crossings.csv")) == len(ways)
    new = [line for line in rows(folder / "counts.csv") if (line["direction"], line["class"]) == ("new", "*")]
    assert sum(int(line["count"]) for line in new) == len(ways)
    assert sum(int(line["frames"]) for line in new) == len(every)


def test_what_is_remembered_does_not_grow(tmp_path: Path) -> None:
    table = CountTable(tmp_path, [], VideoInfo((100, 200), Fraction(1)))
    for k in range(1000):
        extra = {"track": np.array([k])}
        found = Detections([[1, 1, 3, 3]], [0.9], [0], (100, 200), CLASSES, extra=extra)
        table.add(Result(VideoFrame("v", np.zeros((1, 1, 3), np.uint8), k + 1, seconds=float(k)), found))
    assert len(table._objects) <= 240
    table.close()
