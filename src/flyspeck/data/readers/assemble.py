"""From what a format says to the annotation table: the rules that all readers share.

A reader fills a `Draft` with its entries as they stand; `assemble` finds the broken ones, turns the classes and flags of
ignore regions into ignore regions, maps the classes to 0..K-1 and sorts by image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError, brief, counted, nearest, one_line

IGNORE_CLASSES = (
    "dontcare",
    "ignore",
    "ignored",
    "ignored region",
    "ignored regions",
    "ignore region",
    "ignore regions",
)
"""Names of categories that are ignore regions of every class, compared in lower case without blanks, `_` and `-`."""
IGNORE_FLAGS = ("iscrowd", "ignore", "uncertain", "difficult", "invalid")
"""Flags of a source that make a box an ignore region."""


Pixels = Literal["half-open", "from-0", "from-1"]
"""What xmin, xmax of whole numbers mean: edges (xmax is no part of the box), or the first and last pixel, counted from 0 or 1."""
PIXELS: tuple[Pixels, ...] = get_args(Pixels)


@dataclass(frozen=True)
class ReadOptions:
    """What a user may ask of every reader."""

    classes: tuple[str, ...] | None = None
    """Names to read, mapped to 0..K-1 in this order; boxes of other classes are left out. None: all."""
    ignore_classes: tuple[str, ...] = IGNORE_CLASSES
    """Categories that are ignore regions and no class."""
    ignore_flags: tuple[str, ...] = IGNORE_FLAGS
    """Flags that make a box an ignore region; leave one out to have such boxes as ordinary ones."""
    for_evaluation: bool = False
    """Keep what reference evaluators see: boxes without area, outside the image, or with an id that is used twice."""
    images: Path | None = None
    """Folder of the images, where it is not the place that the format implies."""
    pixels: Pixels | None = None
    """How whole-pixel corners are meant, where a format leaves it open (VOC); None: as the writing tool is known to mean them."""
    encoding: str | None = None
    """Of text files without a byte order mark; None: UTF-8, and what an xml file declares."""
    absent_classes: bool = False
    """Whether `classes` may name some that the source does not have (a validation set without a rare class)."""
    split: str | None = None
    """Of a data set with several (`data.yaml:val`): train, val or test."""
    inside: Path | None = None
    """The file or folder of annotations which may name no image elsewhere (`data.readers.outside`), so that none is opened there;
    None: it may name any."""


@dataclass
class Draft:
    """Entries of a source before any judgement. `I` images, `M` boxes, `C` categories."""

    where: Path
    """The file or folder read, for messages."""
    root: Path
    image_ids: list[Any] = field(default_factory=list)
    file_names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """(height, width) of each image; (-1, -1) where unknown."""
    image_extra: dict[str, np.ndarray] = field(default_factory=dict)
    image_index: Any = field(default_factory=list)
    """(M,) row of the image; -1 where the entry names none that exists."""
    boxes: Any = field(default_factory=list)
    """(M, 4) xyxy; NaN where the entry has no box of four numbers."""
    category: Any = field(default_factory=list)
    """(M,) row of `names`; -1 for an ignore region without category, -2 where the entry names none that exists."""
    names: list[str] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    """(C,) the source's numbers."""
    box_ids: Any = None
    """(M,) or None: 1..M."""
    area: Any = None
    """(M,) or None: w*h."""
    flags: dict[str, Any] = field(default_factory=dict)
    """(M,) bool columns under the source's names."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More (M, …) columns."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was guessed, with its reason and the option that says otherwise; what has no partner."""
    unkept: list[str] = field(default_factory=list)
    """What the table has no place for, in words."""
    outlines: int = 0
    """Entries that are polygons, ellipses or masks, of which the table holds the box."""
    unlisted: str = "names a category that is not listed"
    """What an entry of category -2 is told."""
    published_empty: bool = False
    """Whether the set itself, as published, has boxes without a width and height above 0: they are left out with one note."""
    pixels: Pixels | None = None
    """How corners were read, where that was a choice."""
    pixels_known: bool = True
    """Whether that is the user's word or the writing tool's, rather than a guess."""
    places: list[str] | None = None
    """(M,) where each entry stands (`a.txt, line 3`), or None: `where` and its id."""
    describe: Callable[[int], str] | None = None
    """Words on an entry with a missing image or category: what it names."""

    def add_image(self, image_id: Any, file_name: str, size: tuple[int, int] = (-1, -1)) -> int:
        """Append an image of (height, width) `size`, which is unknown where no image has it; returns its row."""
        size = size if all(0 < side < 2**31 for side in size) else (-1, -1)
        self.image_ids.append(image_id)
        self.file_names.append(file_name)
        self.sizes.append(size)
        return len(self.image_ids) - 1

    def add_box(self, image: int, box: Sequence[float], category: int, place: str) -> None:
        """Append an xyxy box of the image in row `image`; `place` says where it stands, for messages."""
        if self.places is None:
            self.places = []
        self.image_index.append(image)
        self.boxes.append(box)
        self.category.append(category)
        self.places.append(place)


