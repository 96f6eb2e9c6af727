"""The values that travel between the parts: frozen, small, and free of torch at import.

Letters used everywhere: B batch, N boxes of one image, A anchors or points, K classes, L pyramid levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flyspeck import convert

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What a backbone or neck promises of one feature map."""

    channels: int
    stride: float
    """Image pixels per map pixel, nominal; under a dynamic factor the true ratio is taken from the shapes."""


@dataclass(frozen=True)
class Targets:
    """Ground truth of one image as torch tensors, in the frame of the image that the network sees."""

    boxes: torch.Tensor
    """(N, 4) float32 xyxy pixels."""
    labels: torch.Tensor
    """(N,) int64 in 0..K-1; -1 for an ignore region, which holds for every class."""
    ignore: torch.Tensor
    """(N,) bool; True marks a region to be neither learnt nor punished."""

    @property
    def objects(self) -> torch.Tensor:
        """Boxes to learn, `(N', 4)`."""
        return self.boxes[~self.ignore]

    @property
    def object_labels(self) -> torch.Tensor:
        """Labels of `objects`, `(N',)`."""
        return self.labels[~self.ignore]

    @property
    def ignored(self) -> torch.Tensor:
        """Ignore regions, `(N'', 4)`."""
        return self.boxes[self.ignore]

    def to(self, device: Any) -> Targets:
        """The same targets on another device."""
        return Targets(self.boxes.to(device), self.labels.to(device), self.ignore.to(device))


@dataclass(frozen=True)
class Sample:
    """One image with its ground truth, as the data pipeline passes it from transform to transform."""

    pixels: torch.Tensor
    """(C, H, W) uint8, or float32 in [0, 1] (16-bit images)."""
    targets: Targets
    image_id: int | str


@dataclass(frozen=True)
class ImageBatch:
    """Images of a batch, padded bottom and right to one size; never resized silently."""

    pixels: torch.Tensor
    """(B, C, H, W) uint8, or float in [0, 1]."""
    sizes: tuple[tuple[int, int], ...]
    """True (H, W) of each image before the padding."""

    def to(self, device: Any) -> ImageBatch:
        """The same batch on another device."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=True))


@dataclass(frozen=True)
class Detections:
    """What was found in one image, as NumPy arrays in the frame of the original image, best score first."""

    boxes: np.ndarray
    """(N, 4) float32 xyxy pixels."""
    scores: np.ndarray
    """(N,) float32 in [0, 1]."""
    labels: np.ndarray
    """(N,) int64 in 0..K-1."""
    image_size: tuple[int, int]
    """(H, W) of the image."""
    classes: tuple[str, ...] = ()
    image_id: int | str | None = None
    """That of the annotations that named the image; of a file that only a program named, its path; None: an array, or bytes."""
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    """More columns of length N, such as `cut` (bool: touches a tile border that is not the image's)."""

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float32).reshape(-1))
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64).reshape(-1))
        columns = {"scores": self.scores, "labels": self.labels, **self.extra}
        for name, column in columns.items():
            if len(column) != len(boxes):
                raise ValueError(f"Detections.{name} has {len(column)} rows where boxes has {len(boxes)}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Detections:
        """The rows that a mask, slice or index array selects."""
        if isinstance(index, int | np.integer):
            index = [index]
        extra = {name: column[index] for name, column in self.extra.items()}
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index], extra=extra)

    @staticmethod
    def empty(image_size: tuple[int, int], classes: Sequence[str] = ()) -> Detections:
        """No detections in an image of `image_size` (H, W)."""
        nothing = np.zeros((0, 4), np.float32)
        return Detections(nothing, np.zeros(0), np.zeros(0, np.int64), image_size, tuple(classes))

    def to_coco(
        self, *, category_ids: Sequence[int] | None = None, image_id: int | str | None = None
    ) -> list[dict[str, Any]]:
        """COCO results; see `flyspeck.convert.to_coco`."""
        return convert.to_coco(self, category_ids=category_ids, image_id=image_id)

    def to_supervision(self) -> Any:
        """A `supervision.Detections`; needs the extra `supervision`."""
        return convert.to_supervision(self)

    def to_dataframe(self) -> Any:
        """A pandas data frame with a row for every box; needs the extra `dataframe`."""
        return convert.to_dataframe(self)

    def plot(self, image: Any, *, max_side: int = 1600, crops: int = 8) -> Any:
        """A Pillow image of `image` (array or file) with boxes and enlarged crops; see `flyspeck.convert.plot`."""
        return convert.plot(self, image, max_side=max_side, crops=crops)

    def save(self, path: Any, image: Any = None) -> Any:
        """Write as `.json`, `.csv`, `.txt`, `.geojson` or an image; see `flyspeck.convert.save`."""
        return convert.save(self, path, image)
