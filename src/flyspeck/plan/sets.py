"""Which images a detector learns from, which choices are made on, and which are only reported on: as the set says, or by groups.

A folder of several parts is taken as its parts are called. Otherwise the set is divided so that no two parts share an image, a
near duplicate or a neighbouring frame (`data.checks.split`). Images stay where they are; what is written is annotations.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.leaks import Links, find_duplicates, find_links, part_rank, restricted
from flyspeck.data.checks.parts import Part, read_parts, told_apart, whole_of
from flyspeck.data.checks.split import Division, divide
from flyspeck.data.join import join_annotations
from flyspeck.data.writers import write_coco
from flyspeck.errors import UserError, counted
from flyspeck.plan.choices import named
from flyspeck.plan.fingerprint import Fingerprint
from flyspeck.plan.usable import check_pixels

TRAIN, CHOOSE, REPORT = "train", "choose", "report"
SHARES: Mapping[tuple[str, ...], tuple[float, ...]] = {
    (TRAIN, CHOOSE): (0.8, 0.2),
    (TRAIN, CHOOSE, REPORT): (0.7, 0.15, 0.15),
}
"""Shares of the images where the set is divided here."""
FEW_OBJECTS = 20
"""Below so many, metrics are said to be rough."""
_UNTOLD = (
    "{} too few to tell whether the numbers in their names count frames: where they do not look alike, they are taken for single"
    " images; of frames, metrics would promise too much: then give other images with --val"
)
_SPLIT = re.compile(r"(train(ing)?|val(id(ation)?)?|test(ing)?)\d*", re.IGNORECASE)
"""What folders of splits are called."""
_JOINED = "joined"
Progress = Callable[[int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """One of the parts, as a recipe names it."""

    path: str
    """What `read_annotations` takes."""
    table: Annotations
    written: bool = False
    """Whether it is made here: `write` puts it there."""

    def write(self) -> None:
        """Its COCO json, where it is made here."""
        if self.written:
            write_coco(self.table, Path(self.path))


@dataclass(frozen=True)
class Sets:
    """The parts, and what ties their images."""

    parts: Mapping[str, Source]
    """By `TRAIN`, `CHOOSE` and, where it was asked for, `REPORT`."""
    links: Links
    notes: tuple[str, ...]
    groups: int
    largest: int
    """Images of the largest group."""

    @property
    def train(self) -> Annotations:
        """What is learnt."""
        return self.parts[TRAIN].table

    def describe(self, found: Fingerprint) -> Fingerprint:
        """The fingerprint with what ties the images."""
        content = np.bincount(self.links.content, minlength=1)
        return replace(
            found,
            grouped=True,
            compared=self.links.prints is not None,
            groups=self.groups,
            largest_group=self.largest,
            duplicates=int(content[content > 1].sum()),
        )


def read_sources(data: Path, val: Path | None, options: Mapping[str, Any]) -> tuple[list[Part], Part | None]:
    """The parts of `data`, and `val` as one part; `options` are those of `read_annotations`."""
    parts = _by_folder(read_parts(data, **options))
    if val is None:
        return parts, None
    others = read_parts(val, **options)
    other = others[0] if len(others) == 1 else replace(others[0], table=whole_of(val, others))
    if any(part.name == other.name for part in parts):  # what is said of them names them
        *names, last = told_apart([*(part.source for part in parts), other.source])
        parts, other = [replace(p, name=n) for p, n in zip(parts, names, strict=True)], replace(other, name=last)
    return parts, other


def _by_folder(parts: list[Part]) -> list[Part]:
    """A set that is one part, all of whose images lie in folders called train and val or test: by those. Any other as it is."""
    part = parts[0]
    folders = [Path(name).parts[:-1] for name in part.table.file_names]
    for depth in range(min(map(len, folders), default=0) if len(parts) == 1 else 0):
        called = np.array([folder[depth] for folder in folders])
        names = sorted(set(called.tolist()), key=part_rank)
        if len(names) > 1 and part_rank(names[0]) == 0 and all(map(_SPLIT.fullmatch, names)):
            split = []
            for name in names:
                table = part.table.select_images(called == name)
                notes = () if split else part.table.notes
                table = replace(table, source=f"{table.source}, folder {name}", notes=notes)
                split.append(Part(name, f"{part.source}, {name}", table, _JOINED))
            return split
    return parts


def arrange(
    data: Path,
    parts: Sequence[Part],
    val: Part | None,
    folder: Path,
    *,
    report: bool,
    written: bool = False,
    pixels: bool = True,
    workers: int = 1,
    progress: Progress | None = None,
) -> Sets:
    """Which images are for what: of `parts`, those of `data`, and of `val`, where it is given.

    With `report` there are three parts; what is given as `val`, or is called test (or val), is then reported on, and the images
    that choices are made on are taken from those to learn from. What has to be divided, or all of it with `written`, is to be
    written below `folder`. `pixels` False ties images by their names alone.

    Raises UserError where there are too few images that do not belong together, or some cannot be decoded.
    """
    everything = [*parts, *([] if val is None else [val])]
    links = find_links(everything, pixels=pixels, workers=workers, progress=progress)
    check_pixels(data, [part.table for part in everything], links)
    named = _by_name(parts, val, report=report)
    _check_apart(named, val, links)
    notes = _leak_notes(everything, links, data)
    wanted = (TRAIN, CHOOSE, REPORT) if report else (TRAIN, CHOOSE)
    missing = [name for name in wanted if name not in named]
    learnt = named[TRAIN]
    sources = {name: _source(name, part, folder, written) for name, part in named.items() if name != TRAIN}
    groups = divided = None
    if missing:
        names = (TRAIN, *missing)
        shares = SHARES[names if len(names) > 2 else (TRAIN, CHOOSE)]
        divided, told = _divided(data, learnt, links, everything, shares)
        for number, name in enumerate(names):
            table = divided.part.table.select_images(divided.rows(number))
            sources[name] = Source(str(folder / f"{name}.json"), table, True)
        notes += [*_division_notes(divided, sources, names), *told]
        groups = divided.group
    else:
        sources[TRAIN] = _source(TRAIN, learnt, folder, written)
    _check(sources, data)
    notes += _absent_notes(sources)
    ties = groups if groups is not None else links.content
    return Sets(
        parts=sources,
        links=links,
        notes=tuple(notes),
        groups=len(np.unique(ties)),
        largest=divided.largest if divided is not None else int(np.bincount(links.content, minlength=1).max()),
    )


def _source(name: str, part: Part, folder: Path, written: bool) -> Source:
    """A part as it is, or as a COCO json of its own: with `written`, and where it is several joined."""
    made = written or part.format == _JOINED
    return Source(str(folder / f"{name}.json") if made else str(Path(part.source).absolute()), part.table, made)


def _by_name(parts: Sequence[Part], val: Part | None, *, report: bool) -> dict[str, Part]:
    """What the parts' names say: those to learn from joined, and the others by what they are for."""
    by_rank: dict[int, list[Part]] = {}
    for part in parts:
        by_rank.setdefault(part_rank(part.name) if len(parts) > 1 else 0, []).append(part)
    if val is None and not by_rank.keys() & {0, 1}:  # val and test alone: nothing is called train
        lowest = min(by_rank)
        by_rank[0] = by_rank.pop(lowest)
    learnt = [part for rank in (0, 1) for part in by_rank.get(rank, ())]
    found = {TRAIN: _one(learnt)} if learnt else {TRAIN: _one(list(parts))}
    chosen = val if val is not None else _one(by_rank.get(2, []))
    test = _one(by_rank.get(3, []))
    if not report:
        chosen = chosen or test
        return found | ({CHOOSE: chosen} if chosen else {})
    if chosen is not None and test is not None:
        return {**found, CHOOSE: chosen, REPORT: test}
    last = chosen or test
    return found | ({REPORT: last} if last else {})


