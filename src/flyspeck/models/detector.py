"""A detector is backbone → neck → head. This file is the whole of what the three have in common.

* Backbone: `forward(x (B,3,H,W)) -> list[(B,C_l,H_l,W_l)]`, with `features: tuple[FeatureSpec, ...]` (see `backbones.staged`).
* Neck: `forward(list) -> list`, with its own `features`. A neck that is supervised itself (SSPNet) is a `SupervisedNeck`.
* Head: a `Head` below, whose docstring is the whole contract. It receives maps and image sizes; anchors and points are derived
  from the true ratio of image to map, so a map of any scale (dynamic pooling) gives boxes that do not drift.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flyspeck.errors import UserError
from flyspeck.models.assigners.base import AssigningPart
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.batch_decoding import BatchDetections, Size
from flyspeck.models.contracts import Blaming
from flyspeck.models.counts import counts_for, grown
from flyspeck.models.postprocess import RawDetections, Suppression
from flyspeck.models.start.report import StartReport
from flyspeck.models.start.rows import OutputRows
from flyspeck.types import Detections, FeatureSpec, ImageBatch, Targets

_PADDED_STRIDE = 32
"""Pixels of padding are computed for nothing: strides above this one are not padded to."""


@dataclass(frozen=True)
class DenseOutputs:
    """What a head says at each of its A anchors or points of every image of a batch: what response distillation compares."""

    logits: Tensor
    """(B, A, K) float32, before a sigmoid: one for each class, or K = 1 with `per_class` False."""
    boxes: Tensor
    """(B, A, 4) float32, in the head's own units: teacher and student have the same."""
    quality: Tensor | None = None
    """(B, A, 1) float32 logits of what scores are weighted by (centerness, a predicted IoU); None where there is none."""
    per_class: bool = True
    """Whether the columns of `logits` are the detector's classes; False: one objectness, as of a proposal network."""


