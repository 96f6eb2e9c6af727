"""The teacher: frozen, in evaluation mode, once a batch, and never a part of what is trained or saved."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.models.detector import Detector
from flyspeck.models.fold import fold_norms, probe_images
from flyspeck.types import Detections, ImageBatch

TeacherOutputs = dict[str, Tensor]
"""What a method needs of the teacher for a batch: named tensors, the batch first."""
Observe = Callable[[Detector, ImageBatch], TeacherOutputs]
"""Runs a teacher on images of its own scale and gives what a method needs."""


class Teacher:
    """A trained detector that looks at every image enlarged by `scale`.

    It is no `nn.Module` on purpose: a module that holds it neither trains, saves nor counts it. What runs is a copy with the
    batch norms folded into the convolutions (`models.fold`), which gives the same maps in less time; `detector` itself is not
    touched.
    """

    def __init__(self, detector: Detector, *, scale: float = 1.0, fold: bool = True) -> None:
        self.detector, self.scale = detector, scale
        self.hash = weights_hash(detector)
        self._running = copy.deepcopy(detector).eval().requires_grad_(False)
        if fold:
            channels = self._running.pixel_norm.mean.shape[1]
            probe = probe_images(int(channels), 64, device=self._running.pixel_norm.mean.device)
            fold_norms(self._running, lambda: self._running.pyramid(probe))
        self._device: torch.device | None = None

    @torch.no_grad()
    def outputs(self, images: ImageBatch, observe: Observe) -> TeacherOutputs:
        """What `observe` takes from the teacher's look at `images`; tensors without a gradient."""
        if self._device != images.pixels.device:
            self._device = images.pixels.device
            self._running.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return observe(self._running, enlarged(images, self.scale))


class TeacherSource:
    """Gives a batch's teacher outputs by running the teacher."""

    def __init__(self, teacher: Teacher, observe: Observe) -> None:
        self.teacher, self.observe = teacher, observe

    def __call__(self, images: ImageBatch) -> TeacherOutputs:
        """The outputs for `images`."""
        return self.teacher.outputs(images, self.observe)


def enlarged(images: ImageBatch, scale: float) -> ImageBatch:
    """The batch enlarged, bilinear; float pixels in [0, 1], unless `scale` is 1. The padding grows along."""
    if scale == 1:
        return images
    pixels = images.pixels.float() / 255 if images.pixels.dtype == torch.uint8 else images.pixels
    height, width = (round(side * scale) for side in pixels.shape[-2:])
    pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    return ImageBatch(pixels, tuple((round(h * scale), round(w * scale)) for h, w in images.sizes))


class AsStudent(nn.Module):
    """A teacher that detects in the student's frame: enlarged images, boxes shrunk back, the student's class numbers.

    Detections of classes that the student does not have are left out.
    """

    def __init__(self, teacher: Detector, *, scale: float, classes: Sequence[str]) -> None:
        super().__init__()
        self.teacher, self.scale, self.classes = teacher, scale, tuple(classes)

    @property
    def divisor(self) -> int:
        """As `Detector.divisor`."""
        return self.teacher.divisor

    @property
    def smallest_side(self) -> int:
        """As `Detector.smallest_side`."""
        return self.teacher.smallest_side

    def detect(self, images: ImageBatch) -> list[Detections]:
        """As `Detector.detect`."""
        found = self.teacher.detect(enlarged(images, self.scale))
        return [self._translated(one, size) for one, size in zip(found, images.sizes, strict=True)]

    def _translated(self, found: Detections, size: tuple[int, int]) -> Detections:
        number = {name: i for i, name in enumerate(self.classes)}
        names = self.teacher.classes
        rows = [i for i, label in enumerate(found.labels) if names[label] in number]
        kept = found[rows]
        labels = [number[names[label]] for label in kept.labels]
        return replace(kept, boxes=kept.boxes / self.scale, labels=labels, image_size=size, classes=self.classes)  # type: ignore[arg-type]


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of all weights and norm statistics."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def shared_classes(student: Sequence[str], teacher: Sequence[str]) -> tuple[list[int], list[int], list[str]]:
    """Numbers of the classes of one name, in the student's order: the student's, the teacher's; and remarks on the rest."""
    number = {name: i for i, name in enumerate(teacher)}
    own = [i for i, name in enumerate(student) if name in number]
    remarks = []
    for who, names, others in (("teacher", student, teacher), ("student", teacher, student)):
        missing = [name for name in names if name not in others]
        if missing:
            remarks.append(f"the {who} does not know {', '.join(missing)}")
    return own, [number[student[i]] for i in own], remarks
