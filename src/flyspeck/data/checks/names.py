"""What file names say of where an image comes from: a frame of a series, a tile of a larger image, a copy made by a tool.

A name without its last number is a series (a video, a flight), that number the frame: `1_130_90_0_04077` is frame 4077 of
`1_130_90_0_`. Folders and words that only say which split a file is in belong to no series. Numbers may be mere ids, as COCO's
are: so the pixels are asked whether images with neighbouring numbers are more alike than others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from flyspeck.data.checks.fingerprints import Fingerprints

FRAME_GAP = 20
"""Largest difference of two frames' numbers that are called neighbours."""
Frames = Literal["auto", "yes", "no"]

_SPLIT_WORDS = frozenset(
    ("train", "training", "val", "valid", "validation", "test", "testing", "images", "image", "imgs", "labels")
)
_SPLIT_WORD = re.compile(r"^(train|val|valid|test)[_-]+", re.IGNORECASE)
_NUMBER = re.compile(r"(\d{1,18})(?!.*\d)", re.DOTALL)
_ROBOFLOW = re.compile(r"\.rf\.[0-9A-Za-z]{16,}$")
_DOTA_TILE = re.compile(r"^(.+?)__(?:\d+(?:\.\d+)?__)?\d+___\d+$")
_SAHI_TILE = re.compile(r"^(.+)_(\d+)_(\d+)_(\d+)_(\d+)$")
_SAMPLE = 1000


@dataclass(frozen=True)
class Origins:
    """Of F files."""

    series: np.ndarray
    """(F,) int64: number of the series."""
    frame: np.ndarray
    """(F,) int64: number within it; -1 where the name has none."""
    whole: np.ndarray
    """(F,) int64: files that are tiles, or copies, of one image have one number."""
    names: tuple[str, ...]
    """Of the series."""


def origins(paths: Sequence[str], corners: Sequence[tuple[int, ...] | None] | None = None) -> Origins:
    """What the names of F files say; `paths` are absolute, with forward slashes.

    `corners` (F) has the place of a tile in its whole image (x1, y1, x2, y2), where the annotations give it; the tiles that
    `flyspeck data tile`, SAHI and DOTA's tools write are known by their names as well, copies that Roboflow makes by `.rf.`.
    """
    series: dict[str, int] = {}
    wholes: dict[str, int] = {}
    rows = []
    for place, path in enumerate(paths):
        source = source_of(path, None if corners is None else corners[place])
        name, number = series_of(source)
        rows.append((series.setdefault(name, len(series)), number, wholes.setdefault(source, len(wholes))))
    found = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Origins(found[:, 0], found[:, 1], found[:, 2], tuple(series))


def source_of(path: str, corner: tuple[int, ...] | None = None) -> str:
    """The path, without its ending and what only names a split, of the image that a file is a tile or a copy of."""
    pure = PurePosixPath(path)
    folders = [part for part in pure.parts[:-1] if part.lower() not in _SPLIT_WORDS and part != "/"]
    stem = _ROBOFLOW.sub("", pure.stem)
    stem = _SPLIT_WORD.sub("", stem)
    tile = _DOTA_TILE.match(stem)
    sahi = _SAHI_TILE.match(stem)
    if corner is not None and stem.endswith(f"_{corner[0]}_{corner[1]}"):
        stem = stem.removesuffix(f"_{corner[0]}_{corner[1]}")
    elif tile:
        stem = tile[1]
    elif sahi and int(sahi[4]) - int(sahi[2]) >= _LEAST_TILE and int(sahi[5]) - int(sahi[3]) >= _LEAST_TILE:
        stem = sahi[1]
    return "/".join([*folders, stem])


_LEAST_TILE = 32


def told_apart(found: Origins, paths: Sequence[str], prints: Fingerprints | None, *, alike: float) -> Origins:
    """The same, where `train/000.png` and `val/000.png` are no copies of one image: many sets number each split from 0.

    Files whose paths differ in nothing but the split are asked for their pixels. Where these are less alike than `alike`, the
    files of the two folders come from two images, and their numbers from two series; where they cannot be compared, most of
    those that can say so. Tiles of one image that are dealt out to splits have other names each, and stay together; so do
    copies that Roboflow made.
    """
    if prints is None:
        return found
    keys: dict[str, int] = {}
    folders: dict[str, int] = {}
    rows = []
    for path in paths:
        pure = PurePosixPath(path)
        inside = "/".join(part for part in pure.parts[:-1] if part.lower() not in _SPLIT_WORDS)
        split = _SPLIT_WORD.match(pure.stem)
        name = f"{inside}/{pure.stem[split.end() :] if split else pure.stem}"
        folder = f"{pure.parent}/{split[0] if split else ''}"
        rows.append((keys.setdefault(name, len(keys)), folders.setdefault(folder, len(folders))))
    key, folder = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    order = np.lexsort((folder, key))
    a, b = order[:-1], order[1:]
    namesakes = (key[a] == key[b]) & (folder[a] != folder[b])
    a, b = a[namesakes], b[namesakes]
    compared = ~prints.plain[a] & ~prints.plain[b]
    if not compared.any():
        return found
    unlike = _likeness(prints, a[compared], b[compared]) < alike
    apart = np.full(len(a), unlike.mean() > 0.5)
    apart[compared] = unlike
    whole, _ = _divided(found.whole, folder, a[apart])
    series, old = _divided(found.series, folder, a[apart])
    return replace(found, whole=whole, series=series, names=tuple(found.names[number] for number in old))