def _one(parts: Sequence[Part]) -> Part:
    """Several parts as one."""
    if len(parts) < 2:
        return parts[0] if parts else None  # type: ignore[return-value]
    joined = join_annotations([part.table for part in parts])
    return replace(parts[0], name=" and ".join(p.name for p in parts), table=joined, format=_JOINED)


def _divided(
    data: Path, learnt: Part, links: Links, everything: Sequence[Part], shares: Sequence[float]
) -> tuple[Division, list[str]]:
    """The images to learn from, divided by groups; series that are too long are cut. Images that are no near duplicates, and too
    few to tell whether the numbers in their names count frames, are divided in spite of these, with a note.
    """
    if len(everything) > 1 or everything[0] is not learnt:
        links = restricted(links, [learnt])
    count, parts = len(links.files.paths), len(shares)
    purposes = f"to learn from{', to choose on' if parts > 2 else ''} and to measure on"
    if count < parts:
        raise UserError(
            f"{counted(count, 'image')}, where {parts} parts are needed ({purposes})",
            where=data,
            fix="give annotations of other images with --val, or of more",
        )
    table = learnt.table
    filled = len(np.unique(table.image_index[~table.ignore & (table.labels >= 0)]))
    if filled < parts:
        raise UserError(
            f"{filled} of {counted(count, 'image')} {'has' if filled == 1 else 'have'} objects, where {parts} are needed"
            f" ({purposes})",
            where=data,
            fix="annotate more, or give annotations of other images with --val",
        )
    tries = [(links, False, []), (links, True, [])]
    if links.frames.verdict == "unknown" and links.prints is not None:
        loose = replace(links, frames=replace(links.frames, verdict="off"))
        tries.append((loose, False, [_UNTOLD.format(counted(count, "image is", "images are"))]))
    for ties, cut, notes in tries:
        with contextlib.suppress(UserError):  # fewer groups than parts
            found = divide(data, [learnt], ties, shares, cut=cut)
            found = found if cut else _with_objects(found, parts)
            reached = np.array([len(found.rows(number)) for number in range(parts)]) / max(1, len(found.part.table))
            if bool((reached > 0).all() if cut else (reached >= 0.5 * np.asarray(shares)).all()):
                return found, notes
    raise UserError(
        f"all {count} images belong together (near duplicates, or frames of one series): measured on each other, they would"
        " say nothing",
        where=data,
        fix="give annotations of other images with --val",
    )


