"""Readers: one file per format; `read_annotations` finds out which one is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import IGNORE_CLASSES, IGNORE_FLAGS, ReadOptions
from flyspeck.data.readers.coco import read_coco

__all__ = ["IGNORE_CLASSES", "IGNORE_FLAGS", "read_annotations"]


def read_annotations(
    source: str | Path,
    *,
    format: str | None = None,
    classes: Sequence[str] | None = None,
    images: str | Path | None = None,
    ignore_classes: Sequence[str] = IGNORE_CLASSES,
    ignore_flags: Sequence[str] = IGNORE_FLAGS,
    for_evaluation: bool = False,
) -> Annotations:
    """Read the annotations of `source`, a file or folder, whatever its format; `Annotations.source` says what was seen.

    `format` names the format instead of having it found out. `classes` selects names and gives them the numbers 0..K-1 in
    this order; boxes of other classes are left out. `images` is the folder of the pictures where it is not the usual one.
    `ignore_classes` and `ignore_flags` say what is an ignore region (label -1, no class); give others to change the rule.
    `for_evaluation` keeps what reference evaluators see: zero-area boxes, boxes outside the picture and repeated ids; and COCO
    files give `extra["xywh"]`, the boxes to the last bit. Broken entries are left out and listed in `Annotations.problems`.

    Raises UserError for a source that cannot be read at all.
    """
    options = ReadOptions(
        classes=None if classes is None else tuple(classes),
        ignore_classes=tuple(ignore_classes),
        ignore_flags=tuple(ignore_flags),
        for_evaluation=for_evaluation,
        images=None if images is None else Path(images),
    )
    return read_coco(Path(source), options)
