"""The annotation table: every format is read into these columns, once, and everything else works on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Annotations:
    """Boxes of a whole data set as columns; no torch, no Python object per box.

    `I` images, `M` boxes, `K` classes. Category ids of the source are mapped to 0..K-1 once, here; `category_ids` keeps
    the source's numbers for writing results back. Ignore regions of every class carry the label -1 and are no class.
    """

    image_ids: np.ndarray
    """(I,) the source's image ids: int64, or str objects."""
    file_names: tuple[str, ...]
    """(I,) paths relative to `root`."""
    sizes: np.ndarray
    """(I, 2) int64 (height, width); -1 where the source does not say."""
    image_index: np.ndarray
    """(M,) int64: row of `image_ids` that each box belongs to; ascending, file order kept within an image."""
    boxes: np.ndarray
    """(M, 4) float64 xyxy pixels of the original image, as annotated (not clipped)."""
    labels: np.ndarray
    """(M,) int64 in 0..K-1, or -1 for an ignore region of every class."""
    area: np.ndarray
    """(M,) float64: the source's own area field where it has one, else w*h."""
    ignore: np.ndarray
    """(M,) bool: neither learnt nor counted."""
    crowd: np.ndarray
    """(M,) bool: COCO's iscrowd (also ignored; overlap with it is IoD)."""
    box_ids: np.ndarray
    """(M,) the source's annotation ids, or 1..M."""
    classes: tuple[str, ...]
    """(K,) names."""
    category_ids: tuple[int, ...]
    """(K,) the source's category ids."""
    root: Path = Path()
    """Folder that `file_names` are relative to."""
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    """More columns of length M as the source has them: `uncertain`, `logo`, `difficult`, `height`, `vis_ratio`, `size`, …

    `category` is the class that an ignore region was annotated with; of other boxes, `labels` alone counts."""
    image_extra: dict[str, np.ndarray] = field(default_factory=dict)
    """More columns of length I, such as `corner` (a tile's x1, y1, x2, y2 in its whole image)."""
    source: str = ""
    """What was read, in words, for messages: `coco: train.json`."""
    problems: tuple[str, ...] = ()
    """Broken entries that the reader found and left out, one line each."""
    notes: tuple[str, ...] = ()
    """What the reader guessed, with its reason and the option that says otherwise, and files that have no partner."""
    unkept: tuple[str, ...] = ()
    """What the source has and this table does not hold, in words: `segmentation of 12 annotations`, `licenses`."""
    pixels: str | None = None
    """How whole-pixel corners were read (`half-open`, `from-0`, `from-1`), where the format leaves that open."""
    pixels_known: bool = True
    """Whether that is the user's word or the writing tool's, rather than a guess."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_boxes(self) -> int:
        """M, ignore regions included."""
        return len(self.boxes)

    @property
    def own_labels(self) -> np.ndarray:
        """`(M,)` the class that each box was annotated with, also where it is an ignore region; -1 where it has none."""
        return np.where(self.labels >= 0, self.labels, self.extra.get("category", self.labels))

    def of_image(self, index: int) -> slice:
        """The rows of image `index` (a row number, not an id)."""
        start, stop = np.searchsorted(self.image_index, [index, index + 1])
        return slice(int(start), int(stop))

    def path(self, index: int) -> Path:
        """The image file of row `index`."""
        return self.root / self.file_names[index]

    def select_images(self, rows: Any) -> Annotations:
        """The same table for some images only, in the order of `rows` (row numbers or a mask)."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        starts = np.searchsorted(self.image_index, rows)
        counts = np.searchsorted(self.image_index, rows, side="right") - starts
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        picked = np.repeat(starts, counts) + within
        return replace(
            self.select_boxes(picked, image_index=np.repeat(np.arange(len(rows)), counts)),
            image_ids=self.image_ids[rows],
            file_names=tuple(self.file_names[i] for i in rows),
            sizes=self.sizes[rows],
            image_extra={name: column[rows] for name, column in self.image_extra.items()},
        )

    def select_boxes(self, rows: Any, image_index: np.ndarray | None = None) -> Annotations:
        """The same images with some boxes only (row numbers or a mask, ascending by image)."""
        return replace(
            self,
            image_index=self.image_index[rows] if image_index is None else image_index,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            area=self.area[rows],
            ignore=self.ignore[rows],
            crowd=self.crowd[rows],
            box_ids=self.box_ids[rows],
            extra={name: column[rows] for name, column in self.extra.items()},
        )

    def __iter__(self) -> Iterator[slice]:
        """The row slices of the images, in order."""
        bounds = np.searchsorted(self.image_index, np.arange(len(self) + 1))
        return (slice(int(a), int(b)) for a, b in pairwise(bounds))
