"""Readers: one file per format; `read_annotations` finds out which one is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import IGNORE_CLASSES, IGNORE_FLAGS, ReadOptions
from flyspeck.data.readers.citypersons import read_citypersons
from flyspeck.data.readers.coco import read_coco
from flyspeck.data.readers.detect import FORMATS, detect
from flyspeck.data.readers.dota import read_dota
from flyspeck.data.readers.odgt import read_odgt
from flyspeck.data.readers.table import read_table
from flyspeck.data.readers.visdrone import read_visdrone
from flyspeck.data.readers.voc import read_voc
from flyspeck.data.readers.wider import read_wider
from flyspeck.data.readers.yolo import SPLITS, read_yolo
from flyspeck.errors import UserError, nearest

__all__ = ["FORMATS", "IGNORE_CLASSES", "IGNORE_FLAGS", "read_annotations"]

READERS: dict[str, Callable[[Path, ReadOptions], Annotations]] = {
    "coco": read_coco,
    "visdrone": read_visdrone,
    "wider": read_wider,
    "dota": read_dota,
    "voc": read_voc,
    "citypersons": read_citypersons,
    "odgt": read_odgt,
    "csv": read_table,
}


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

    `format` (one of `FORMATS`) names the format instead of having it found out; `data.yaml:val` is the split val of a YOLO
    data set. `classes` selects names and gives them the numbers 0..K-1 in this order; boxes of other classes are left
    out. `images` is the folder of the images where it is not the usual one. `ignore_classes` and `ignore_flags` say what is
    an ignore region (label -1, no class); give others to change the rule. `for_evaluation` keeps what reference evaluators
    see: boxes without area (WIDER FACE has one of width -2), outside the image, and repeated ids; and COCO files give
    `extra["xywh"]`, the boxes to the last bit.

    `extra["category"]` (M,) is the class that a box was annotated with, also where it is an ignore region (-1: none). Broken
    entries are left out and listed in `Annotations.problems`. Raises UserError for a source that cannot be read at all.
    """
    options = ReadOptions(
        classes=None if classes is None else tuple(classes),
        ignore_classes=tuple(ignore_classes),
        ignore_flags=tuple(ignore_flags),
        for_evaluation=for_evaluation,
        images=None if images is None else Path(images),
    )
    if format is not None and format not in FORMATS:
        raise UserError(f"unknown format '{format}'", where=source, fix=nearest(format, FORMATS))
    if options.images is not None and not options.images.is_dir():
        raise UserError("no such folder of images", where=options.images, fix="check the path")
    path, split = _split_of(source)
    kind, place = detect(path) if format is None else (format, path)
    if not place.exists():
        raise UserError("no such file or folder", where=place, fix="check the path")
    return read_yolo(place, options, split) if kind == "yolo" else READERS[kind](place, options)


def _split_of(source: str | Path) -> tuple[Path, str | None]:
    """`data.yaml:val` as path and split."""
    path, colon, split = str(source).rpartition(":")
    if colon and split in SPLITS and not Path(source).exists():
        return Path(path), split
    return Path(source), None
