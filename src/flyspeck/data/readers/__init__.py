"""Readers: one file per format; `read_annotations` finds out which one is needed.

A format from outside the package comes in by `flyspeck.register_reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.images import EXTENSIONS
from flyspeck.data.readers.assemble import IGNORE_CLASSES, IGNORE_FLAGS, PIXELS, Pixels, ReadOptions
from flyspeck.data.readers.citypersons import read_citypersons
from flyspeck.data.readers.coco import read_coco
from flyspeck.data.readers.cvat import read_cvat
from flyspeck.data.readers.detect import detect
from flyspeck.data.readers.dota import read_dota
from flyspeck.data.readers.fiftyone import read_fiftyone
from flyspeck.data.readers.folders import all_files
from flyspeck.data.readers.kitti import read_kitti
from flyspeck.data.readers.label_studio import read_label_studio
from flyspeck.data.readers.labelme import read_labelme
from flyspeck.data.readers.odgt import read_odgt
from flyspeck.data.readers.outside import refuse_outside
from flyspeck.data.readers.supervisely import read_supervisely
from flyspeck.data.readers.table import read_table
from flyspeck.data.readers.via import read_via
from flyspeck.data.readers.video_frames import read_uavdt, read_visdrone_video
from flyspeck.data.readers.visdrone import read_visdrone
from flyspeck.data.readers.voc import read_voc
from flyspeck.data.readers.wider import read_wider
from flyspeck.data.readers.yolo import SPLITS, read_yolo
from flyspeck.errors import UserError, counted, nearest
from flyspeck.plugins import UnknownPart, owned, with_installed

__all__ = ["IGNORE_CLASSES", "IGNORE_FLAGS", "READERS", "ReadOptions", "Reader", "format_of", "read_annotations"]


@dataclass(frozen=True)
class Reader:
    """A format by name."""

    read: Callable[[Path, ReadOptions], Annotations]
    """From a file or folder to its table."""
    endings: tuple[str, ...] = ()
    """Of file names, with the dot. Of flyspeck's own formats, `detect` knows more than endings say."""
    detect: Callable[[Path], bool] | None = None
    """Whether a file or folder is of this format."""


