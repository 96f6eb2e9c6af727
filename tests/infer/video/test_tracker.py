from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyspeck.infer.reading import Result
from flyspeck.infer.source import Item
from flyspeck.infer.video.tracker import Tracker, Tracking, with_tracks
from flyspeck.types import Detections

pytest.importorskip("trackers")
SIZE = (100, 200)


def frame(number: int, boxes: list[list[float]], scores: list[float] | None = None) -> Result:
    found = Detections(boxes, scores or [0.9] * len(boxes), [0] * len(boxes), SIZE, ("spot",))
    return Result(Item(f"f{number}", np.zeros((1, 1, 3), np.uint8), number), found)


def tracked(frames: list[Result], seconds: list[float] | None = None, rate: float = 10) -> list[Result]:
    tracking, out = Tracking(Tracker(rate=rate)), []
    for k, result in enumerate(frames):
        out += tracking.add(result, None if seconds is None else seconds[k])
    return out + tracking.finish()


def numbers(results: list[Result]) -> list[list[int]]:
    return [result.detections.extra["track"].tolist() for result in results]


def box(x: float, y: float = 10, side: float = 4) -> list[float]:
    return [x, y, x + side, y + side]


def test_a_track_begins_on_the_first_frame_of_its_object() -> None:
    told = numbers(tracked([frame(k, [box(10), box(50)]) for k in range(1, 4)]))
    assert told[0] == told[1] == told[2]
    assert len(set(told[0])) == 2
    assert min(told[0]) >= 0


def test_an_object_that_comes_later_or_blinks_has_its_first_frame_too() -> None:
    there = [[10], [10], [10, 80], [10], [10, 80], [10, 80]]  # the second is missed once, right after its first frame
    told = tracked([frame(k, [box(x) for x in xs]) for k, xs in enumerate(there)])
    by_place = [
        {int(b[0]): int(t) for b, t in zip(r.detections.boxes, r.detections.extra["track"], strict=True)} for r in told
    ]
    assert len({one[10] for one in by_place}) == 1
    assert by_place[2][80] == by_place[4][80] == by_place[5][80] >= 0


def test_what_is_seen_once_has_no_track_and_weak_boxes_start_none() -> None:
    told = numbers(
        tracked(
            [frame(0, [box(10)]), frame(1, []), frame(2, []), frame(3, [box(90)], [0.2]), frame(4, [box(90)], [0.2])]
        )
    )
    assert told == [[-1], [], [], [-1], [-1]]


def test_a_weak_detection_on_the_frame_before_is_the_first_of_the_track() -> None:
    weak, strong, other = [0.9, 0.1, 0.1], [0.9, 0.9], [0.9, 0.9]
    first = frame(0, [box(10), box(50), box(70)], weak)
    told = numbers(tracked([first, frame(1, [box(10), box(51)], strong), frame(2, [box(10), box(52)], other)]))
    assert told[0][:2] == told[1] == told[2]  # the second is there too
    assert told[0][2] == -1  # nothing came of the third
    # ... but not one of another class, nor one frame further back, nor one that is elsewhere.
    late = numbers(tracked([first, frame(1, [box(10)]), frame(2, [box(10), box(51)]), frame(3, [box(10), box(51)])]))
    assert late[0].count(-1) == 2
    elsewhere = numbers(tracked([first, frame(1, [box(10), box(59)]), frame(2, [box(10), box(59)])]))
    assert elsewhere[0].count(-1) == 2


def test_frames_wait_for_three_others_at_most() -> None:
    tracking, waited = Tracking(Tracker(rate=10)), []
    rng = np.random.default_rng(0)
    released = 0
    for k in range(40):
        boxes = [box(x, y) for x, y in rng.integers(0, 90, (6, 2)).tolist()]
        released += len(tracking.add(frame(k, boxes)))
        waited.append(k + 1 - released)
    assert max(waited) <= 3
    released += len(tracking.finish())
    assert released == 40


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 18), max_size=5, unique=True), min_size=1, max_size=12))
def test_nothing_is_lost_added_or_told_twice(places: list[list[int]]) -> None:
    given_frames = [frame(k, [box(10 * x) for x in xs]) for k, xs in enumerate(places)]
    out = tracked(given_frames, [k / 10 for k in range(len(places))])
    assert [r.item.image_id for r in out] == list(range(len(places)))
    seen: dict[int, list[int]] = defaultdict(list)
    for k, (before, after) in enumerate(zip(given_frames, out, strict=True)):
        assert sorted(before.detections.boxes.tolist()) == sorted(after.detections.boxes.tolist())
        track = after.detections.extra["track"]
        assert (np.diff((track < 0).astype(int)) >= 0).all(), "tracked ones come first"
        for number in track[track >= 0].tolist():
            seen[number].append(k)
    assert all(len(set(frames)) == len(frames) for frames in seen.values()), "twice on one frame"
    assert all(len(frames) > 1 for frames in seen.values()), "a track of one frame"


def test_a_gap_in_which_nothing_was_recorded_loses_no_track() -> None:
    seconds = [0, 0.1, 0.2, 1.2, 5.0, 90.0]
    told = numbers(tracked([frame(k, [box(10)]) for k in range(6)], seconds))
    assert len({t[0] for t in told}) == 1
    assert told[0][0] >= 0


def test_an_object_is_waited_for_by_time_not_by_frames() -> None:
    # Seen at 0, 0.1, 0.2 s, then not for 0.8 s, then again: at ten frames a second and at twenty. After 1.5 s it is another.
    for rate in (10, 20):
        for gap, same in ((0.8, True), (1.5, False)):
            steps = [k / rate for k in range(round((0.3 + gap + 0.3) * rate))]
            there = [s < 0.25 or s >= 0.25 + gap for s in steps]
            told = tracked([frame(k, [box(10)] if t else []) for k, t in enumerate(there)], steps, rate)
            kept = {t[0] for t in numbers(told) if t}
            assert (len(kept) == 1) == same, (rate, gap)


def test_a_fast_object_is_followed_over_dropped_frames() -> None:
    """10 px a frame of 0.1 s, boxes of 12 px; frames 6, 7 are dropped: by its speed it is 30 px further."""
    steps = [0, 1, 2, 3, 4, 5, 8, 9]
    told = numbers(tracked([frame(k, [box(10 + 10 * k, side=12)]) for k in steps], [k / 10 for k in steps]))
    assert len({t[0] for t in told}) == 1


def test_equal_stamps_are_two_frames() -> None:
    told = numbers(tracked([frame(k, [box(10)]) for k in range(4)], [0, 0.1, 0.1, 0.2]))
    assert len({t[0] for t in told}) == 1


def test_the_column_of_tracks_by_hand() -> None:
    found = Detections([box(1), box(2), box(3)], [0.1, 0.2, 0.3], [0, 0, 0], SIZE)
    told = with_tracks(found, np.array([-1, 7, 4]))
    assert told.extra["track"].tolist() == [7, 4, -1]
    assert told.boxes[:, 0].tolist() == [2, 3, 1]
