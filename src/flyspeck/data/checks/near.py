"""Which images are nearly the same: every pair is compared, in blocks, with memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from flyspeck.data.checks.fingerprints import Fingerprints
from flyspeck.errors import UserError

ALIKE = 0.8
"""Least correlation of two small images, without their smooth backgrounds, that are called nearly the same."""
SPARSE_ALIKE = 0.95
"""That of images of which one is sparse."""
MAX_BITS = 64
"""Most bits of 256 in which their hashes differ; two images that have nothing to do with each other differ in about 128."""
_ROWS, _COLUMNS = 256, 8192
_DENSE = 0.02
"""Share of the pairs of a block from which their correlations are computed as one product of matrices."""

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Alike:
    """What `compare` found, of F files in P parts."""

    best: np.ndarray
    """(F, P) float32: the highest correlation of a file with another file of each part; 0 where none is near."""
    partner: np.ndarray
    """(F, P) int64: that file's row; -1 where there is none."""
    group: np.ndarray
    """(F,) int64: files that are near each other, be it by way of others, have one number: the lowest row among them."""
    pairs: int
    """Pairs that are near."""


def compare(
    prints: Fingerprints,
    member: np.ndarray,
    *,
    alike: float = ALIKE,
    max_bits: int = MAX_BITS,
    progress: Callable[[int, int], None] | None = None,
) -> Alike:
    """Every file against every other; `member` (F, P) says which parts of the set list a file.

    Raises UserError for an `alike` outside 0.5 to 1: below, images are called alike that have nothing to do with each other.
    """
    if not 0.5 <= alike <= 1:
        raise UserError(f"{alike:g} is no threshold of likeness", where="--alike", fix="give 0.5 to 1, such as 0.8")
    count, parts = member.shape
    best = np.zeros((count, parts), dtype=np.float32)
    partner = np.full((count, parts), -1, dtype=np.int64)
    group = np.arange(count)
    total = 0
    for rows, columns, likeness in near_pairs(prints, alike=alike, max_bits=max_bits, progress=progress):
        total += len(rows)
        for a, b in ((rows, columns), (columns, rows)):
            for part in range(parts):
                inside = member[b, part]
                keep_best(best[:, part], partner[:, part], a[inside], b[inside], likeness[inside])
        join(group, rows, columns)
    return Alike(best, partner, group, total)


def keep_best(best: np.ndarray, partner: np.ndarray, a: np.ndarray, b: np.ndarray, value: np.ndarray) -> None:
    """Writes `b` beside `a` where its `value` is higher than the best so far; in place."""
    order = np.argsort(-value, kind="stable")
    a, b, value = a[order], b[order], value[order]
    _, first = np.unique(a, return_index=True)
    better = first[value[first] > best[a[first]]]
    best[a[better]] = value[better]
    partner[a[better]] = b[better]


def join(group: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Makes one group of those of `a` and of `b`, pair by pair, named by its lowest row; `group` is changed in place."""
    order = np.argsort(a, kind="stable")
    a, b = a[order], b[order]
    for row, others in zip(*_runs(a, b), strict=True):
        names = np.unique(np.append(group[others], group[row]))
        if len(names) > 1:
            group[np.isin(group, names)] = names[0]


def _runs(a: np.ndarray, b: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """The values of the sorted `a`, and of each the part of `b` beside it."""
    values, starts = np.unique(a, return_index=True)
    return values.tolist(), np.split(b, starts[1:]) if len(values) else []


def near_pairs(
    prints: Fingerprints,
    *,
    alike: float = ALIKE,
    max_bits: int = MAX_BITS,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Pairs]:
    """Rows, higher rows and correlations of the near pairs, block by block; plain images are in none."""
    rows = np.flatnonzero(~prints.plain)
    bits = np.ascontiguousarray(prints.bits[rows].T)  # (4, N): a word at a time
    cells, sparse = prints.cells[rows], prints.sparse[rows]
    for start in range(0, len(rows), _ROWS):
        stop = min(start + _ROWS, len(rows))
        for left in range(start, len(rows), _COLUMNS):
            right = min(left + _COLUMNS, len(rows))
            distance = np.zeros((stop - start, right - left), dtype=np.uint16)
            for word in bits:
                distance += np.bitwise_count(word[start:stop, None] ^ word[None, left:right])
            i, j = np.nonzero(distance <= max_bits)
            later = j + left > i + start
            i, j = i[later], j[later]
            if not len(i):
                continue
            likeness = _correlations(cells[start:stop], cells[left:right], i, j)
            few = sparse[i + start] | sparse[j + left]
            near = likeness >= np.where(few, max(alike, SPARSE_ALIKE), alike)
            if near.any():
                yield rows[i[near] + start], rows[j[near] + left], likeness[near]
        if progress is not None:
            progress(stop, len(rows))


def _correlations(a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Of the pairs `(a[i], b[j])`; float32."""
    if len(i) > _DENSE * len(a) * len(b):
        return (a.astype(np.float32) @ b.astype(np.float32).T)[i, j]
    found = np.empty(len(i), dtype=np.float32)
    for start in range(0, len(i), _COLUMNS):
        some = slice(start, start + _COLUMNS)
        found[some] = np.einsum("ij,ij->i", a[i[some]].astype(np.float32), b[j[some]].astype(np.float32))
    return found