_NO_BLANKS = str.maketrans("", "", " _-")


def normal_name(name: str) -> str:
    """A category name in lower case without blanks, `_` and `-`."""
    return str(name).lower().translate(_NO_BLANKS)


def id_array(ids: Sequence[Any]) -> np.ndarray:
    """Ids as int64 where all are whole numbers of 64 bits, else as objects unchanged."""
    if all(isinstance(i, int | np.integer) and not isinstance(i, bool) and -(2**63) <= i < 2**63 for i in ids):
        return np.array(ids, dtype=np.int64)
    column = np.empty(len(ids), dtype=object)
    column[:] = list(ids)
    return column


def assemble(draft: Draft, options: ReadOptions, source: str) -> Annotations:
    """The table of a draft's sound entries; each broken one becomes a line of `problems`.

    Beside the columns of `Annotations`, `extra` holds the source's flags (`ignore` as `ignore_flag`) and `category`: (M,)
    the row of `classes` that an entry was annotated with, also where it is an ignore region (-1: none).
    """
    if not draft.file_names and draft.problems:
        more = f" (and {len(draft.problems) - 1} more)" if len(draft.problems) > 1 else ""
        raise UserError(f"nothing in it can be read: {draft.problems[0]}{more}", where=draft.where)
    count = len(draft.boxes)
    boxes = np.asarray(draft.boxes, dtype=np.float64).reshape(count, 4)
    image_index = np.asarray(draft.image_index, dtype=np.int64)
    category = np.asarray(draft.category, dtype=np.int64)
    box_ids = np.arange(1, count + 1) if draft.box_ids is None else id_array(draft.box_ids)
    sizes = np.asarray(draft.sizes, dtype=np.int64).reshape(-1, 2)
    flags = {name: np.asarray(column, dtype=bool) for name, column in draft.flags.items()}
    sound, faults = _judge(draft, options, boxes, image_index, category, box_ids, sizes)

    boxes = np.where(sound[:, None], boxes, 0.0)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    if draft.area is not None:
        given = np.asarray(draft.area, dtype=np.float64)
        area = np.where(np.isfinite(given), given, area)
    classes, category_ids, row_of = _classes(draft, options)
    category = np.append(row_of, [-2, -1])[category]  # -1 ignore region, -2 broken, -3 not asked for
    unasked = sound & (category == -3)
    ignore = category == -1
    for name in options.ignore_flags:
        if name in flags:
            ignore |= flags[name]
    unasked &= ~ignore  # an ignore region holds for every class, so it stays whatever its own class
    keep = np.flatnonzero(sound & ~unasked)
    keep = keep[np.argsort(image_index[keep], kind="stable")]

    extra = {name: np.asarray(column)[keep] for name, column in draft.extra.items()}
    extra |= {("ignore_flag" if name == "ignore" else name): column[keep] for name, column in flags.items()}
    extra["category"] = np.maximum(category[keep], -1)
    if unasked.any():
        source += f" ({counted(int(unasked.sum()), 'box')} of classes not asked for left out)"
    return Annotations(
        image_ids=id_array(draft.image_ids),
        file_names=tuple(draft.file_names),
        sizes=sizes,
        image_index=image_index[keep],
        boxes=boxes[keep],
        labels=np.where(ignore, -1, category)[keep],
        area=area[keep],
        ignore=ignore[keep],
        crowd=flags["iscrowd"][keep] if "iscrowd" in flags else np.zeros(len(keep), dtype=bool),
        box_ids=box_ids[keep],
        classes=classes,
        category_ids=category_ids,
        root=draft.root,
        extra=extra,
        image_extra=draft.image_extra,
        source=one_line(source),
        problems=tuple(map(one_line, (*draft.problems, *faults))),
        notes=tuple(map(one_line, draft.notes)),
        unkept=(
            *draft.unkept,
            *([f"segmentation of {counted(draft.outlines, 'annotation')}"] if draft.outlines else []),
        ),
        pixels=draft.pixels,
        pixels_known=draft.pixels_known,
    )


