"""Which images a detector learns from, which choices are made on, and which are only reported on: as the set says, or by groups.

A folder of several parts is taken as its parts are called. Otherwise the set is divided so that no two parts share an image, a
near duplicate or a neighbouring frame (`data.checks.split`). Images stay where they are; what is written is annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.leaks import Links, find_duplicates, find_links, part_rank, restricted
from flyspeck.data.checks.parts import Part, read_parts, whole_of
from flyspeck.data.checks.split import Division, divide
from flyspeck.data.join import join_annotations
from flyspeck.data.writers import write_coco
from flyspeck.errors import UserError
from flyspeck.plan.fingerprint import Fingerprint

TRAIN, CHOOSE, REPORT = "train", "choose", "report"
SHARES: Mapping[tuple[str, ...], tuple[float, ...]] = {
    (TRAIN, CHOOSE): (0.8, 0.2),
    (TRAIN, CHOOSE, REPORT): (0.7, 0.15, 0.15),
}
"""Shares of the images where the set is divided here."""
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
    parts = read_parts(data, **options)
    if val is None:
        return parts, None
    others = read_parts(val, **options)
    return parts, others[0] if len(others) == 1 else replace(others[0], table=whole_of(val, others))


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

    Raises UserError where there are too few images that do not belong together.
    """
    everything = [*parts, *([] if val is None else [val])]
    links = find_links(everything, pixels=pixels, workers=workers, progress=progress)
    named = _by_name(parts, val, report=report)
    notes = _leak_notes(everything, links, data)
    wanted = (TRAIN, CHOOSE, REPORT) if report else (TRAIN, CHOOSE)
    missing = [name for name in wanted if name not in named]
    learnt = named[TRAIN]
    sources = {name: _source(name, part, folder, written) for name, part in named.items() if name != TRAIN}
    groups = divided = None
    if missing:
        names = (TRAIN, *missing)
        divided = _divided(data, learnt, links, everything, SHARES[names if len(names) > 2 else (TRAIN, CHOOSE)])
        for number, name in enumerate(names):
            table = divided.part.table.select_images(divided.rows(number))
            sources[name] = Source(str(folder / f"{name}.json"), table, True)
        notes += _division_notes(divided, sources, names)
        groups = divided.group
    else:
        sources[TRAIN] = _source(TRAIN, learnt, folder, written)
    _check(sources, data)
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


def _divided(data: Path, learnt: Part, links: Links, everything: Sequence[Part], shares: Sequence[float]) -> Division:
    """The images to learn from, divided by groups; series that are too long are cut."""
    if len(everything) > 1 or everything[0] is not learnt:
        links = restricted(links, [learnt])
    count = len(links.files.paths)
    if count < len(shares):
        raise UserError(
            f"{count} image{'s' * (count > 1)}, where {len(shares)} parts are needed (to learn from"
            f"{', to choose on' if len(shares) > 2 else ''} and to measure on)",
            where=data,
            fix="give annotations of other images with --val, or of more",
        )
    for cut in (False, True):
        try:
            found = divide(data, [learnt], links, shares, cut=cut)
        except UserError:
            if cut:
                raise UserError(
                    f"all {count} images belong together (near duplicates, or frames of one series): measured on each"
                    " other, they would say nothing",
                    where=data,
                    fix="give annotations of other images with --val",
                ) from None
            continue
        reached = np.array([len(found.rows(number)) for number in range(len(shares))]) / max(1, len(found.part.table))
        if cut or bool((reached >= 0.5 * np.asarray(shares)).all()):
            return found
    raise AssertionError("a cut division is returned or refused")


def _check(sources: Mapping[str, Source], data: Path) -> None:
    """Raises UserError where a part that numbers come from has no object."""
    for name, source in sources.items():
        if name != TRAIN and not (source.table.labels >= 0).any():
            raise UserError(
                f"the images to {name} on ({len(source.table)}) have no object",
                where=data,
                fix="give annotations that have some with --val, or of more images",
            )


def _leak_notes(parts: Sequence[Part], links: Links, data: Path) -> list[str]:
    """A line for each part that has images in common with another."""
    if len(parts) < 2:
        return []
    found = find_duplicates(parts, links)
    return [
        f"{leak.leaking} of {leak.images} images of {leak.tested} are in {leak.trained} too, or nearly: numbers on them say"
        f" little (`flyspeck data split {data}` divides without)"
        for leak in found.leaks
    ]


def _division_notes(divided: Division, sources: Mapping[str, Source], names: Sequence[str]) -> list[str]:
    counts = ", ".join(f"{len(sources[name].table)} to {_FOR[name]}" for name in names)
    left = int((divided.chosen < 0).sum())
    words = f"divided by groups of images that belong together: {counts}"
    notes = [words + (f"; {left} beside a cut series are left out" if left else "")]
    train = sources[TRAIN].table
    for name in names[1:]:
        own = set(np.unique(sources[name].table.labels).tolist())
        there = np.unique(train.labels[train.labels >= 0]).tolist()
        absent = [train.classes[label] for label in there if label not in own]
        if absent:
            shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
            notes.append(f"no object of {shown} among the images to {_FOR[name]}: its metrics say nothing of it")
    return notes


_FOR = {TRAIN: "learn from", CHOOSE: "choose on", REPORT: "report on"}
