"""Which detections of following frames are one object: tracks with numbers, through Roboflow's `trackers`.

The tracker is ByteTrack (Zhang et al., 2022, arXiv 2110.06864) with the buffered IoU of C-BIoU (Yang et al., 2023, arXiv
2211.14317): boxes of a few pixels move further than their own size from frame to frame, so they are compared enlarged.

ByteTrack gives an object its number when it is seen for the second time. `Tracking` writes that number back to the frame on
which it was seen first, and to a weaker detection at the same place on the frame before that, as ByteTrack takes weaker ones on
the frames behind. So frames are held back: for as long as one of their objects may still get a number, which is two frames by
ByteTrack's own rule, and one frame more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flyspeck.boxes import iou
from flyspeck.errors import missing_extra
from flyspeck.infer.reading import Result
from flyspeck.types import Detections

_PATIENCE = 4  # frames that are held back at most
_SAME_PLACE = 0.3  # buffered IoU from which a weak detection on the frame before is the object
_ALIKE = 0.05  # of a frame's period: stamps that are rounded to milliseconds are those of a steady rate
_LONGEST = 0.5  # s that one step counts at most: where nothing was recorded, nothing is forgotten


class Tracker:
    """Gives detections of following frames the number of their object.

    `rate` are frames per second; `score` is the least of a detection that may start a track, weaker ones only continue one;
    `memory` is for how long a lost object is waited for, in frames at 30 per second; `buffer` by what share of their sides boxes
    are enlarged for the comparison.
    """

    def __init__(self, *, rate: float, score: float = 0.3, memory: int = 30, buffer: float = 0.5) -> None:
        try:
            from trackers import ByteTrackTracker
            from trackers.utils.iou import BIoU
        except ImportError:
            raise missing_extra("trackers", "video") from None
        self._tracker = ByteTrackTracker(
            lost_track_buffer=memory,
            frame_rate=rate,
            track_activation_threshold=score,
            high_conf_det_threshold=score,
            minimum_consecutive_frames=1,
            iou=BIoU(buffer_ratio=buffer),
        )
        self._rate, self._score, self.buffer = rate, score, buffer
        self._calls, self._time, self._seen = 0, 0.0, 0.0
        self._young: list[tuple[Any, int, int]] = []
        self.confirmed: list[tuple[int, int, int]] = []
        """Of the last call: call (from 0) and row at which an object was first seen, and the number that it has now got."""
        self.begun: list[int] = []
        """Of the last call: the rows of objects that were seen for the first time."""

    def __call__(self, found: Detections, seconds: float | None = None) -> Detections:
        """The same detections with the column `track` (int64, -1 for none), tracked ones first."""
        return with_tracks(found, self.number(found, seconds))

    def number(self, found: Detections, seconds: float | None = None) -> np.ndarray:
        """The track of each detection (N,) int64, -1 for none yet; `seconds` is when the frame is shown."""
        import supervision

        given = supervision.Detections(
            xyxy=found.boxes.astype(np.float64),
            confidence=found.scores.astype(np.float64),
            class_id=found.labels,
            data={"row": np.arange(len(found))},
        )
        before = list(self._tracker.tracks)
        tracked = self._tracker.update(given, timestamp=None if seconds is None else self._advance(seconds))
        # Rows come back in another order, and those that no track took may be left out.
        rows = np.asarray(tracked.data.get("row", np.zeros(0)), np.int64)
        given_numbers = np.asarray(tracked.tracker_id, np.int64) if len(rows) else np.zeros(0, np.int64)
        numbers = np.full(len(found), -1, np.int64)
        numbers[rows] = given_numbers
        self._note_young(before, [r for r in rows.tolist() if numbers[r] < 0 and float(found.scores[r]) >= self._score])
        self._calls += 1
        return numbers

    @property
    def oldest_waiting(self) -> int:
        """The first call (from 0) with an object that may still get a number; the number of calls where there is none."""
        return min((call for _, call, _ in self._young), default=self._calls)

    def _note_young(self, before: list[Any], rows: list[int]) -> None:
        """Remember where new objects were seen first, until they have a number or are dropped."""
        alive = {id(one) for one in self._tracker.tracks}
        self.confirmed = [(call, row, int(t.tracker_id)) for t, call, row in self._young if t.tracker_id >= 0]
        self._young = [entry for entry in self._young if entry[0].tracker_id < 0 and id(entry[0]) in alive]
        known = {id(one) for one in before}
        new = [one for one in self._tracker.tracks if id(one) not in known]
        self.begun = rows
        # ByteTrack lists its new objects in the order in which it returns their detections.
        self._young += [(one, self._calls, row) for one, row in zip(new, rows, strict=True)]

    def _advance(self, seconds: float) -> float:
        """The tracker's own time, in seconds: that of the frames, with steps that are nearly a period taken for one.

        A gap counts as `_LONGEST` at most, and frames of one stamp are a little apart: a track is lost by frames on which it is
        not seen, not by frames that do not exist.
        """
        if self._calls:
            period = 1 / self._rate
            step = min(max(seconds - self._seen, _ALIKE * period), max(_LONGEST, period))
            self._time += period if abs(step - period) < _ALIKE * period else step
        self._seen = seconds
        return self._time


def with_tracks(found: Detections, numbers: np.ndarray) -> Detections:
    """The detections with the column `track`, those with a number first, else in their order."""
    order = np.lexsort([np.arange(len(found)), numbers < 0])
    return replace(found, extra={**found.extra, "track": numbers})[order]


@dataclass
class _Held:
    """A frame whose tracks are not settled."""

    result: Result
    numbers: np.ndarray
    begun: list[int]
    earlier: dict[int, int] = field(default_factory=dict)
    """Rows that a new object has, to the row of a weaker detection of it on the frame before."""


class Tracking:
    """Results of following frames in, the same with tracks out, a few frames later."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._calls = tracker, 0
        self._held: deque[_Held] = deque()
        """The last frames, the newest of call `_calls - 1`."""

    def add(self, result: Result, seconds: float | None = None) -> list[Result]:
        """The next frame's; returns those, in order, whose tracks are settled."""
        numbers = self._tracker.number(result.detections, seconds)
        now = _Held(result, numbers, self._tracker.begun)
        if self._held:
            now.earlier = _weaker_before(now, self._held[-1], self._tracker.buffer)
        self._held.append(now)
        self._calls += 1
        first = self._calls - len(self._held)
        for call, row, number in self._tracker.confirmed:
            if call >= first:
                frame = self._held[call - first]
                frame.numbers[row] = number
                if row in frame.earlier and call > first:
                    self._held[call - first - 1].numbers[frame.earlier[row]] = number
        return self._release(max(self._tracker.oldest_waiting - 1, self._calls - _PATIENCE))

    def finish(self) -> list[Result]:
        """What was held back; no frame follows."""
        return self._release(self._calls)

    def _release(self, before: int) -> list[Result]:
        out = []
        while self._held and self._calls - len(self._held) < before:
            held = self._held.popleft()
            out.append(replace(held.result, detections=with_tracks(held.result.detections, held.numbers)))
        return out