def _with_objects(found: Division, parts: int) -> Division:
    """The division with a group that has objects in each of so many parts, as far as there are such groups.

    Where few images have objects, balancing alone may leave a part without.
    """
    table, chosen = found.part.table, found.chosen.copy()
    filled = np.zeros(int(found.group.max(initial=-1)) + 1, dtype=bool)
    filled[found.group[found.file_of[table.image_index[~table.ignore & (table.labels >= 0)]]]] = True
    part_of = np.zeros(len(filled), dtype=np.int64)
    part_of[found.group] = chosen
    sizes = np.bincount(found.group, minlength=len(filled))
    for number in range(parts):
        spare = filled & (np.bincount(part_of[filled], minlength=parts) > 1)[part_of]
        if not (filled & (part_of == number)).any() and spare.any():
            moved = int(np.flatnonzero(spare)[sizes[spare].argmin()])
            part_of[moved] = chosen[found.group == moved] = number
    return replace(found, chosen=chosen)


def _check_apart(named: Mapping[str, Part], val: Part | None, links: Links) -> None:
    """Raises UserError where every image of a part to measure on is one to learn from: its numbers would say nothing."""
    files = {str(path): int(key) for path, key in zip(links.files.paths, links.content.tolist(), strict=True)}
    content = {
        name: {
            files.get(path, path) for path in (str(part.table.path(row).absolute()) for row in range(len(part.table)))
        }
        for name, part in named.items()
        if "corner" not in part.table.image_extra  # tiles, which may all name their whole image
    }
    for name, part in named.items():
        if name != TRAIN and content.get(name) and content[name] <= content.get(TRAIN, set()):
            fix = "give annotations of other images with --val"
            if part is val:
                fix += ", or none: a part is divided off then"
            raise UserError(
                f"{'all ' * (len(part.table) > 1)}{counted(len(part.table), 'image')} to {_FOR[name]}"
                f" {'is' if len(part.table) == 1 else 'are'} among those to learn from: numbers would say nothing",
                where=part.source,
                fix=fix,
            )


def _check(sources: Mapping[str, Source], data: Path) -> None:
    """Raises UserError where a part has no object, or where those to measure on have none of a class to learn."""
    train = sources[TRAIN].table
    learnt = {train.classes[label] for label in _labels(train)}
    for name, source in sources.items():
        labels = _labels(source.table)
        if not labels:
            raise UserError(
                f"the images to {_FOR[name]} ({len(source.table)}) have no object",
                where=data if source.written else Path(source.path),
                fix="give annotations that have some with --val, or of more images",
            )
        if learnt.isdisjoint(source.table.classes[label] for label in labels):
            raise UserError(
                f"no class of the images to {_FOR[name]} is one of those to learn ({named(sorted(learnt))})",
                where=data if source.written else Path(source.path),
                fix="annotate more objects of each, or fewer --classes"
                if source.written
                else "give annotations with the same names of classes, or name some with --classes",
            )


def _labels(table: Annotations) -> list[int]:
    """Labels that some object has."""
    return np.unique(table.labels[~table.ignore & (table.labels >= 0)]).tolist()


def _absent_notes(sources: Mapping[str, Source]) -> list[str]:
    """A line for each part to measure on that has few objects, or none of some class that is learnt."""
    notes, train = [], sources[TRAIN].table
    for name, source in sources.items():
        there = {source.table.classes[label] for label in _labels(source.table)}
        absent = [train.classes[label] for label in _labels(train) if train.classes[label] not in there]
        objects = int((~source.table.ignore & (source.table.labels >= 0)).sum())
        if objects < FEW_OBJECTS and name != TRAIN:
            notes.append(f"{counted(objects, 'object')} in all among the images to {_FOR[name]}: metrics are rough")
        if absent and name != TRAIN:
            notes.append(
                f"no object of {counted(len(absent), 'class')} among the images to {_FOR[name]} ({named(absent)}):"
                f" metrics say nothing of {'it' if len(absent) == 1 else 'them'}"
            )
    return notes


def _leak_notes(parts: Sequence[Part], links: Links, data: Path) -> list[str]:
    """A line for each part that has images in common with another."""
    if len(parts) < 2:
        return []
    found = find_duplicates(parts, links)
    return [
        f"{leak.leaking} of {leak.images} images of {leak.tested} are in {leak.trained} too, or nearly: numbers on them say"
        f" little (`flyspeck data split {shlex.quote(str(data))}` divides without)"
        for leak in found.leaks
    ]


def _division_notes(divided: Division, sources: Mapping[str, Source], names: Sequence[str]) -> list[str]:
    counts = ", ".join(f"{len(sources[name].table)} to {_FOR[name]}" for name in names)
    left = int((divided.chosen < 0).sum())
    words = f"divided by groups of images that belong together: {counts}"
    return [words + (f"; {left} beside a cut series are left out" if left else "")]


_FOR = {TRAIN: "learn from", CHOOSE: "choose on", REPORT: "report on"}