def _judge(
    draft: Draft,
    options: ReadOptions,
    boxes: np.ndarray,
    image_index: np.ndarray,
    category: np.ndarray,
    box_ids: np.ndarray,
    sizes: np.ndarray,
) -> tuple[np.ndarray, list[str]]:
    """Which entries are sound, `(M,)` bool, and a line for each that is not."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    with np.errstate(invalid="ignore", over="ignore"):
        tests = [
            (image_index < 0, "names an image that is not listed"),
            (category == -2, draft.unlisted),
            (~np.isfinite(boxes).all(1) | ~np.isfinite(width * height), "has no box of four finite numbers"),
        ]
        if not options.for_evaluation:
            frame = sizes[np.maximum(image_index, 0)] if len(sizes) else np.full((len(boxes), 2), -1)
            outside = (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0)
            outside |= (boxes[:, 0] >= frame[:, 1]) | (boxes[:, 1] >= frame[:, 0])
            tests += [
                ((width < 0) | (height < 0), "has a box of negative width or height"),
                ((width == 0) | (height == 0), "has a box of zero area"),
                (outside & (frame > 0).all(1), "has a box wholly outside its image"),
            ]
    sound, faults = np.ones(len(boxes), dtype=bool), {}
    if draft.published_empty and not options.for_evaluation:
        empty = (width <= 0) | (height <= 0)
        if empty.any():
            first = _place(draft, box_ids, int(np.flatnonzero(empty)[0])).removesuffix(": the entry")
            said = "boxes without a width and height above 0 left out, as the published set has some"
            draft.notes.append(f"{int(empty.sum())} {said} (the first: {first})")
            sound[empty] = False

    def leave_out(broken: np.ndarray, reason: str) -> None:
        for row in np.flatnonzero(broken & sound).tolist():
            faults[row] = f"{_place(draft, box_ids, row)} {reason}{_named(draft, row, reason)}"
        sound[broken] = False

    for broken, reason in tests:
        leave_out(broken, reason)
    if draft.box_ids is not None and not options.for_evaluation:
        again = np.zeros(len(boxes), dtype=bool)  # an entry that is left out takes no id from a sound one
        again[sound] = _repeated(box_ids[sound])
        leave_out(again, "has an id that an earlier one has")
    return sound, [faults[row] for row in sorted(faults)]


def _repeated(ids: np.ndarray) -> np.ndarray:
    """True for each id that occurred earlier, `(M,)`."""
    if ids.dtype != object:
        first = np.zeros(len(ids), dtype=bool)
        first[np.unique(ids, return_index=True)[1]] = True
        return ~first
    seen: set[str] = set()
    known = [repr(i) for i in ids]
    return np.array([name in seen or bool(seen.add(name)) for name in known], dtype=bool)


def _place(draft: Draft, box_ids: np.ndarray, row: int) -> str:
    if draft.places is not None:
        return f"{draft.places[row]}: the entry"
    if draft.box_ids is not None:
        return f"{draft.where.name}: annotation {brief(_plain(box_ids[row]))}"
    return f"{draft.where.name}: entry {row + 1}"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _named(draft: Draft, row: int, reason: str) -> str:
    return f" ({draft.describe(row)})" if draft.describe is not None and "not listed" in reason else ""


def by_name(draft: Draft, names: Sequence[str], *, listed: Sequence[str] = ()) -> None:
    """Fills in the categories of a format that names each box's class: `listed` in their order, then the others sorted.

    `names` has one entry a box, and an empty one makes the entry a broken one; ids count from 1.
    """
    first = list(dict.fromkeys(listed))
    draft.names = [*first, *sorted(set(names) - {*first, ""})]
    draft.unlisted = "has no class"
    draft.category_ids = list(range(1, len(draft.names) + 1))
    row_of = {name: row for row, name in enumerate(draft.names)}
    draft.category = [row_of.get(name, -2) for name in names]


def _classes(draft: Draft, options: ReadOptions) -> tuple[tuple[str, ...], tuple[int, ...], np.ndarray]:
    """Names and source ids of the classes, and for each category of the source its class (-1 ignore, -3 not asked for).

    A category is what its id says: two of one name stay two classes, and the later one's name gets its id.
    """
    ignored = {normal_name(name) for name in options.ignore_classes}
    # VisDrone's eleventh category is no class of its benchmark; the name means so only beside its ignored regions.
    if "ignoredregions" in ignored and "ignoredregions" in map(normal_name, draft.names):
        ignored.add("others")
    names = _names_apart(draft)
    real = {
        name: number for name, number in zip(names, draft.category_ids, strict=True) if normal_name(name) not in ignored
    }
    if options.classes is not None:
        free = 1 + max((n for n in draft.category_ids if isinstance(n, int)), default=0)
        chosen = {}
        for name in options.classes:
            if name not in real and not options.absent_classes:
                raise UserError(f"class '{name}' is not in the annotations", where=draft.where, fix=nearest(name, real))
            chosen[name] = real.get(name, free + len(chosen))
        real = chosen
    row = {name: index for index, name in enumerate(real)}
    lookup = [-1 if normal_name(name) in ignored else row.get(name, -3) for name in names]
    return tuple(real), tuple(real.values()), np.array(lookup, dtype=np.int64).reshape(-1)


def _names_apart(draft: Draft) -> list[str]:
    """The categories' names; one that an earlier category has too gets its id, and a note."""
    names: list[str] = []
    seen: set[str] = set()
    for name, number in zip(draft.names, draft.category_ids, strict=True):
        if name in seen:
            apart = f"{name} (id {number})"
            draft.notes.append(f"two categories are called '{name}': the one with id {number} is read as '{apart}'")
            name = apart
        names.append(name)
        seen.add(name)
    return names