def _divided(key: np.ndarray, folder: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """`(F,)` new numbers for `key`, of which those of `rows` are divided by `folder`, and the old number of each new one."""
    pairs = np.stack([key, np.where(np.isin(key, key[rows]), folder, -1)], 1)
    values, numbers = np.unique(pairs, axis=0, return_inverse=True)
    return numbers.reshape(-1), values[:, 0].tolist()


def series_of(source: str) -> tuple[str, int]:
    """The series of a path without ending, and the frame's number; -1 where its name has none."""
    folder, slash, stem = source.rpartition("/")
    found = _NUMBER.search(stem)
    if found is None:
        return source, -1
    return f"{folder}{slash}{stem[: found.start()]}#{stem[found.end() :]}", int(found[1])


def reach(found: Origins, gap: int = FRAME_GAP) -> np.ndarray:
    """`(F,)` how many frames away a neighbour may be: `gap`, or one step of a series that was sampled in regular steps.

    Regular is a series of three or more files in which over half of the steps are the same.
    """
    order = np.lexsort((found.frame, found.series))
    far = np.full(len(order), gap, dtype=np.int64)
    if gap == 0:
        return far
    _, starts = np.unique(found.series[order], return_index=True)
    for rows in np.split(order, starts[1:]):
        steps = np.diff(found.frame[rows])
        if len(steps) >= 2:
            step = int(np.median(steps))
            if step > gap and (steps == step).mean() > 0.5 and found.frame[rows[0]] >= 0:
                far[rows] = step
    return far


def neighbours(found: Origins, member: np.ndarray, gap: int = FRAME_GAP) -> np.ndarray:
    """`(F, P)`: for each file the nearest other one of each part in the same series, within `reach`; -1: none.

    `member` (F, P) says which parts list a file. Files of one number count as neighbours.
    """
    count, parts = member.shape
    far = reach(found, gap)
    order = np.lexsort((np.arange(count), found.frame, found.series))
    partner = np.full((count, parts), -1, dtype=np.int64)
    for part in range(parts):
        best = np.full(count, np.iinfo(np.int64).max)
        for way in (order, order[::-1]):
            listed = np.where(member[way, part], np.arange(count), -1)
            before = np.append(-1, np.maximum.accumulate(listed)[:-1]) if count else listed
            other = way[np.maximum(before, 0)]
            away = np.abs(found.frame[way] - found.frame[other])
            near = (before >= 0) & (found.series[way] == found.series[other]) & (found.frame[way] >= 0)
            near &= found.frame[other] >= 0
            near &= (away <= far[way]) & (away < best[way])
            best[way[near]] = away[near]
            partner[way[near], part] = other[near]
    return partner


def chains(found: Origins, gap: int = FRAME_GAP) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of files that follow each other in a series, within `reach`: their rows, `(N,)` each."""
    far = reach(found, gap)
    order = np.lexsort((found.frame, found.series))
    a, b = order[:-1], order[1:]
    linked = (found.series[a] == found.series[b]) & (found.frame[a] >= 0) & (found.frame[b] - found.frame[a] <= far[a])
    return a[linked], b[linked]


@dataclass(frozen=True)
class FrameEvidence:
    """Whether the numbers in names count frames."""

    verdict: Literal["frames", "ids", "unknown", "off"]
    """`frames`: neighbours are alike; `ids`: no more than others; `unknown`: too little to tell, the names alone are believed."""
    pairs: int
    """Pairs of files that are neighbours by name."""
    auc: float | None
    """How often a pair of neighbours is more alike than a pair by chance; 0.5: they are not."""


def evidence(
    found: Origins, prints: Fingerprints | None, *, frames: Frames = "auto", gap: int = FRAME_GAP
) -> FrameEvidence:
    """Whether neighbours by number are more alike than files taken by chance: up to 1000 pairs, and 2000 by chance, seeded.

    `prints` None: nothing was looked at, so the names alone count. `frames` yes or no settles it beforehand.
    """
    a, b = chains(found, gap)
    pairs = len(a)
    if frames == "no" or gap == 0:
        return FrameEvidence("off", 0, None)
    if frames == "yes" or not len(a):
        return FrameEvidence("frames" if pairs else "off", pairs, None)
    if prints is None:
        return FrameEvidence("unknown", pairs, None)
    usable = ~prints.plain
    good = usable[a] & usable[b]
    a, b = a[good], b[good]
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(usable)
    if len(a) < _LEAST_PAIRS:
        return FrameEvidence("unknown", pairs, None)
    some = rng.permutation(len(a))[:_SAMPLE]
    c, d = rng.choice(rows, (2, 2 * _SAMPLE))
    far = (found.series[c] != found.series[d]) | (np.abs(found.frame[c] - found.frame[d]) > gap)
    if far.sum() < _LEAST_PAIRS:  # all is one short series: what is far away in it is not there to compare with
        return FrameEvidence("unknown", pairs, None)
    near, chance = _likeness(prints, a[some], b[some]), _likeness(prints, c[far], d[far])
    ranks = np.searchsorted(np.sort(chance), near, "left") + np.searchsorted(np.sort(chance), near, "right")
    auc = float(ranks.mean() / (2 * len(chance)))
    error = ((len(near) + len(chance) + 1) / (12 * len(near) * len(chance))) ** 0.5
    return FrameEvidence("frames" if auc - 2 * error > _LEAST_AUC else "ids", pairs, round(auc, 3))


_LEAST_PAIRS = 10
_LEAST_AUC = 0.55


def _likeness(prints: Fingerprints, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", prints.cells[a].astype(np.float32), prints.cells[b].astype(np.float32))
