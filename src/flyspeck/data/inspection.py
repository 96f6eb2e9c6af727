"""`inspect`: what is in a data set, what is broken or doubtful, and what it asks of a detector."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.boxes import BoxFaults, find_box_faults
from flyspeck.data.checks.leaks import Duplicates, Links, find_duplicates, find_links
from flyspeck.data.checks.names import FRAME_GAP, Frames
from flyspeck.data.checks.near import ALIKE
from flyspeck.data.checks.parts import Part, read_parts, whole_of
from flyspeck.data.checks.repair import Repair, repair
from flyspeck.data.checks.shifts import Shift, find_shifts
from flyspeck.data.checks.text import check_warnings, left_lines
from flyspeck.data.inspect import summarize
from flyspeck.data.inspect_text import lines
from flyspeck.errors import UserError
from flyspeck.files import local_output


@dataclass(frozen=True)
class Inspection:
    """What was found in a data set; `print` shows it as `flyspeck data inspect` does."""

    annotations: Annotations
    """The table that was read: of several parts, each image once."""
    facts: dict[str, Any]
    """Plain values, as in `flyspeck data inspect --json`: `objects` (count, sizes in px), `sizes` (boxes by bin of the size),
    `classes`, `image_sizes`, `ignore_regions`, `broken_entries`, `missing_files`, `implies` (finest stride, anchors, tiles),
    `fusion`, `box_faults`, `duplicates`, `shifts`, `warnings`."""
    boxes: BoxFaults
    """Boxes that stand twice or hug a border; classes that are nearly one, or empty."""
    duplicates: Duplicates
    """Images that the set has twice, nearly twice, or in two of its parts."""
    shifts: tuple[Shift, ...]
    """Parts that annotate the same images half a pixel or one apart."""
    parts: tuple[Part, ...]
    """The splits or annotation files that were read."""
    links: Links
    """What ties the images to each other, as arrays."""
    chosen_classes: bool = False
    """Whether `classes` chose some."""
    encoding: str | None = None
    """As it was given."""

    def fix(self, out: str | os.PathLike[str]) -> Repair:
        """Write the set without what can be mended by rule into the new folder `out`, with a list of every change.

        Args:
            out: New folder: each part in its own format where that is written, else as COCO, `changes.csv` and `summary.txt`.

        Returns:
            Every change, what was found and left, and what was written.

        Raises:
            UserError: Where `out` holds something, some classes only were read, or no image would be left.
        """
        if self.chosen_classes:
            raise UserError(
                "some classes only were read", where="--fix", fix="leave out --classes: a set is repaired whole"
            )
        left = left_lines(self.facts, [shift.text() for shift in self.shifts])
        return repair(self.parts, self.links, local_output(out), left=left, encoding=self.encoding)

    def text(self) -> str:
        """The facts for people: sizes first, then classes, files, what follows from them and what to look at."""
        return "\n".join(lines(self.facts))

    def __str__(self) -> str:
        return self.text()


def inspect(
    source: str | os.PathLike[str],
    *,
    also: Sequence[str | os.PathLike[str]] = (),
    format: str | None = None,
    images: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    pixels: str | None = None,
    encoding: str | None = None,
    check_files: bool = True,
    compare_images: bool = True,
    alike: float = ALIKE,
    frames: Frames = "auto",
    frame_gap: int = FRAME_GAP,
    workers: int = 1,
    allow_references: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Look at a data set before training on it.

    Args:
        source: Annotations: a file or folder in any of the formats read. A folder with several COCO files and a YOLO data.yaml
            with several splits are taken whole, each image once; what their parts have in common is looked for.
        also: Further parts of the same set, such as the file of the test split.
        format: Name of the format, instead of having it found out.
        images: Folder of the images, where it is not the usual one.
        classes: Names of the classes to read; None reads all.
        pixels: What whole corners of VOC's boxes mean: `half-open`, `from-0` or `from-1`.
        encoding: Of text files that are neither UTF-8 nor say what they are.
        check_files: Look for each image and compare its size with what the annotations say.
        compare_images: Decode each image and find those that are the same or nearly so; otherwise names alone are looked at.
        alike: Least correlation, 0.5 to 1, of two images at 32x32 that are called nearly the same.
        frames: Whether numbers in names count frames: `auto` asks the pixels, `yes` and `no` settle it.
        frame_gap: Largest difference of the numbers of neighbouring frames.
        workers: Processes that decode images.
        allow_references: The annotations may name images outside of their folder; False refuses them.
        progress: Called with the numbers of images compared and of all.

    Returns:
        The table, the facts on it and what was found. Sizes are sqrt(width * height) in pixels of the files' images.

    Raises:
        UserError: For a source that is not there or in no known format. Single broken entries are counted, not raised.
    """
    parts = read_parts(
        Path(source),
        [Path(one) for one in also],
        format=format,
        images=None if images is None else Path(images),
        classes=classes,
        pixels=pixels,
        encoding=encoding,
        allow_references=allow_references,
    )
    table = whole_of(Path(source), parts)
    links = find_links(
        parts,
        pixels=compare_images,
        alike=alike,
        frames=frames,
        frame_gap=frame_gap,
        workers=workers,
        progress=progress,
    )
    found = find_duplicates(parts, links, alike=alike, frame_gap=frame_gap)
    shifts = find_shifts(parts)
    facts = summarize(table, check_files=check_files)
    if len(parts) > 1:
        facts["files"] = {part.name: {"images": len(part.table), "boxes": part.table.num_boxes} for part in parts}
        facts["overlaps"] = _overlaps(parts, links)
    facts["duplicates"] = found.facts()
    facts["shifts"] = [asdict(shift) for shift in shifts]
    facts["warnings"] += check_warnings(facts, [shift.text() for shift in shifts])
    return Inspection(
        table, facts, find_box_faults(table), found, shifts, tuple(parts), links, classes is not None, encoding
    )


def _overlaps(parts: Sequence[Part], links: Links) -> list[dict[str, Any]]:
    """How many image files two parts share."""
    member = links.files.member
    return [
        {"files": [parts[a].name, parts[b].name], "images": shared}
        for a, b in combinations(range(len(parts)), 2)
        if (shared := int((member[:, a] & member[:, b]).sum()))
    ]
