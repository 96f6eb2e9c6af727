"""`--fix`: a data set without what can be mended by rule, written anew, with a list of every change; nothing in place.

Mended: entries that are broken, images that are missing or cannot be read, images that are listed twice or are one image under
two names, images that the training side shares with another part, boxes that stand twice, classes that differ in case or blanks
only, classes that nothing uses. What needs a judgement is listed as left: near duplicates and neighbouring frames of two parts,
two classes at one place, slivers at borders, files that mean corners differently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.boxes import class_twins, repeated_boxes
from flyspeck.data.checks.leaks import Links, part_rank
from flyspeck.data.checks.parts import Part
from flyspeck.data.checks.write_part import Renumbered, new_folder, write_part
from flyspeck.data.readers.yolo import SPLITS
from flyspeck.errors import UserError
from flyspeck.files import cell, write_text

CHANGES, SUMMARY = "changes.csv", "summary.txt"
_FEW_MISSING = 0.5


@dataclass(frozen=True)
class Change:
    """One thing that the repaired set has otherwise."""

    part: str
    what: str
    image: str = ""
    box: str = ""
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Repair:
    """What `repair` did."""

    changes: tuple[Change, ...]
    left: tuple[str, ...]
    """What was found and not changed."""
    notes: tuple[str, ...]
    """What was written, and what a format could not hold."""

    def text(self) -> str:
        """The summary: changes by kind, what is left, what was written."""
        kinds = Counter((change.part, change.what) for change in self.changes)
        lines = [f"{len(self.changes)} changes, each in {CHANGES}:"]
        lines += [f"  {part}: {count} {what}" for (part, what), count in kinds.items()]
        lines += (
            [f"{len(self.left)} findings left, for they need a judgement:"] if self.left else ["nothing else was found"]
        )
        lines += [f"  {line}" for line in self.left]
        return "\n".join([*lines, "written:", *(f"  {note}" for note in self.notes)]) + "\n"


@dataclass
class _Draft:
    """A part while it is repaired."""

    part: Part
    table: Annotations
    files: np.ndarray
    """(I,) file of each image, in the rows of `Links`."""
    changes: list[Change] = field(default_factory=list)
    categories: Renumbered = field(default_factory=Renumbered)

    def note(self, what: str, **more: str) -> None:
        self.changes.append(Change(self.part.name, what, **more))


def repair(
    parts: Sequence[Part], links: Links, out: Path, *, left: Sequence[str] = (), encoding: str | None = None
) -> Repair:
    """Write the repaired `parts` into the new folder `out`, each in its own format where that is written, else as COCO.

    `links` is `find_links` of the parts, with pixels or without; `left` are findings to be listed as not repaired. Beside the
    parts lie `changes.csv`, a row a change, and `summary.txt`. Raises UserError where `out` holds something, and where no image
    would be left.
    """
    drafts = [_Draft(part, part.table, rows) for part, rows in zip(parts, links.files.rows, strict=True)]
    more: list[str] = []
    for draft in drafts:
        for problem in draft.part.table.problems:
            draft.note("broken entries left out", before=problem)
        more += _drop_unreadable(draft, links)
        _join_twins(draft, links)
    _separate(drafts, links)
    _merge_classes(drafts)
    for draft in drafts:
        _drop_repeats(draft)
    _drop_empty_classes(drafts)
    bare = next((draft for draft in drafts if len(draft.part.table) and not len(draft.table)), None)
    if bare is not None:
        raise UserError(
            "no image would be left", where=bare.part.source, fix="look at `flyspeck data inspect` without --fix"
        )
    new_folder(out)
    notes: list[str] = []
    for draft, name in zip(drafts, _names(parts), strict=True):
        notes += write_part(draft.part, draft.table, out, name, categories=draft.categories, encoding=encoding)
    done = Repair(tuple(change for draft in drafts for change in draft.changes), (*left, *more), tuple(notes))
    write_text(out / CHANGES, _table(done.changes))
    write_text(out / SUMMARY, done.text())
    return done


def _names(parts: Sequence[Part]) -> list[str]:
    """Names of what is written: those of the parts without their endings, each once."""
    names: list[str] = []
    for part in parts:
        name = Path(part.name).stem if Path(part.name).suffix else part.name
        name = Path(name).name or "set"
        while name in names:
            name += "_"
        if part.format == "yolo" and len(parts) == 1:  # the split that was asked for, else the whole
            split = part.source.rpartition(":")[2]
            name = split if split in SPLITS else "train"
        names.append(name)
    return names


def _table(changes: Sequence[Change]) -> str:
    rows = [[c.part, c.what, c.image, c.box, c.before, c.after] for c in changes]
    return "".join(
        f"{','.join(map(cell, row))}\n" for row in [["part", "what", "image", "box", "before", "after"], *rows]
    )


def _drop_unreadable(draft: _Draft, links: Links) -> list[str]:
    """Leaves out images that are not there or cannot be read; a line where so many are missing that --images is the cure."""
    if links.prints is not None:
        good = links.prints.readable[draft.files]
    else:
        good = np.array([links.files.paths[row].is_file() for row in draft.files.tolist()], dtype=bool)
    bad = np.flatnonzero(~good)
    if len(bad) > _FEW_MISSING * len(good):
        return [f"{draft.part.name}: {len(bad)} of {len(good)} images are missing or unreadable; give --images"]
    for row in bad.tolist():
        here = draft.table.of_image(row)
        draft.note(
            "images missing or unreadable left out",
            image=draft.table.file_names[row],
            before=f"{here.stop - here.start} boxes",
        )
    draft.table, draft.files = draft.table.select_images(good), draft.files[good]
    return []


def _join_twins(draft: _Draft, links: Links) -> None:
    """An image that a part lists twice is one with the boxes of both; of two names of one image, that with most objects stays."""
    if "corner" in draft.table.image_extra:
        return  # tiles, which may all name their whole image
    table, keep = draft.table, np.ones(len(draft.table), dtype=bool)
    _, first, back = np.unique(draft.files, return_index=True, return_inverse=True)
    owner = first[back]
    for row in np.flatnonzero(owner != np.arange(len(table))).tolist():
        here = table.of_image(row)
        draft.note(
            "images listed twice",
            image=table.file_names[row],
            before=f"image {table.image_ids[row]} with {here.stop - here.start} boxes",
            after=f"its boxes are those of image {table.image_ids[owner[row]]}",
        )
        keep[row] = False
    moved = owner[table.image_index]
    order = np.argsort(moved, kind="stable")
    table = table.select_boxes(order, image_index=moved[order])
    objects = np.bincount(table.image_index[~table.ignore], minlength=len(table))
    content = links.content[draft.files]
    rows = np.flatnonzero(keep)
    best: dict[int, int] = {}
    for row in rows[np.argsort(-objects[rows], kind="stable")].tolist():
        stays = best.setdefault(int(content[row]), row)
        if stays != row:
            draft.note(
                "images left out that are in the part under another name",
                image=table.file_names[row],
                before=f"{objects[row]} objects",
                after=f"{table.file_names[stays]} stays, with {objects[stays]}",
            )
            keep[row] = False
    draft.table, draft.files = table.select_images(keep), draft.files[keep]


def _separate(drafts: Sequence[_Draft], links: Links) -> None:
    """Images of the same content in two parts stay in the one that is tested last."""
    ordered = sorted(drafts, key=lambda draft: -part_rank(draft.part.name))
    taken: dict[int, str] = {}
    for draft in ordered:
        content = links.content[draft.files].tolist()
        keep = np.array([key not in taken for key in content], dtype=bool)
        for row in np.flatnonzero(~keep).tolist():
            draft.note(
                "images left out that another part has",
                image=draft.table.file_names[row],
                after=f"stays in {taken[content[row]]}",
            )
        taken |= {key: draft.part.name for key, free in zip(content, keep.tolist(), strict=True) if free}
        draft.table, draft.files = draft.table.select_images(keep), draft.files[keep]


def _merge_classes(drafts: Sequence[_Draft]) -> None:
    """Classes that differ in case or blanks only become the one with most boxes, in all parts."""
    boxes: Counter[str] = Counter()
    for draft in drafts:
        labels = draft.table.own_labels
        counts = np.bincount(labels[labels >= 0], minlength=len(draft.table.classes))
        boxes.update(dict(zip(draft.table.classes, counts.tolist(), strict=True)))
    names = dict.fromkeys(name for draft in drafts for name in draft.table.classes)
    for twins in class_twins(names):
        chosen = max(twins, key=lambda name: boxes[name])
        for draft in drafts:
            own = [name for name in twins if name in draft.table.classes]
            if own and own != [chosen]:
                _rename(draft, own, chosen, boxes)


def _rename(draft: _Draft, own: Sequence[str], chosen: str, boxes: Counter[str]) -> None:
    """The classes `own` of one part become `chosen`."""
    table = draft.table
    stays = chosen if chosen in own else own[0]
    for name in own:
        if name != chosen:
            draft.note(
                "classes merged or renamed", before=f"'{name}' ({boxes[name]} boxes in all)", after=f"'{chosen}'"
            )
    gone = [table.classes.index(name) for name in own if name != stays]
    target = table.classes.index(stays)
    lookup = np.arange(len(table.classes) + 1)
    lookup[-1] = -1  # label -1
    lookup[gone] = target
    number = table.category_ids[target]
    old = draft.categories
    draft.categories = Renumbered(
        {**old.into, **{table.category_ids[label]: number for label in gone}},
        {**old.names, number: chosen} if stays != chosen else old.names,
        old.dropped | {table.category_ids[label] for label in gone},
    )
    classes = tuple(chosen if name == stays else name for name in table.classes)
    draft.table = _without(_relabelled(replace(table, classes=classes), lookup), gone)


def _relabelled(table: Annotations, lookup: np.ndarray) -> Annotations:
    extra = dict(table.extra)
    if "category" in extra:
        extra["category"] = lookup[extra["category"]]
    return replace(table, labels=lookup[table.labels], extra=extra)


def _without(table: Annotations, gone: Sequence[int]) -> Annotations:
    """The table without some classes, which no box has."""
    kept = [label for label in range(len(table.classes)) if label not in set(gone)]
    lookup = np.full(len(table.classes) + 1, -1)
    lookup[kept] = np.arange(len(kept))
    return replace(
        _relabelled(table, lookup),
        classes=tuple(table.classes[label] for label in kept),
        category_ids=tuple(table.category_ids[label] for label in kept),
    )


def _drop_repeats(draft: _Draft) -> None:
    """Leaves out boxes that repeat one of their image and class, exactly or nearly; the first stays."""
    table, pairs = draft.table, repeated_boxes(draft.table)
    keep = np.ones(table.num_boxes, dtype=bool)
    for a, b, exact, other in zip(
        pairs.first.tolist(), pairs.second.tolist(), pairs.exact.tolist(), pairs.other_class.tolist(), strict=True
    ):
        if other or not keep[a] or not keep[b]:
            continue
        keep[b] = False
        draft.note(
            "boxes left out that stand twice" if exact else "boxes left out that nearly repeat another",
            image=table.file_names[int(table.image_index[b])],
            box=str(table.box_ids[b]),
            before=_box(table, b),
            after=f"box {table.box_ids[a]} stays: {_box(table, a)}",
        )
    draft.table = table.select_boxes(keep)


def _box(table: Annotations, row: int) -> str:
    return " ".join(f"{value:g}" for value in np.round(table.boxes[row], 3))


def _drop_empty_classes(drafts: Sequence[_Draft]) -> None:
    """Leaves out classes that no part uses."""
    used = {
        draft.table.classes[label] for draft in drafts for label in set(draft.table.own_labels.tolist()) if label >= 0
    }
    for draft in drafts:
        gone = [label for label, name in enumerate(draft.table.classes) if name not in used]
        if len(gone) == len(draft.table.classes):
            continue  # a set without objects keeps what it declares
        for label in gone:
            draft.note("classes left out that nothing uses", before=f"'{draft.table.classes[label]}'")
        numbers = {draft.table.category_ids[label] for label in gone}
        draft.categories = replace(draft.categories, dropped=draft.categories.dropped | numbers)
        draft.table = _without(draft.table, gone)
