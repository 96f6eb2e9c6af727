"""`data split`: train, val and test that do not leak, by groups of images that belong together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.grouping import KINDS, assign, cut_groups, features, group_files
from flyspeck.data.checks.leaks import Links, find_links, partners_by_kind
from flyspeck.data.checks.names import FRAME_GAP, Frames
from flyspeck.data.checks.near import ALIKE, compare
from flyspeck.data.checks.parts import Part, read_parts, whole_of
from flyspeck.data.checks.write_part import JOINED, new_folder, write_part
from flyspeck.errors import UserError, counted
from flyspeck.files import cell, local_output, write_text

GROUPS, SUMMARY = "groups.csv", "summary.txt"
SHARES = {"train": 0.8, "val": 0.2}


@dataclass(frozen=True)
class SplitPart:
    """One of the new splits."""

    name: str
    asked: float
    """Share of the images that was asked for."""
    images: int
    share: float
    objects: int
    classes: dict[str, int]
    """Objects of each class."""
    groups: int


@dataclass(frozen=True)
class Split:
    """What `split` made."""

    parts: tuple[SplitPart, ...]
    groups: int
    largest: int
    """Images of the largest group."""
    left_out: int
    """Images in no split, because a group was cut beside them."""
    notes: tuple[str, ...]
    """What was written and what cannot be as asked."""

    def text(self, *, most: int | None = None) -> str:
        """Shares asked for and reached, objects by class, and what to know; of more than `most` classes the most uneven ones."""
        lines = [f"{counted(self.groups, 'group')} of images, the largest of {self.largest}"]
        lines.append(f"{'':>8}{'asked':>8}{'share':>8}{'images':>8}{'groups':>8}{'objects':>9}")
        for part in self.parts:
            lines.append(
                f"{part.name:>8}{part.asked:>8.1%}{part.share:>8.1%}{part.images:>8}{part.groups:>8}{part.objects:>9}"
            )
        return "\n".join([*lines, *self._class_lines(most), *self._left_out(), *self.notes]) + "\n"

    def _class_lines(self, most: int | None) -> list[str]:
        """A line for each class, in its order."""
        counts = {name: [part.classes[name] for part in self.parts] for name in self.parts[0].classes}
        if not any(sum(each) for each in counts.values()):
            return []
        shown, head = list(counts), "objects of each class, in per cent:"
        if most is not None and len(shown) > most:
            uneven = {
                name: max(abs(n / max(1, sum(each)) - p.asked) for p, n in zip(self.parts, each, strict=True))
                for name, each in counts.items()
            }
            chosen = set(sorted(counts, key=lambda name: -uneven[name])[:most])
            head = f"objects of the {most} most uneven of {len(shown)} classes, in per cent (summary.txt has all):"
            shown = [name for name in shown if name in chosen]
        lines = [head]
        for name in shown:
            total = sum(counts[name])
            cells = ", ".join(
                f"{p.name} {n / max(1, total):.1%}" for p, n in zip(self.parts, counts[name], strict=True)
            )
            lines.append(f"  {name} ({total}): {cells}")
        return lines

    def _left_out(self) -> list[str]:
        if not self.left_out:
            return []
        return [
            f"{counted(self.left_out, 'image is', 'images are')} in no split, too close to a place where a group was cut"
        ]


def split(
    source: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    also: Sequence[str | os.PathLike[str]] = (),
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    cut: bool = False,
    link: bool = False,
    format: str | None = None,
    images: str | os.PathLike[str] | None = None,
    pixels: str | None = None,
    encoding: str | None = None,
    compare_images: bool = True,
    alike: float = ALIKE,
    frames: Frames = "auto",
    frame_gap: int = FRAME_GAP,
    workers: int = 1,
    allow_references: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Split:
    """Divide a data set into splits that have nothing in common: no image, no near duplicate, no neighbouring frame.

    Images that are the same, nearly the same, tiles or copies of one image, or that follow each other in a series stay together.
    Such groups are dealt out so that each split has its share of the images, of the objects of each class and of each size.

    Args:
        source: Annotations: a file or folder in any of the formats read; the parts of a set that is split already are joined.
        out: New folder to write to: the splits, `groups.csv` (which image is in which group and split, and why) and
            `summary.txt`.
        also: Further parts of the same set.
        shares: Names of the splits and their shares of the images, which add up to 1.
        seed: Of the order in which groups are tried; the same gives the same splits.
        cut: Cut groups that are larger than half of the smallest share into blocks of following frames; images of the larger of
            two splits that have a partner in the smaller are left out.
        link: YOLO: link the images instead of copying them.
        format: Name of the format, instead of having it found out.
        images: Folder of the images, where it is not the usual one.
        pixels: What whole corners of VOC's boxes mean.
        encoding: Of text files that are neither UTF-8 nor say what they are.
        compare_images: Decode each image to find what is nearly the same; otherwise names alone tie images.
        alike: Least correlation, 0.5 to 1, of two images at 32x32 that are called nearly the same.
        frames: Whether numbers in names count frames: `auto` asks the pixels, `yes` and `no` settle it.
        frame_gap: Largest difference of the numbers of neighbouring frames.
        workers: Processes that decode images.
        allow_references: The annotations may name images outside of their folder; False refuses them.
        progress: Called with the numbers of images compared and of all.

    Returns:
        What the splits hold, and what could not be as asked.

    Raises:
        UserError: For shares that do not add up, fewer groups than splits, an `out` that holds something.
    """
    names, aims = _shares(shares)
    place = local_output(out)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError("is there already", where=place, fix="give a new folder: nothing is written in place")
    parts = read_parts(
        Path(source),
        [Path(one) for one in also],
        format=format,
        images=None if images is None else Path(images),
        pixels=pixels,
        encoding=encoding,
        allow_references=allow_references,
    )
    links = find_links(
        parts,
        pixels=compare_images,
        alike=alike,
        frames=frames,
        frame_gap=frame_gap,
        workers=workers,
        progress=progress,
    )
    divided = divide(Path(source), parts, links, list(aims), seed=seed, cut=cut, alike=alike, frame_gap=frame_gap)
    part, chosen, group, file_of = divided.part, divided.chosen, divided.group, divided.file_of
    new_folder(place)
    notes = _unseen(links) + _notes(chosen[file_of], names, aims, divided.largest, cut)
    written = []
    for number, name in enumerate(names):
        rows = np.flatnonzero(chosen[file_of] == number)
        table = part.table.select_images(rows)
        notes += write_part(part, table, place, name, link=link, encoding=encoding)
        written.append(_describe(name, aims[number], table, len(part.table), len(np.unique(group[file_of[rows]]))))
    done = Split(
        tuple(written), int(group.max(initial=-1)) + 1, divided.largest, int((chosen[file_of] < 0).sum()), tuple(notes)
    )
    write_text(place / GROUPS, _listing(links, group, divided.ties, chosen, names))
    write_text(place / SUMMARY, done.text())
    return done


@dataclass(frozen=True)
class Division:
    """Which of S splits each of F image files belongs to."""

    part: Part
    """All parts as one, of I images."""
    chosen: np.ndarray
    """(F,) the split, or -1 for a file that is too close to a place where a group was cut."""
    group: np.ndarray
    """(F,) the group, after cutting."""
    ties: np.ndarray
    """(F, 4) bool: in which ways a file is tied to others, as in `grouping.KINDS`."""
    file_of: np.ndarray
    """(I,) the file of each image of `part`."""
    largest: int
    """Files of the largest group before cutting."""

    def rows(self, number: int) -> np.ndarray:
        """The images of one split, as rows of `part.table`."""
        return np.flatnonzero(self.chosen[self.file_of] == number)


def divide(
    source: Path,
    parts: Sequence[Part],
    links: Links,
    aims: Sequence[float],
    *,
    seed: int = 0,
    cut: bool = False,
    alike: float = ALIKE,
    frame_gap: int = FRAME_GAP,
) -> Division:
    """`split` without a word on disk: `parts`, with what `find_links` found of them, in shares `aims` that add up to 1.

    Raises UserError where there are fewer groups than splits.
    """
    part = _one_part(source, parts)
    row_of = {path: row for row, path in enumerate(links.files.paths)}
    file_of = np.array([row_of[part.table.path(row).absolute()] for row in range(len(part.table))], dtype=np.int64)
    groups = group_files(links, frame_gap)
    group = groups.group
    if cut:
        group = cut_groups(groups, links, max(1, int(min(aims) * len(links.files.paths) / 2)))
    if len(np.unique(group)) < len(aims):
        fix = "give --cut to cut series" if not cut else "give fewer splits"
        raise UserError(
            f"{counted(len(np.unique(group)), 'group')} of images for {len(aims)} splits", where=source, fix=fix
        )
    sums, weights = features(part.table, group[file_of])
    chosen = assign(sums, weights, aims, seed)[group]
    if cut:
        chosen = _without_leaks(chosen, links, aims, alike=alike, frame_gap=frame_gap)
    _prove(chosen, links, len(aims), alike=alike, frame_gap=frame_gap)
    largest = int(np.bincount(groups.group, minlength=1).max())
    return Division(part, chosen, group, groups.ties, file_of, largest)


def _shares(shares: Mapping[str, float]) -> tuple[list[str], list[float]]:
    names, aims = list(shares), [float(value) for value in shares.values()]
    if len(names) < 2 or not all(0 < value < 1 for value in aims) or abs(sum(aims) - 1) > 1e-6:
        given = ",".join(f"{name}={value:g}" for name, value in shares.items())
        fix = "give two or more that add up to 1, such as train=0.7,val=0.15,test=0.15"
        raise UserError(f"shares of {given or 'nothing'}", where="--shares", fix=fix)
    odd = [name for name in names if not name.isidentifier()]
    if odd:
        raise UserError(
            f"'{odd[0]}' is no name of a split", where="--shares", fix="take letters, such as train, val, test"
        )
    return names, aims


def _one_part(source: Path, parts: Sequence[Part]) -> Part:
    """The parts as one, in their format where that is YOLO for all; several files of other formats become one COCO table."""
    if len(parts) == 1:
        return parts[0]
    kinds = {part.format for part in parts}
    return Part(source.name, "", whole_of(source, parts), kinds.pop() if kinds == {"yolo"} else JOINED)


def _member(chosen: np.ndarray, splits: int) -> np.ndarray:
    return chosen[:, None] == np.arange(splits)


def _leaking(chosen: np.ndarray, links: Links, splits: int, *, alike: float, frame_gap: int) -> np.ndarray:
    """`(F, S)` bool: files of one split that have a partner in another, and in which."""
    member = _member(chosen, splits)
    near = None if links.prints is None else compare(links.prints, member, alike=alike)
    found = partners_by_kind(replace(links, files=replace(links.files, member=member), alike=near), frame_gap)
    hit = np.zeros(member.shape, dtype=bool)
    for partner in found.values():
        hit |= partner >= 0
    return hit & ~member & (chosen >= 0)[:, None]


def _without_leaks(
    chosen: np.ndarray, links: Links, aims: Sequence[float], *, alike: float, frame_gap: int
) -> np.ndarray:
    """Leaves out, from the larger of two splits, what has a partner in the smaller; split -1 means left out."""
    chosen = chosen.copy()
    for number in np.argsort(-np.asarray(aims), kind="stable").tolist():
        hit = _leaking(chosen, links, len(aims), alike=alike, frame_gap=frame_gap)
        chosen[(chosen == number) & hit.any(1)] = -1
    return chosen


def _prove(chosen: np.ndarray, links: Links, splits: int, *, alike: float, frame_gap: int) -> None:
    """The promise, kept: no file of a split has a partner in another."""
    hit = _leaking(chosen, links, splits, alike=alike, frame_gap=frame_gap)
    if hit.any():
        raise AssertionError(f"{int(hit.any(1).sum())} images leak between the splits: groups were divided")


def _unseen(links: Links) -> list[str]:
    """A line on images whose pixels tie them to none: they could not be read, or are too plain."""
    if links.prints is None:
        return ["note: images were not compared: only their names tie them"]
    lost, plain = len(links.prints.problems), int((links.prints.plain & links.prints.readable).sum())
    lines = []
    if lost:
        first = links.prints.problems[0]
        lines.append(
            f"note: {counted(lost, 'image')} could not be read, and only their names tie them; the first: {first}"
        )
    if plain:
        lines.append(
            f"note: {counted(plain, 'image is', 'images are')} too plain to be near others (empty sea or sky): only equal"
            " pixels and names tie them"
        )
    return lines


def _notes(chosen: np.ndarray, names: Sequence[str], aims: Sequence[float], largest: int, cut: bool) -> list[str]:
    """A line for each split that is far from its share, and for groups that are too large for one."""
    total = max(1, int((chosen >= 0).sum()))
    notes = []
    for number, (name, aim) in enumerate(zip(names, aims, strict=True)):
        share = (chosen == number).sum() / total
        if abs(share - aim) > max(0.02, 0.1 * aim):
            notes.append(
                f"note: {name} has {share:.1%} of the images, {aim:.1%} were asked for: groups are not divided"
            )
    if notes and largest > min(aims) * len(chosen) and not cut:
        what = f"the largest group has {largest} of {len(chosen)} images, more than the smallest share"
        notes.append(f"note: {what}: --cut cuts it into blocks")
    return notes


def _describe(name: str, aim: float, table: Annotations, total: int, groups: int) -> SplitPart:
    counts = np.bincount(table.labels[~table.ignore], minlength=len(table.classes)).tolist()
    classes = dict(zip(table.classes, counts, strict=True))
    return SplitPart(name, aim, len(table), round(len(table) / max(1, total), 4), sum(counts), classes, groups)


def _listing(links: Links, group: np.ndarray, ties: np.ndarray, chosen: np.ndarray, names: Sequence[str]) -> str:
    rows: list[list[Any]] = [["image", "group", "split", "tied to others by"]]
    for row in np.lexsort((np.arange(len(group)), group)).tolist():
        why = ", ".join(kind for kind, tied in zip(KINDS, ties[row], strict=True) if tied)
        split_name = names[int(chosen[row])] if chosen[row] >= 0 else "left out"
        rows.append([links.files.short(row), int(group[row]), split_name, why])
    return "".join(f"{','.join(map(cell, row))}\n" for row in rows)