READERS: dict[str, Reader] = {
    "coco": Reader(read_coco),
    "visdrone": Reader(read_visdrone),
    "wider": Reader(read_wider),
    "dota": Reader(read_dota),
    "voc": Reader(read_voc),
    "yolo": Reader(read_yolo),
    "citypersons": Reader(read_citypersons),
    "odgt": Reader(read_odgt),
    "csv": Reader(read_table),
    "labelme": Reader(read_labelme),
    "via": Reader(read_via),
    "cvat": Reader(read_cvat),
    "label-studio": Reader(read_label_studio),
    "supervisely": Reader(read_supervisely),
    "fiftyone": Reader(read_fiftyone),
    "kitti": Reader(read_kitti),
    "visdrone-vid": Reader(read_visdrone_video),
    "uavdt": Reader(read_uavdt),
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
    pixels: str | None = None,
    encoding: str | None = None,
    absent_classes: bool = False,
    allow_references: bool = True,
) -> Annotations:
    """The annotations of a file or folder, whatever its format.

    Args:
        source: The file or folder; `data.yaml:val` is the split val of a YOLO data set.
        format: A name in `READERS`, in place of having it found out.
        classes: Names that are selected and get the numbers 0..K-1 in this order; boxes of other classes are left out.
        images: The folder of the images where it is not the usual one.
        ignore_classes: Classes that mark an ignore region (label -1, no class).
        ignore_flags: Fields of an entry that mark one.
        for_evaluation: Keep what reference evaluators see: boxes without area (WIDER FACE has one of width -2), outside the
            image, and repeated ids; COCO files give `extra["xywh"]`, the boxes to the last bit.
        pixels: `half-open`, `from-0` or `from-1`: what whole-pixel corners mean where a format leaves it open (VOC).
        encoding: Of text files which are neither UTF-8 nor say what they are.
        absent_classes: `classes` may name some that the source does not have.
        allow_references: The source may name images anywhere; False refuses those outside of its folder
            (`data.readers.outside`), for a source that comes from others.

    Returns:
        The table. `source` says what was seen, `notes` what was guessed and which files have no partner, `problems` which entries
        are broken and left out; `extra["category"]` (M,) is the class that a box was annotated with, also where it is an ignore
        region (-1: none).

    Raises:
        UserError: For a source that cannot be read at all.
    """
    path, split = _split_of(source)
    options = ReadOptions(
        classes=None if classes is None else tuple(classes),
        ignore_classes=tuple(ignore_classes),
        ignore_flags=tuple(ignore_flags),
        for_evaluation=for_evaluation,
        images=None if images is None else Path(images),
        split=split,
        pixels=_pixels(pixels),
        encoding=encoding,
        absent_classes=absent_classes,
    )
    if options.images is not None and not options.images.is_dir():
        raise UserError("no such folder of images", where=options.images, fix="check the path")
    with _explained(path):
        kind, place = _found(path, format)
        if not place.exists():
            raise UserError("no such file or folder", where=place, fix="check the path")
    with _explained(place):
        table = READERS[kind].read(place, options if allow_references else replace(options, inside=place))
        if not allow_references:
            refuse_outside(table.root, table.file_names, source=place, images=options.images)
        return table


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """What a reader runs into on any file: the system's refusals, files beyond memory, and numbers beyond floats.

    Boxes that overflow are found by `assemble`, so the warnings on the way say nothing new.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except OSError as error:
        what = (error.strerror or str(error) or type(error).__name__).lower()
        raise UserError(what, where=error.filename or place, fix="check the path and its permissions") from error
    except MemoryError as error:
        what = "it does not fit into the memory of this machine"
        raise UserError(what, where=place, fix="divide it, or check that it is the right file") from error
    except RecursionError as error:
        raise UserError("nested too deeply for an annotation file", where=place, fix="check the file") from error


def _pixels(name: str | None) -> Pixels | None:
    if name is None or name in PIXELS:
        return cast("Pixels | None", name)
    raise UserError(f"'{name}' is no meaning of pixels", where="pixels", fix=nearest(name, PIXELS))


def format_of(source: str | Path, format: str | None = None) -> str:
    """The name of the format that `read_annotations` takes `source` for. Raises UserError where there is none."""
    path = _split_of(source)[0]
    with _explained(path):
        return _found(path, format)[0]


def _found(path: Path, format: str | None) -> tuple[str, Path]:
    """The format by name, and the file or folder to read. flyspeck's own come first: a plugin changes nothing for them."""
    if format is not None:

        def named() -> tuple[str, Path]:
            if format not in READERS:
                raise UnknownPart(f"unknown format '{format}'", where=path, name=format, known=READERS)
            return format, path

        return with_installed(named)
    try:
        return detect(path) or _asked_plugins(path)
    except UnknownPart as error:
        _refuse_bare(path)
        raise error from None


def _asked_plugins(path: Path) -> tuple[str, Path]:
    """What a plugin reads; those that are installed are not loaded, which may take long, for a folder that holds nothing."""
    if path.is_dir() and next(path.iterdir(), None) is None:
        _refuse_bare(path)
    return with_installed(lambda: _outside(path))


def _refuse_bare(path: Path) -> None:
    """Raises UserError for a folder that holds nothing but images, or not even these: no format has to be named for that."""
    files = list(all_files(path, recursive=True)) if path.is_dir() else [path]
    images = [file for file in files if file.suffix.lower() in EXTENSIONS]
    if not files:
        raise UserError("the folder holds no images and no annotations", where=path, fix="check the path")
    if len(images) == len(files) and path.is_dir():
        what = f"the folder holds {counted(len(images), 'image')} and no annotations"
        raise UserError(what, where=path, fix="give the file or folder of its annotations, or annotate some first")


def _outside(path: Path) -> tuple[str, Path]:
    """The one format of a plugin that claims a file or folder."""
    claimed = [name for name in owned("reader") if _claims(READERS[name], path, name)]
    if not claimed:
        raise UnknownPart("no annotations of a known format", where=path, name="", known=READERS)
    if len(claimed) > 1:
        raise UserError(f"it could be {' or '.join(claimed)}", where=path, fix="give --format, or format in the recipe")
    return claimed[0], path


def _claims(reader: Reader, path: Path, name: str) -> bool:
    if not path.name.lower().endswith(tuple(ending.lower() for ending in reader.endings) or ("",)):
        return False
    if reader.detect is None:
        return bool(reader.endings)
    try:
        return reader.detect(path)
    except Exception as error:  # it was shown a file that may be anything
        what = f"the reader '{name}' of a plugin failed to look at it ({type(error).__name__}: {error})"
        raise UserError(what, where=path, fix="give --format") from error


def _split_of(source: str | Path) -> tuple[Path, str | None]:
    """`data.yaml:val` as path and split."""
    path, colon, split = str(source).rpartition(":")
    if colon and split in SPLITS and not Path(source).exists():
        return Path(path), split
    return Path(source), None