class Head(nn.Module, ABC):
    """The contract of a head. All that flyspeck knows of a head, it asks here; nothing asks which class a head is of.

    A head **must** have the attributes below and the methods `losses` and `detect`. With these it trains, is evaluated,
    predicts (tiles, videos, rasters) and is explained. Every other method is **optional**; without it the command that
    needs it ends in one line that names the method:

    | for                                              | implement                                               |
    |--------------------------------------------------|---------------------------------------------------------|
    | `flyspeck profile` (parameters, GFLOPs, memory)  | `forward(maps)`, or `run_layers`; `extra_multiply_adds` |
    | `flyspeck export` (ONNX, OpenVINO)               | `decode_batch`                                          |
    | label assigners (`model.assigner`), and counting the positives that they give | `assigning_part`           |
    | distillation by responses (`distill.method: response`) | `dense_outputs`; `dense_part`, `dense_grid`, `dense_pairs` |
    | ... of the second stage too                      | `propose` and `region_outputs`                          |
    | starting from a model of other classes (`model.start`) | `output_rows`                                     |
    | saying before a training that memory is too small | `check_training`                                       |

    Arguments with the same name mean the same in all of them:

    * `maps`: the neck's feature maps, finest first, each `(B, C_l, H_l, W_l)`;
    * `padded`: (H, W) in pixels of the batch, of which a map is `H_l / H` as high: derive strides from this true ratio;
    * `sizes`: (H, W) in pixels of each image within the batch; what lies right of and below it is padding.

    Boxes are xyxy in float pixels of the padded batch: half-open, origin top-left.
    """

    num_classes: int
    """K, without background."""
    suppression: Suppression
    """How candidates become detections; replaced to export or to look at what is suppressed, so read it at every call."""

    @abstractmethod
    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Named scalar losses, already weighted: their sum is what training minimises.

        `targets` has one entry an image. Images without objects, and targets that are ignored (`Targets.ignored`), must give
        finite losses. Divide by counts over all processes (`models.losses.mean_over_processes`).
        """

    @abstractmethod
    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """Decoded, clipped and suppressed detections of each image (`models.postprocess` has the usual steps)."""

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """Optional, for export: `detect` for a whole batch, as a function of tensors that a graph can hold.

        `size` is the (H, W) of all images, unpadded; its numbers may be symbols. It must find what `detect` finds. The parts
        it is made of, and what it must not do, are in `models.batch_decoding`.
        """
        raise self.lacks("decode_batch", "be exported", instead="use the run folder itself")

    def counted_rules(self) -> list[tuple[object, str]]:
        """Where the head's rules of counts an image lie, as (owner, attribute): dataclasses whose whole numbers are such counts.

        They grow with the input's area (`models.counts`). A head that has more than `suppression` names the others too.
        """
        return [(self, "suppression")]

    def assigning_part(self) -> AssigningPart:
        """Optional: the part that decides which prior learns which object, and takes other assigners: often `self`."""
        raise self.lacks("assigning_part", "take an assigner (it assigns by a rule of its own)")

    def run_layers(self, maps: Sequence[Tensor], *, proposals: int) -> None:
        """Optional, for `profile`: runs every layer as often as one image of the batch needs it, and gives nothing back.

        By default that is `forward(maps)`. A head that has no such method runs its layers here; one of two stages runs the
        second on `proposals` regions. All tensors are on PyTorch's meta device, without values: no step may depend on them.
        """
        if type(self).forward is nn.Module.forward:
            raise self.lacks("run_layers", "be counted", instead="give it a forward(maps) that runs all of its layers")
        self(maps)

    def extra_multiply_adds(self, maps: Sequence[Tensor], *, proposals: int) -> int:
        """Optional, for `profile`: multiply-adds that no layer does, as of a `torch.matmul` or an `einsum`.

        `profile` counts convolutions, linear layers and the attention of Swin as `run_layers` calls them, and by the
        convention `macs` adds this number. The other conventions count layers alone, as the tools do that they are named after.
        """
        return 0

    def check_training(self, *, images: int, size: tuple[int, int], free: int) -> None:
        """Optional, of a head whose memory grows with a number that users choose: raises UserError, which names that number,
        where learning from batches of `images` of `size` (H, W) px takes more than `free` bytes within it.
        """

    def dense_outputs(self, raw: Any) -> DenseOutputs:
        """Optional, for distillation by responses: what `dense_part()` returned, for all levels in one row."""
        raise self.lacks(
            "dense_outputs", "be distilled by responses", instead="use a method of features (single, hierarchical, …)"
        )

    def dense_part(self) -> nn.Module:
        """The module whose `forward` gives what `dense_outputs` takes: the head itself, or its proposal network.

        Distillation watches it while the losses are computed, so that nothing runs twice.
        """
        return self

    def dense_grid(self) -> Sequence[Sequence[tuple[float, float]]]:
        """(width, height) in pixels of the anchors of each level, which a teacher must share; empty for a head on points."""
        return ()

    def dense_pairs(self, own: DenseOutputs, given: DenseOutputs, size: tuple[int, int]) -> Tensor:
        """Optional, of a head whose rows have no order that a teacher's share (queries): which of its own rows answers each row
        of the teacher's, `(B, A of the teacher)`, each at most once; -1 where none does. `size` is (H, W) in px of the batch.

        With it neither anchors, levels nor the size of the teacher's images need be the same.
        """
        raise self.lacks("dense_pairs", "be paired with a teacher's queries")

    def output_rows(self) -> Mapping[str, OutputRows]:
        """Optional, for `model.start`: what the rows of the last layers stand for, by the layer's name within the head.

        With it a detector that starts from one of other classes or anchors keeps the rows of what both have, by class name and
        by shape; without it last layers are taken where all classes are the same, and left as they are otherwise.
        """
        return {}

    def propose(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Optional, of a head of two stages: the regions `(P_i, 4)` of each image that the second stage looks at, best first."""
        raise self.lacks("propose", "name its regions")

    def region_outputs(
        self, maps: Sequence[Tensor], regions: Sequence[Tensor], padded: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Optional, of a head of two stages: what it says of `regions`, for distillation by responses.

        Class logits `(P, K+1)` before a softmax, background last, and box outputs `(P, K or 1, 4)`; P is the sum of the P_i.
        """
        raise self.lacks("region_outputs", "be asked about regions")

    def implements(self, method: str) -> bool:
        """Whether this head has the optional `method`."""
        return getattr(type(self), method) is not getattr(Head, method)

    def lacks(self, method: str, purpose: str, *, instead: str = "") -> UserError:
        """The error for a missing optional `method`, without which the head cannot `purpose`."""
        fix = f"implement Head.{method} in it (flyspeck.models.detector says what it gives)"
        return UserError(
            f"{type(self).__name__} cannot {purpose}: it has no {method}",
            where="model",
            fix=f"{fix}, or {instead}" if instead else fix,
        )


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

    `mean` and `std` have one entry per band of the images; a one-band image is repeated to three afterwards, so that
    RGB-pretrained weights apply to thermal images with the data set's own statistics. `channels` None is what the backbone
    takes then: three for one band, else as many as there are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, channels: int | None = None) -> None:
        super().__init__()
        self.bands = len(mean)
        self.channels = channels or (3 if len(mean) == 1 else len(mean))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    @property
    def fill(self) -> tuple[float, ...]:
        """What pads an image that knows no true size: each band's mean, in units of 8 bits."""
        return tuple(255 * value for value in self.mean.flatten().clamp(0, 1).tolist())

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
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: Head,
        *,
        pixel_norm: PixelNorm,
        classes: Sequence[str],
        divisor: int | None = None,
    ) -> None:
        """`divisor` None lets it follow from the strides, see `Detector.divisor`."""
        super().__init__()
        self.pixel_norm = pixel_norm
        self.backbone, self.neck, self.head = backbone, neck, head
        self.classes = tuple(classes)
        self.starts: list[StartReport] = []
        """What was loaded when it was built, source by source."""
        self.router: Router | None = None
        """None: every image is treated alike."""
        self._divisor = divisor
        self.counts_area: int | None = None
        """Pixels of the input that the head's counts an image are for; None: they hold for every image (`models.counts`)."""

    @property
    def divisor(self) -> int:
        """What the sides of the network's input must divide by; batches and windows are padded to multiples of it.

        Where a map's last cell is only partly covered, the ratio of image to map is off, and boxes shift, the more the
        further they lie from the origin. So it is a multiple of every stride up to 32, and up to the backbone's largest;
        coarser levels are left to be off by less than a cell. An SSD, whose priors belong to one image size, has 1.
        """
        if self._divisor is not None:
            return self._divisor
        own: Sequence[FeatureSpec] = self.backbone.features  # type: ignore[assignment]
        bound = max(_PADDED_STRIDE, *(spec.stride for spec in own))
        strides = {spec.stride for spec in (*own, *self.features) if spec.stride <= bound}
        return math.lcm(*(int(stride) for stride in strides if stride == int(stride)))

    @divisor.setter
    def divisor(self, value: int) -> None:
        """For weights that were trained with another padding (all of version 0.1.0 with 32)."""
        self._divisor = value

    @property
    def smallest_side(self) -> int:
        """Pixels that a side of the network's input needs at least: one cell of the backbone's coarsest map, and what a resize
        within it must leave (`StagedBackbone.smallest_side`).
        """
        if isinstance(self.backbone, StagedBackbone):
            return self.backbone.smallest_side
        own: Sequence[FeatureSpec] = self.backbone.features  # type: ignore[assignment]
        return math.ceil(max(spec.stride for spec in own))

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """What `pyramid` returns, finest level first."""
        return self.neck.features  # type: ignore[return-value]

    def pyramid(self, images: ImageBatch) -> list[Tensor]:
        """The maps the head sees, finest first: the tap for distillation and for explanations."""
        maps = self._maps(images)
        with Blaming(self.neck, "forward"):
            return self.neck(maps)

    def _maps(self, images: ImageBatch) -> list[Tensor]:
        with Blaming(self.backbone, "forward"):
            return self.backbone(self.pixel_norm(images))

    def losses(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Named scalar losses of a batch."""
        return self.losses_from(self._maps(images), images, targets)

    def losses_from(self, maps: Sequence[Tensor], images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """`losses`, where the backbone has run already: `maps` are its feature maps."""
        return self.losses_and_pyramid(maps, images, targets)[0]

    def losses_and_pyramid(
        self, maps: Sequence[Tensor], images: ImageBatch, targets: Sequence[Targets]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """`losses_from`, and the maps that the head saw on the way: distillation compares them with a teacher's."""
        padded = _height_width(images.pixels)
        with Blaming(self.neck, "forward"):
            if isinstance(self.neck, SupervisedNeck):
                pyramid, neck_losses = self.neck.forward_with_losses(maps, targets, padded)
            else:
                pyramid, neck_losses = self.neck(maps), {}
        with Blaming(self.head, "losses") as blaming:
            found = self.head.losses(pyramid, targets, padded, images.sizes)
            named = isinstance(found, Mapping) and all(isinstance(v, Tensor) and v.ndim == 0 for v in found.values())
            blaming.due(found, named, "a dictionary of scalar tensors")
        return {**found, **neck_losses}, pyramid

    def detection_limit(self, size: tuple[int, int]) -> int:
        """Detections that an input of `size` (H, W) can have."""
        limit = self.head.suppression.max_detections
        return limit if self.counts_area is None else grown(limit, size, self.counts_area)

    def detect_from(
        self, pyramid: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """`Head.detect` on the maps of a batch of `padded` (H, W), with counts for that size."""
        with counts_for(self.head, padded, self.counts_area), Blaming(self.head, "detect") as blaming:
            found = self.head.detect(pyramid, padded, sizes)
            listed = isinstance(found, Sequence) and len(found) == len(sizes)
            blaming.due(
                found, listed and all(isinstance(one, RawDetections) for one in found), "RawDetections of each image"
            )
            return found

    @torch.no_grad()
    def detect(self, images: ImageBatch) -> list[Detections]:
        """Detections of each image, in the frame of the batch."""
        if self.router is not None:
            return self.router.detect(self, images)
        raw = self.detect_from(self.pyramid(images), _height_width(images.pixels), images.sizes)
        return [to_detections(r, size, self.classes) for r, size in zip(raw, images.sizes, strict=True)]


def _height_width(x: Tensor) -> tuple[int, int]:
    return int(x.shape[-2]), int(x.shape[-1])


def to_detections(raw: RawDetections, image_size: tuple[int, int], classes: Sequence[str]) -> Detections:
    """Tensors to the NumPy value that leaves the model."""
    boxes, scores, labels = (t.detach().to("cpu") for t in (raw.boxes.float(), raw.scores.float(), raw.labels))
    return Detections(boxes.numpy(), scores.numpy(), labels.numpy(), image_size, tuple(classes))
