"""Which boxes overlap: candidate pairs out of a million boxes, without comparing each with each.

Boxes are registered, by their upper left corner, in square cells of the power of two that is at least their longer side: one
grid for every size, so that one large box does not make the cells of the tiny ones large. A box then overlaps only boxes
in the cells from one before its own to the one it ends in, at most three by three of an equal or larger size. Cells are runs
in a sorted key, looked up with `searchsorted`; the cost is N log N plus the number of candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_LOWEST_LEVEL = 2  # cells of 4 px hold every smaller box: finer ones would only add look-ups
_CHUNK = 2_000_000  # candidate pairs held at once (16 bytes each, times the columns gathered for them)


class BoxIndex:
    """A look-up of `boxes` (N, 4), xyxy, by place; boxes on different `layer` (N,) int never meet."""

    def __init__(self, boxes: np.ndarray, layer: np.ndarray | None = None) -> None:
        if not np.isfinite(boxes).all():
            raise ValueError("boxes to merge must be finite")
        self.boxes = np.asarray(boxes, np.float64)
        self.layer = np.zeros(len(boxes), np.int64) if layer is None else layer - layer.min(initial=0)
        longest = (self.boxes[:, 2:] - self.boxes[:, :2]).max(axis=1, initial=0)
        self.level = np.ceil(np.log2(longest.clip(min=2**_LOWEST_LEVEL))).astype(np.int64)
        # One cell of margin below and above, so that the neighbours of a border cell never wrap into the next row.
        self._origin = self.boxes[:, :2].min(axis=0, initial=0)
        self._extent = self.boxes[:, 2:].max(axis=0, initial=0) - self._origin
        self._members: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for level in np.unique(self.level).tolist():
            rows = np.flatnonzero(self.level == level)
            cells = self._cell(self.boxes[rows, :2], level)
            keys = self._key(self.layer[rows], cells[:, 1], cells[:, 0], level)
            order = np.argsort(keys, kind="stable")
            self._members[level] = (rows[order], keys[order])

    def _cell(self, points: np.ndarray, level: int) -> np.ndarray:
        return np.floor((points - self._origin) / 2.0**level).astype(np.int64)

    def _key(self, layer: np.ndarray, y: np.ndarray, x: np.ndarray, level: int) -> np.ndarray:
        columns, rows = (self._extent // 2.0**level).astype(np.int64) + 4
        return (layer * rows + y + 1) * columns + x + 1

    def pairs(self, *, max_ratio: float = np.inf) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Chunks of candidate pairs `(i, j)` of rows, i < j; every overlapping pair is among them, exactly once.

        Pairs whose longer sides differ by more than `max_ratio` may be left out: an IoU of t allows 1/t at most.
        """
        reach = _levels(max_ratio)
        for low, (rows, _) in self._members.items():
            for high, (members, keys) in self._members.items():
                if not low <= high <= low + reach:
                    continue
                for a, b in self._search(rows, members, keys, high):
                    if low == high:  # each pair is met from both sides
                        once = a < b
                        yield a[once], b[once]
                    else:
                        yield np.minimum(a, b), np.maximum(a, b)

    def around(self, queries: np.ndarray, *, max_ratio: float = np.inf) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Chunks of candidate pairs `(query, other)`, query != other, for some rows (unique) only.

        Every overlapping `other` is among them exactly once, save those whose longer side is more than `max_ratio` times
        smaller than the query's, which may be left out; a pair of two queries comes both ways.
        """
        asked = np.zeros(len(self.boxes), bool)
        asked[queries] = True
        reach = _levels(max_ratio)
        for low, (rows, _) in self._members.items():
            smaller = rows[asked[rows]]
            for high, (members, keys) in self._members.items():
                if high >= low:
                    for query, other in self._search(smaller, members, keys, high):
                        differ = query != other
                        yield query[differ], other[differ]
                if low < high <= low + reach:
                    larger = asked[members]
                    for other, query in self._search(rows, members[larger], keys[larger], high):
                        yield query, other

    def _search(
        self, rows: np.ndarray, members: np.ndarray, keys: np.ndarray, high: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs (row of `rows`, row of `members`); `members` with their sorted `keys` are of level `high`, at least that
        of `rows`.
        """
        if not len(rows) or not len(members):
            return
        first = self._cell(self.boxes[rows, :2], high)
        last = self._cell(self.boxes[rows, 2:], high)
        for step in (-1, 0, 1):
            y = first[:, 1] + step
            low_key = self._key(self.layer[rows], y, first[:, 0] - 1, high)
            high_key = self._key(self.layer[rows], y, np.minimum(last[:, 0], first[:, 0] + 1), high)
            start, stop = np.searchsorted(keys, low_key, "left"), np.searchsorted(keys, high_key, "right")
            stop = np.where(y <= last[:, 1], stop, start)
            yield from self._expand(rows, start, stop, members)

    @staticmethod
    def _expand(
        rows: np.ndarray, start: np.ndarray, stop: np.ndarray, members: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        found = np.flatnonzero(stop > start)
        rows, start, counts = rows[found], start[found], (stop - start)[found]
        total = np.cumsum(counts)
        bounds = np.searchsorted(total, np.arange(0, total[-1] if len(total) else 0, _CHUNK)[1:], side="left")
        for part in np.split(np.arange(len(rows)), bounds):
            if not len(part):
                continue
            n = counts[part]
            within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
            yield np.repeat(rows[part], n), members[np.repeat(start[part], n) + within]


def _levels(ratio: float) -> float:
    """How many powers of two apart the levels of two boxes can be whose longer sides have this ratio."""
    return np.inf if np.isinf(ratio) else np.ceil(np.log2(max(ratio, 1.0)))
