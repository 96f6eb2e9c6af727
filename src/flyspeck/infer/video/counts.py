"""How many objects a minute: `counts.csv`, from tracks and from their crossings of lines and regions, and `crossings.csv`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flyspeck import convert
from flyspeck.infer.growing_csv import GrowingCsv, seconds_cell
from flyspeck.infer.reading import Result
from flyspeck.infer.video.reader import VideoInfo
from flyspeck.infer.video.tracks import seconds_of
from flyspeck.infer.video.zones import RegionPath, Way, Zone, margin_of

ALL = "*"
"""In the column `class`: all classes together."""
_MINUTE = 60
_LONGEST = 1440  # minutes without a frame that are listed; of more, none
_Key = tuple[str, str, str]
"""Kind, name and direction of what is counted."""
_SEEN, _NEW = ("tracks", "", "seen"), ("tracks", "", "new")


@dataclass
class _Object:
    """What is remembered of a track."""

    ways: list[Way]
    labels: Counter[int] = field(default_factory=Counter)
    last: int = 0
    """Number of the frame on which it was seen last."""

    @property
    def label(self) -> int:
        """The class that it was taken for most often, of several the first."""
        return self.labels.most_common(1)[0][0]


class CountTable:
    """`counts.csv`: for each minute of the video and each class how many tracks were seen, how many of them were new, and how
    many crossed each zone; `crossings.csv`: each crossing, where there are zones.

    A minute's lines are written when it is over: of all classes together, under the class `*`, and of each class, zeros too.
    """

    def __init__(self, folder: Path, zones: Sequence[Zone], info: VideoInfo) -> None:
        self._zones, self._period = zones, float(1 / info.rate)
        self._counts = GrowingCsv(folder / "counts.csv", "minute,start,end,frames,kind,name,direction,class,count")
        head = "frame,seconds,track,kind,name,direction,label,class"
        self._crossings = GrowingCsv(folder / "crossings.csv", head) if zones else None
        # The tracker has forgotten an object long before, so that it has another number should it come back.
        self._forget = int(20 * info.rate) + 100
        self._objects: dict[int, _Object] = {}
        self._classes: tuple[str, ...] = ()
        self._minute, self._frames, self._end, self._number = 0, 0, 0.0, 0
        self._tracks: dict[_Key, dict[int, _Object]] = {}
        self._crossed: dict[_Key, Counter[int]] = {}

    def add(self, result: Result) -> None:
        """The next frame's tracks."""
        seconds = seconds_of(result)
        self._turn_to(int(seconds // _MINUTE))
        self._number += 1
        self._frames, self._end = self._frames + 1, seconds + self._period
        found = result.detections
        self._classes = found.classes or self._classes
        lines = []
        for number, box, label in zip(
            found.extra["track"].tolist(), found.boxes.tolist(), found.labels.tolist(), strict=True
        ):
            if number >= 0:
                lines += [(number, *event) for event in self._follow(number, box, label)]
        if lines and self._crossings is not None:
            self._crossings.add(self._lines_of(lines, result.item.number, seconds))
        if self._number % self._forget == 0:
            oldest = self._number - self._forget
            self._objects = {k: one for k, one in self._objects.items() if one.last >= oldest}

    def close(self) -> None:
        """Write the last minute; nothing more comes."""
        try:
            if self._frames:
                self._write(self._end)
                self._frames = 0
        finally:
            self._counts.close()
            if self._crossings is not None:
                self._crossings.close()

    def _follow(self, number: int, box: list[float], label: int) -> list[tuple[Zone, str, int]]:
        """Count one track of a frame; its crossings and its class."""
        centre, margin = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), margin_of(box)
        known = self._objects.get(number)
        if known is None:
            known = self._objects[number] = _Object([zone.begin(centre) for zone in self._zones])
            self._tracks.setdefault(_NEW, {})[number] = known
        known.labels[label] += 1
        known.last = self._number
        self._tracks.setdefault(_SEEN, {})[number] = known
        events = []
        for zone, way in zip(self._zones, known.ways, strict=True):
            for direction in way.follow(centre, margin):
                self._crossed.setdefault((zone.kind, zone.name, direction), Counter())[known.label] += 1
                events.append((zone, direction, known.label))
            if isinstance(way, RegionPath) and way.inside:
                self._tracks.setdefault((zone.kind, zone.name, "inside"), {})[number] = known
        return events

    def _lines_of(self, events: Sequence[tuple[int, Zone, str, int]], frame: int, seconds: float) -> list[str]:
        columns = {
            "frame": [frame] * len(events),
            "seconds": [seconds_cell(seconds)] * len(events),
            "track": [number for number, *_ in events],
            "kind": [zone.kind for _, zone, *_ in events],
            "name": [zone.name for _, zone, *_ in events],
            "direction": [direction for _, _, direction, _ in events],
            "label": [label for *_, label in events],
            "class": [self._class(label) for *_, label in events],
        }
        return convert.csv_lines(columns)

    def _turn_to(self, minute: int) -> None:
        """Write what is over when a frame of `minute` comes."""
        if minute <= self._minute:
            return
        if self._frames:
            self._write((self._minute + 1) * _MINUTE)
            self._minute += 1
        while self._minute < minute <= self._minute + _LONGEST:
            self._write((self._minute + 1) * _MINUTE)
            self._minute += 1
        self._minute = minute

    def _write(self, end: float) -> None:
        rows = []
        for key in self._keys():
            labels = Counter(one.label for one in self._tracks.get(key, {}).values()) + self._crossed.get(
                key, Counter()
            )
            about = [*key, ALL, str(labels.total())]
            rows.append(about)
            every = sorted({*range(len(self._classes)), *labels})
            rows += [[*key, self._class(label), str(labels[label])] for label in every]
        names = ("kind", "name", "direction", "class", "count")
        columns = {
            "minute": [self._minute] * len(rows),
            "start": [self._minute * _MINUTE] * len(rows),
            "end": [seconds_cell(min(end, (self._minute + 1) * _MINUTE))] * len(rows),
            "frames": [self._frames] * len(rows),
            **{name: [row[k] for row in rows] for k, name in enumerate(names)},
        }
        self._counts.add(convert.csv_lines(columns))
        self._tracks, self._crossed, self._frames = {}, {}, 0

    def _keys(self) -> list[_Key]:
        zones = [
            (zone.kind, zone.name, direction)
            for zone in self._zones
            for direction in (*zone.directions, *(("inside",) if zone.kind == "region" else ()))
        ]
        return [_SEEN, _NEW, *zones]

    def _class(self, label: int) -> str:
        return self._classes[label] if 0 <= label < len(self._classes) else str(label)
