"""Random rotation by any angle, and what it makes of boxes. SSPNet's authors turn tiles by up to 45 degrees.

A turned box is no upright box: the label must be another one. Two are offered.

* `corners`: the upright box around the four turned corners. It holds all of the object, and is too large for it: a square that is
  turned by t becomes |cos t| + |sin t| times as long, 1.41 times at 45 degrees and 4/pi = 1.27 times on average over +-45. An
  8 px person is then learnt as one of 10.2 px; its true box has an IoU of 0.62 with the label. The authors' library does this.
* `ellipse`: the upright box around the turned ellipse that touches the sides of the box. It keeps squares as they are, whatever
  the angle, and fits what has no corners; of a true rectangle it cuts the corners off.

Deviations from the authors' augmentation: no shift; the corners that open are filled with the mean colour of the image, where
theirs mirrors the image into them, objects and all, and labels none of these copies; a box that the border cuts becomes an
object, an ignore region or nothing by the house's one policy, where theirs keeps every remainder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from flyspeck.data.policy import CutPolicy, cut_boxes
from flyspeck.data.transforms import Another, no_other
from flyspeck.types import Sample, Targets

BoxRule = Literal["corners", "ellipse"]


def rotated_boxes(boxes: Tensor, degrees: float, size: tuple[int, int], rule: BoxRule) -> Tensor:
    """Upright boxes around `boxes (N, 4)` turned counter-clockwise about the middle of an image of `size` (H, W), not clipped."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle = torch.tensor([size[1] / 2, size[0] / 2], dtype=torch.float64)
    wide = boxes.to(torch.float64)
    x, y = ((wide[:, :2] + wide[:, 2:]) / 2 - middle).unbind(1)
    center = torch.stack([cos * x + sin * y, cos * y - sin * x], 1) + middle
    half_width, half_height = ((wide[:, 2:] - wide[:, :2]) / 2).unbind(1)
    parts = torch.stack([half_width * cos, half_height * sin, half_width * sin, half_height * cos], 1).abs()
    if rule == "corners":
        half = torch.stack([parts[:, 0] + parts[:, 1], parts[:, 2] + parts[:, 3]], 1)
    else:
        half = torch.stack([parts[:, 0].hypot(parts[:, 1]), parts[:, 2].hypot(parts[:, 3])], 1)
    return torch.cat([center - half, center + half], 1).to(boxes.dtype)


def rotate(sample: Sample, degrees: float, *, boxes: BoxRule = "corners", policy: CutPolicy | None = None) -> Sample:
    """Turned counter-clockwise by `degrees` about its middle, at the same size.

    Ignore regions become the boxes around their corners, whatever the rule `boxes`: they must cover what they covered.
    """
    _, height, width = sample.pixels.shape
    mean = sample.pixels.to(torch.float32).mean((1, 2)).tolist()
    pixels = tv.rotate_image(sample.pixels, degrees, tv.InterpolationMode.BILINEAR, fill=mean)
    targets = sample.targets
    turned = rotated_boxes(targets.boxes, degrees, (height, width), boxes)
    if boxes != "corners":
        around = rotated_boxes(targets.boxes, degrees, (height, width), "corners")
        turned = torch.where(targets.ignore[:, None], around, turned)
    cut, remains, ignore = cut_boxes(turned, targets.ignore, (0, 0, width, height), policy or CutPolicy())
    labels = torch.where(ignore, -1, targets.labels)
    return replace(sample, pixels=pixels, targets=Targets(cut[remains], labels[remains], ignore[remains]))


@dataclass(frozen=True)
class RandomRotation:
    """Turns an image by an angle of up to `degrees` either way, with `probability`."""

    degrees: float
    probability: float = 0.5
    boxes: BoxRule = "corners"
    policy: CutPolicy = field(default_factory=CutPolicy)

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample."""
        happens, share = rng.random(2)
        if happens >= self.probability:
            return sample
        return rotate(sample, (2 * share - 1) * self.degrees, boxes=self.boxes, policy=self.policy)
