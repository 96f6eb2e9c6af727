"""Images that a set has twice, nearly twice, or in two of its splits: by bytes, by pixels, and by what their names say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from flyspeck.data.checks.fingerprints import Fingerprints, fingerprint, pixel_digest
from flyspeck.data.checks.names import (
    FRAME_GAP,
    FrameEvidence,
    Frames,
    Origins,
    evidence,
    neighbours,
    origins,
    told_apart,
)
from flyspeck.data.checks.near import ALIKE, Alike, compare
from flyspeck.data.checks.parts import ImageFiles, Part, image_files_of
from flyspeck.errors import UserError

_LISTED = 20
_KINDS = ("same_file", "same_content", "near", "same_source", "neighbours")


@dataclass(frozen=True)
class Leak:
    """What one part of a set has in common with another: images of `tested` that have a partner in `trained`."""

    tested: str
    trained: str
    images: int
    """Of `tested`."""
    same_file: int
    """Listed in both."""
    same_content: int
    """Another file of the same bytes or pixels."""
    near: int
    """Another file that is nearly the same."""
    same_source: int
    """Tiles or copies, by their names, of one image."""
    neighbours: int
    """Frames of one series with numbers close by, by their names."""
    leaking: int
    """Images with a partner of any of these kinds."""
    first: tuple[tuple[str, str, str], ...]
    """Up to 20: image, partner, kind."""


@dataclass(frozen=True)
class Duplicates:
    """What `find_duplicates` found."""

    images: int
    """Files that the set lists."""
    compared: bool
    """Whether pixels were looked at."""
    plain: int
    """Images too plain to be compared by anything but equality of their pixels."""
    not_read: tuple[str, ...]
    """Files that could not be read, one line each."""
    same: tuple[tuple[str, ...], ...]
    """Groups of files with the same bytes or pixels."""
    near_pairs: int
    near_images: int
    """Images that have a near partner."""
    near: tuple[tuple[str, str, float], ...]
    """The closest 20: image, partner, correlation."""
    alike: float
    """Threshold of the correlation."""
    listed_twice: tuple[str, ...]
    """Images that one part lists more than once."""
    frames: FrameEvidence
    """Whether numbers in names count frames."""
    frame_gap: int
    leaks: tuple[Leak, ...]
    """One for each two parts that have something in common."""

    def facts(self) -> dict[str, Any]:
        """Plain values; of long lists, how many there are and the first."""
        found = asdict(self)
        for name in ("not_read", "same", "listed_twice"):
            found[name] = {"count": len(found[name]), "first": list(found[name][:_LISTED])}
        found["same"]["images"] = sum(len(group) for group in self.same)
        return found


@dataclass(frozen=True)
class Links:
    """What ties F files to each other, as arrays: for those who repair or split a set."""

    files: ImageFiles
    prints: Fingerprints | None
    content: np.ndarray
    """(F,) files of the same bytes or pixels have one number; files that were not read have their own."""
    alike: Alike | None
    origins: Origins
    frames: FrameEvidence


def find_links(
    parts: Sequence[Part],
    *,
    pixels: bool = True,
    alike: float = ALIKE,
    frames: Frames = "auto",
    frame_gap: int = FRAME_GAP,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Links:
    """What ties the images of `parts` to each other; `pixels` False looks at names only. See `find_duplicates`."""
    if not 0.5 <= alike <= 1:
        raise UserError(f"{alike:g} is no threshold of likeness", where="--alike", fix="give 0.5 to 1, such as 0.8")
    files = image_files_of(parts)
    prints = fingerprint(files.paths, workers=workers, progress=progress) if pixels else None
    return _linked(files, prints, alike=alike, frames=frames, frame_gap=frame_gap)


def restricted(
    links: Links, parts: Sequence[Part], *, alike: float = ALIKE, frames: Frames = "auto", frame_gap: int = FRAME_GAP
) -> Links:
    """`find_links` of `parts` whose files are all among those of `links`: none is decoded again.

    Where they are too few to tell what the numbers in their names count, what all of them told holds.
    """
    files = image_files_of(parts)
    row_of = {path: row for row, path in enumerate(links.files.paths)}
    prints = links.prints and links.prints.of([row_of[path] for path in files.paths])
    found = _linked(files, prints, alike=alike, frames=frames, frame_gap=frame_gap)
    return replace(found, frames=links.frames) if found.frames.verdict == "unknown" else found


def _linked(files: ImageFiles, prints: Fingerprints | None, *, alike: float, frames: Frames, frame_gap: int) -> Links:
    """What ties the files, of which `prints` are known, or nothing but their names."""
    paths = [path.as_posix() for path in files.paths]
    names = told_apart(origins(paths, files.corners), paths, prints, alike=alike)
    told = evidence(names, prints, frames=frames, gap=frame_gap)
    if prints is None:
        return Links(files, None, np.arange(len(files.paths)), None, names, told)
    found = compare(prints, files.member, alike=alike)
    return Links(files, prints, same_content(files, prints), found, names, told)


def same_content(files: ImageFiles, prints: Fingerprints) -> np.ndarray:
    """`(F,)`: the lowest row among the files of the same bytes, or of the same pixels in another file."""
    content = np.arange(len(files.paths))
    by_bytes: dict[bytes, int] = {}
    by_print: dict[bytes, list[int]] = defaultdict(list)
    for row in np.flatnonzero(prints.readable).tolist():
        content[row] = by_bytes.setdefault(prints.digests[row], row)
        if content[row] == row:
            by_print[prints.plain_pixels[row] or prints.cells[row].tobytes()].append(row)
    for rows in by_print.values():
        if len(rows) > 1:
            by_pixels: dict[bytes, int] = {}
            for row in rows:
                first = by_pixels.setdefault(prints.plain_pixels[row] or pixel_digest(files.paths[row]), row)
                content[content == row] = first
    return content


def find_duplicates(
    parts: Sequence[Part], links: Links, *, alike: float = ALIKE, frame_gap: int = FRAME_GAP
) -> Duplicates:
    """What the parts of a set have twice, from `find_links` of the same parts and settings."""
    files, near = links.files, links.alike
    groups = defaultdict(list)
    for row, key in enumerate(links.content.tolist()):
        groups[key].append(row)
    same = tuple(tuple(map(files.short, rows)) for rows in groups.values() if len(rows) > 1)
    best: list[tuple[str, str, float]] = []
    near_images = 0
    if near is not None and near.best.size:
        highest = near.best.max(1)
        near_images = int((highest > 0).sum())
        best = _closest(files, near, highest)
    twice = [
        f"{part.name}: {files.short(row)}"
        for part, rows in zip(parts, files.rows, strict=True)
        if "corner" not in part.table.image_extra  # the tiles of one image may all name it
        for row in np.flatnonzero(np.bincount(rows, minlength=1) > 1).tolist()
    ]
    prints = links.prints
    return Duplicates(
        images=len(files.paths),
        compared=prints is not None,
        plain=0 if prints is None else int((prints.plain & prints.readable).sum()),
        not_read=() if prints is None else prints.problems,
        same=same,
        near_pairs=0 if near is None else near.pairs,
        near_images=near_images,
        near=tuple(best),
        alike=alike,
        listed_twice=tuple(twice),
        frames=links.frames,
        frame_gap=frame_gap,
        leaks=tuple(_leaks([part.name for part in parts], links, frame_gap)),
    )


def _closest(files: ImageFiles, near: Alike, highest: np.ndarray) -> list[tuple[str, str, float]]:
    """The closest pairs, each once."""
    found: dict[tuple[int, int], float] = {}
    for row in np.argsort(-highest, kind="stable")[: 4 * _LISTED].tolist():
        if highest[row] > 0:
            other = int(near.partner[row, int(near.best[row].argmax())])
            found.setdefault((min(row, other), max(row, other)), round(float(highest[row]), 4))
    return [(files.short(a), files.short(b), value) for (a, b), value in list(found.items())[:_LISTED]]


def _leaks(names: Sequence[str], links: Links, frame_gap: int) -> list[Leak]:
    """A leak for each two parts that have an image in common, in any of the five ways."""
    partners = partners_by_kind(links, frame_gap)
    found = []
    for a, b in combinations(range(len(names)), 2):
        tested, trained = (a, b) if part_rank(names[a]) > part_rank(names[b]) else (b, a)
        own = np.flatnonzero(links.files.member[:, tested])
        counts = {kind: int((partners[kind][own, trained] >= 0).sum()) for kind in _KINDS}
        hit = np.stack([partners[kind][own, trained] >= 0 for kind in _KINDS], 1)
        if not hit.any():
            continue
        first = []
        for place in np.flatnonzero(hit.any(1))[:_LISTED].tolist():
            kind = _KINDS[int(hit[place].argmax())]
            other = int(partners[kind][own[place], trained])
            first.append((links.files.short(int(own[place])), links.files.short(other), kind))
        found.append(
            Leak(names[tested], names[trained], len(own), **counts, leaking=int(hit.any(1).sum()), first=tuple(first))
        )
    return found


def partners_by_kind(links: Links, frame_gap: int = FRAME_GAP) -> dict[str, np.ndarray]:
    """By kind, `(F, P)`: for each file its partner in each part, -1 where it has none."""
    member = links.files.member
    count = len(member)
    none = np.full(member.shape, -1, dtype=np.int64)
    frames = links.frames.verdict in ("frames", "unknown")
    return {
        "same_file": np.where(member, np.arange(count)[:, None], -1),
        "same_content": _twins(links.content, member),
        "near": none if links.alike is None else links.alike.partner,
        "same_source": _twins(links.origins.whole, member),
        "neighbours": neighbours(links.origins, member, frame_gap) if frames else none,
    }


def _twins(key: np.ndarray, member: np.ndarray) -> np.ndarray:
    """`(F, P)`: another file of each part with the same `key` (F,); -1 where there is none."""
    count, parts = member.shape
    partner = np.full((count, parts), -1, dtype=np.int64)
    for part in range(parts):
        rows = np.flatnonzero(member[:, part])
        first, last = np.full(count, -1), np.full(count, -1)  # of each key
        first[key[rows[::-1]]] = rows[::-1]
        last[key[rows]] = rows
        own = np.arange(count)
        partner[:, part] = np.where(first[key] != own, first[key], np.where(last[key] != own, last[key], -1))
    return partner


def part_rank(name: str) -> int:
    """Where a part stands by its name: what is trained on first, what is tested last."""
    plain = name.lower()
    return next((rank for rank, word in ((3, "test"), (2, "val"), (0, "train")) if word in plain), 1)
