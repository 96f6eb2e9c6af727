"""Which way the images of a pre-training are read: all into memory, or each when it is needed."""

from __future__ import annotations

import logging
from pathlib import Path

from flyspeck.data.classification import LabelledImages, is_array_set, read_labelled_images
from flyspeck.data.labelled_files import LabelledFiles, list_labelled_images
from flyspeck.data.tar_shards import shards_of
from flyspeck.errors import UserError

log = logging.getLogger(__name__)

HELD_BYTES = 10**9
"""Of the training images of a folder of classes that are held in memory unless it is said."""

Sets = tuple[LabelledImages, LabelledImages] | tuple[LabelledFiles, LabelledFiles]


def read_sets(folder: Path, *, size: int, per_class: int | None = None, stream: bool | None = None) -> Sets:
    """Training and validation images of a folder in any known layout.

    Args:
        folder: As `read_labelled_images` and `list_labelled_images` take it.
        size: Side in pixels that images are resized to, where they are files.
        per_class: Training images of each class; None takes all.
        stream: Whether images stay on the disk. None: those of shards do, arrays do not, and those of a folder of classes
            do where they would take more than `HELD_BYTES`.

    Returns:
        Both in memory, or both as lists of files.

    Raises:
        UserError: For a folder of none of the layouts, and for a choice that its layout does not have.
    """
    arrays, shards = folder.is_dir() and is_array_set(folder), bool(folder.is_dir() and shards_of(folder, "train"))
    if arrays and stream:
        raise UserError("holds arrays, which are read as a whole", where=folder, fix="leave out --stream")
    if shards and stream is False:
        raise UserError("holds shards, which are read when needed", where=folder, fix="leave out --in-memory")
    if shards or (not arrays and stream is not False and (folder / "train").is_dir()):
        listed = list_labelled_images(folder, "train")
        listed = listed if per_class is None else listed.limit(per_class)
        needed = len(listed) * size * size * 3
        if shards or stream or needed > HELD_BYTES:
            if not shards and not stream:
                log.info("%s: %.1f GB at this size: images are read when they are needed", folder, needed / 1e9)
            return listed, list_labelled_images(folder, "val")
    train, val = (read_labelled_images(folder, split, size=size) for split in ("train", "val"))
    return train if per_class is None else train.limit(per_class), val
