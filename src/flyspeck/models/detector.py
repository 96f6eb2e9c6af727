"""A detector is backbone → neck → head. This file is the whole of what the three have in common.

* Backbone: `forward(x (B,3,H,W)) -> list[(B,C_l,H_l,W_l)]`, with `features: tuple[FeatureSpec, ...]` (see `backbones.staged`).
* Neck: `forward(list) -> list`, with its own `features`. A neck that is supervised itself (SSPNet) is a `SupervisedNeck`.
* Head: a `Head` below. It receives maps and image sizes; anchors and points are derived from the true ratio of
  image to map, so a map of any scale (dynamic pooling) gives boxes that do not drift.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flyspeck.models.postprocess import RawDetections, Suppression
from flyspeck.types import Detections, FeatureSpec, ImageBatch, Targets


class Head(nn.Module, ABC):
    """What a detector asks of its head. `padded` is (H, W) of the padded batch, `sizes` the true (H, W) of each image."""

    num_classes: int
    suppression: Suppression
    """How candidates become detections; replaced to export or to look at what is suppressed."""

    @abstractmethod
    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Named scalar losses, already weighted: their sum is what training minimises."""

    @abstractmethod
    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """Decoded, clipped and suppressed detections of each image."""


class SupervisedNeck(nn.Module, ABC):
    """A neck that is trained by a loss of its own."""

    features: tuple[FeatureSpec, ...]

    @abstractmethod
    def forward_with_losses(
        self, maps: Sequence[Tensor], targets: Sequence[Targets], padded: tuple[int, int]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The pyramid, and the neck's own losses."""


class PixelNorm(nn.Module):
    """Pixels to network input: `(x - mean) / std` per channel in units of [0, 1]; what pads an image becomes 0.

    `mean` and `std` have one entry per channel of the files; a one-channel image is repeated to `channels` afterwards, so
    that RGB-pretrained weights apply to thermal images with the data set's own statistics.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, channels: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: ImageBatch) -> Tensor:
        """`(B, C, H, W)` uint8 or float in [0, 1] to float32 `(B, channels, H, W)`, channels-last."""
        pixels = images.pixels
        scale = 255.0 if pixels.dtype == torch.uint8 else 1.0
        x = (pixels.to(torch.float32) - self.mean * scale) / (self.std * scale)
        height, width = x.shape[-2:]
        for i, (h, w) in enumerate(images.sizes):
            if (h, w) != (height, width):
                x[i, :, h:], x[i, :, :, w:] = 0, 0
        if x.shape[1] == 1 and self.channels > 1:
            x = x.expand(-1, self.channels, -1, -1)
        return x.contiguous(memory_format=torch.channels_last)


class Router(nn.Module, ABC):
    """Decides, image by image, how a detector runs (the predictor of dynamic pooling)."""

    @abstractmethod
    def detect(self, detector: Detector, images: ImageBatch) -> list[Detections]:
        """Detections of each image in the order of the batch, in its frame."""


class Detector(nn.Module):
    """Final: the composition of three parts. Training and detecting are separate functions, whatever `self.training` is."""

    def __init__(
        self, backbone: nn.Module, neck: nn.Module, head: Head, *, pixel_norm: PixelNorm, classes: Sequence[str]
    ) -> None:
        super().__init__()
        self.pixel_norm = pixel_norm
        self.backbone, self.neck, self.head = backbone, neck, head
        self.classes = tuple(classes)
        self.router: Router | None = None
        """None: every image is treated alike."""

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """What `pyramid` returns, finest level first."""
        return self.neck.features  # type: ignore[return-value]

    def pyramid(self, images: ImageBatch) -> list[Tensor]:
        """The maps the head sees, finest first: the tap for distillation and for explanations."""
        return self.neck(self.backbone(self.pixel_norm(images)))

    def losses(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Named scalar losses of a batch."""
        return self.losses_from(self.backbone(self.pixel_norm(images)), images, targets)

    def losses_from(self, maps: Sequence[Tensor], images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """`losses`, where the backbone has run already: `maps` are its feature maps."""
        return self.losses_and_pyramid(maps, images, targets)[0]

    def losses_and_pyramid(
        self, maps: Sequence[Tensor], images: ImageBatch, targets: Sequence[Targets]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """`losses_from`, and the maps that the head saw on the way: distillation compares them with a teacher's."""
        padded = _height_width(images.pixels)
        if isinstance(self.neck, SupervisedNeck):
            pyramid, neck_losses = self.neck.forward_with_losses(maps, targets, padded)
        else:
            pyramid, neck_losses = self.neck(maps), {}
        return {**self.head.losses(pyramid, targets, padded, images.sizes), **neck_losses}, pyramid

    @torch.no_grad()
    def detect(self, images: ImageBatch) -> list[Detections]:
        """Detections of each image, in the frame of the batch."""
        if self.router is not None:
            return self.router.detect(self, images)
        raw = self.head.detect(self.pyramid(images), _height_width(images.pixels), images.sizes)
        return [to_detections(r, size, self.classes) for r, size in zip(raw, images.sizes, strict=True)]


def _height_width(x: Tensor) -> tuple[int, int]:
    return int(x.shape[-2]), int(x.shape[-1])


def to_detections(raw: RawDetections, image_size: tuple[int, int], classes: Sequence[str]) -> Detections:
    """Tensors to the NumPy value that leaves the model."""
    boxes, scores, labels = (t.detach().to("cpu") for t in (raw.boxes.float(), raw.scores.float(), raw.labels))
    return Detections(boxes.numpy(), scores.numpy(), labels.numpy(), image_size, tuple(classes))
