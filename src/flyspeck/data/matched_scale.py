"""Scale Match drawn anew at every load: an image has another scale in every epoch, as in the authors' training code.

`flyspeck data scale-match` draws once and writes images; this draws while training, from the same histogram and by the same
rule (`flyspeck.data.scale_match`), for SM and MSM. SM+ needs inpainting, and is made on disk. MSM draws nothing: every image
has its one scale, here as there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from flyspeck.data.annotations import Annotations
from flyspeck.data.scale_match import SizeHistogram, SizeMatchRule, mean_sizes, object_sizes, rectified_histogram
from flyspeck.data.transforms import Another, no_other, resize
from flyspeck.errors import UserError
from flyspeck.types import Sample, Targets


@dataclass(frozen=True)
class MatchedScale:
    """Resizes an image so that the geometric mean of its objects' sizes becomes one of the target's sizes.

    Enlarged by no more than `rule.max_scale` and to no more than `rule.max_side` px; objects of which a side gets below
    `rule.min_side` px are dropped. An image without objects gets the scale `otherwise`.
    """

    histogram: SizeHistogram
    source: np.ndarray
    """(N,) sizes of the objects to learn, in px: what MSM maps to the target's."""
    rule: SizeMatchRule
    otherwise: float

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample."""
        _, height, width = sample.pixels.shape
        drawn = float(self.histogram.sample(rng, 1)[0])  # always, so that no later draw depends on the objects
        objects = sample.targets.objects.to(torch.float64)
        scale = self.otherwise
        if len(objects):
            mean = float(((objects[:, 2:] - objects[:, :2]).prod(1).log() / 2).mean().exp())
            scale = (drawn if self.rule.method == "sm" else float(self._mapped(mean))) / mean
        scale = min(scale, self.rule.max_scale, self.rule.max_side / max(height, width))
        size = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        return _without_slivers(resize(sample, size), self.rule.min_side)

    def _mapped(self, mean: float) -> float:
        return self.histogram.mapped(np.array([mean]), self.source)[0]


def matched_scale(source: Annotations, target: Annotations, rule: SizeMatchRule) -> MatchedScale:
    """Scale Match at every load of the images of `source`, to the sizes of `target`.

    Raises UserError where one of them has no objects, or for SM+.
    """
    if rule.method == "sm+":
        raise UserError(
            "SM+ is made on disk", where="augment.scale_match", fix="run flyspeck data scale-match --match sm+"
        )
    sizes, wanted = object_sizes(source)[1], object_sizes(target)[1]
    for found, table in ((sizes, source), (wanted, target)):
        if len(found) == 0:
            raise UserError(
                "no boxes to take sizes from", where=table.source, fix="give another augment.scale_match.target"
            )
    histogram = rectified_histogram(wanted, bins=rule.bins, tails=rule.tails)
    means, has = mean_sizes(source)
    otherwise = float(np.median(wanted) / np.median(means[has]))
    return MatchedScale(histogram, sizes, rule, otherwise)


def _without_slivers(sample: Sample, min_side: float) -> Sample:
    targets = sample.targets
    keep = ((targets.boxes[:, 2:] - targets.boxes[:, :2]).amin(1) >= min_side) | targets.ignore
    if bool(keep.all()):
        return sample
    return replace(sample, targets=Targets(targets.boxes[keep], targets.labels[keep], targets.ignore[keep]))