def _weaker_before(now: _Held, before: _Held, buffer: float) -> dict[int, int]:
    """For each new object (row of `now`) the row of the detection on the frame before that is at its place, if there is one.

    Only detections of the same class that have no track and begin none; each is taken once, the best pair first.
    """
    free = np.flatnonzero(before.numbers < 0)
    free = free[~np.isin(free, before.begun)]
    rows = np.asarray(now.begun, np.int64)
    if not len(free) or not len(rows):
        return {}
    new, old = now.result.detections[rows], before.result.detections[free]
    alike = iou(_enlarged(new.boxes, buffer), _enlarged(old.boxes, buffer)) * (new.labels[:, None] == old.labels[None])
    pairs: dict[int, int] = {}
    for flat in np.argsort(-alike, axis=None, kind="stable").tolist():
        i, j = divmod(flat, len(free))
        if alike[i, j] < _SAME_PLACE:
            break
        if int(rows[i]) not in pairs and int(free[j]) not in pairs.values():
            pairs[int(rows[i])] = int(free[j])
    return pairs


def _enlarged(boxes: np.ndarray, share: float) -> np.ndarray:
    """Boxes (N, 4) with `share` of their sides added on each side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.concatenate([boxes[:, :2] - share * sides, boxes[:, 2:] + share * sides], axis=1)
