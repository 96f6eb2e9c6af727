"""Groups of images that must not be divided, and their assignment to splits of stated shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flyspeck import boxes as bx
from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.leaks import Links
from flyspeck.data.checks.names import chains
from flyspeck.data.checks.near import join
from flyspeck.size_bins import EDGES, bin_of

KINDS = ("same content", "nearly the same", "one image's tiles or copies", "neighbouring frames")
MOST_CLASSES = 256
"""That are balanced each by itself."""
_TRIALS = 12
_PASSES = 6


@dataclass(frozen=True)
class Groups:
    """Of F files."""

    group: np.ndarray
    """(F,) int64: number of the group, 0..G-1."""
    ties: np.ndarray
    """(F, 4) bool: in which ways, as in `KINDS`, a file is tied to another."""


def group_files(links: Links, frame_gap: int) -> Groups:
    """Files that are the same, nearly the same, tiles or copies of one image, or follow each other in a series are one group."""
    count = len(links.files.paths)
    group, ties = np.arange(count), np.zeros((count, len(KINDS)), dtype=bool)
    keys = [links.content, links.alike.group if links.alike is not None else np.arange(count), links.origins.whole]
    for kind, key in enumerate(keys):
        order = np.argsort(key, kind="stable")
        follow = key[order[1:]] == key[order[:-1]]
        _tie(group, ties[:, kind], order[:-1][follow], order[1:][follow])
    if links.frames.verdict in ("frames", "unknown"):
        _tie(group, ties[:, 3], *chains(links.origins, frame_gap))
    return Groups(np.unique(group, return_inverse=True)[1], ties)


def _tie(group: np.ndarray, tied: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    join(group, a, b)
    tied[a] = tied[b] = True


def cut_groups(groups: Groups, links: Links, most: int) -> np.ndarray:
    """`(F,)` groups of at most `most` files: larger ones are cut into blocks, in the order of series and frame."""
    group, following = groups.group.copy(), int(groups.group.max(initial=-1)) + 1
    for number in np.flatnonzero(np.bincount(groups.group) > most).tolist():
        rows = np.flatnonzero(groups.group == number)
        rows = rows[np.lexsort((rows, links.origins.frame[rows], links.origins.series[rows]))]
        blocks = -(-len(rows) // most)
        for block in np.array_split(rows, blocks)[1:]:
            group[block] = following
            following += 1
    return group


def features(table: Annotations, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is balanced: `(G, K)` sums by group, `group` (I,) being that of each image, and `(K,)` the weight of each column.

    Images; objects of each class and of each bin of sizes; ignore regions; images without a box. A class that few groups have
    cannot be balanced, and weighs less.
    """
    count = int(group.max(initial=-1)) + 1
    of_box = group[table.image_index]
    objects = ~table.ignore
    empty = np.bincount(table.image_index, minlength=len(table)) == 0
    bins = bin_of(bx.area(table.boxes))
    columns = [np.bincount(group, minlength=count), np.bincount(group[empty], minlength=count)]
    columns.append(np.bincount(of_box[table.ignore], minlength=count))
    columns += [np.bincount(of_box[objects & (bins == k)], minlength=count) for k in range(len(EDGES) - 1)]
    balanced, rest = _balanced_classes(table)
    columns += [np.bincount(of_box[table.labels == label], minlength=count) for label in balanced]
    columns += [np.bincount(of_box[np.isin(table.labels, rest)], minlength=count)] if rest else []
    sums = np.stack(columns, 1).astype(np.float64)
    spread = np.minimum(1.0, (sums > 0).sum(0) / 10)
    kinds = np.array([4.0, 0.25, 0.25, *[1.0 / (len(EDGES) - 1)] * (len(EDGES) - 1)])
    classes = len(columns) - len(kinds)
    kinds = np.append(kinds, np.full(classes, 2.0 / max(1, classes)))
    return sums, kinds * spread * (sums.sum(0) > 0)


def _balanced_classes(table: Annotations) -> tuple[list[int], list[int]]:
    """Labels that are balanced each by itself, and those that are balanced together: of very many classes, all but the most
    frequent, or columns by groups would fill memory.
    """
    labels = list(range(len(table.classes)))
    if len(labels) <= MOST_CLASSES:
        return labels, []
    counts = np.bincount(table.labels[table.labels >= 0], minlength=len(labels))
    order = np.argsort(-counts, kind="stable").tolist()
    return sorted(order[:MOST_CLASSES]), sorted(order[MOST_CLASSES:])


def assign(sums: np.ndarray, weights: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """`(G,)` the split of each group, so that each split has its share of every column of `sums` (G, K) as far as groups allow.

    The largest groups first, each to where it disturbs least; then groups are moved while that helps. The best of twelve orders.
    """
    rng = np.random.default_rng(seed)
    parts = sums / np.maximum(sums.sum(0), 1)
    aims = np.asarray(shares, dtype=np.float64)
    best, least = np.zeros(len(sums), dtype=np.int64), np.inf
    for _ in range(_TRIALS):
        # Equal groups in any order; unequal ones by how much of the set they are, blurred a little.
        bulk = (parts * weights).sum(1) * rng.uniform(0.7, 1.3, len(sums))
        found, cost = _one_trial(parts, weights, aims, np.argsort(-bulk, kind="stable"))
        if cost < least:
            best, least = found, cost
    return best


def _one_trial(parts: np.ndarray, weights: np.ndarray, aims: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, float]:
    """Splits of the groups and what they cost: the weighted squares of what each split has too much or too little."""
    place = np.full(len(parts), -1)
    off = -np.repeat(aims[:, None], parts.shape[1], 1)  # (S, K) share less aim
    for one in order.tolist():
        # Relative to the aim, so that a small split is filled as truly as a large one.
        gain = (weights * ((off + parts[one]) ** 2 - off**2)).sum(1) / aims
        place[one] = int(gain.argmin())
        off[place[one]] += parts[one]
    for _ in range(_PASSES):
        moved = False
        for one in order.tolist():
            old = place[one]
            without = (weights * ((off[old] - parts[one]) ** 2 - off[old] ** 2)).sum() / aims[old]
            gain = (weights * ((off + parts[one]) ** 2 - off**2)).sum(1) / aims
            gain[old] = np.inf
            new = int(gain.argmin())
            if gain[new] + without < -1e-12:
                off[old] -= parts[one]
                off[new] += parts[one]
                place[one], moved = new, True
        if not moved:
            break
    return place, float(((weights * off**2).sum(1) / aims).sum())
