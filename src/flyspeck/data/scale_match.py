"""Scale Match: the objects of one data set made as big as those of another, to pre-train on.

Yu et al., WACV 2020, arXiv:1912.10664 (SM and MSM; code: ucas-vg/PointTinyBenchmark), Jiang et al., ICASSP 2021,
arXiv:2102.03558 (SM+). What a network learns of size during pre-training should fit what it will be fine-tuned on.

* SM: each image draws a size from the rectified histogram of the target's object sizes and is resized so that the mean size
  of its own objects, the geometric mean, becomes that.
  `flyspeck data scale-match` draws once and writes images; `augment.scale_match` of a recipe draws at every load
  (`flyspeck.data.matched_scale`), as the authors' code does.
* MSM: the size is not drawn but mapped, monotonically, so that an image of small objects gets a small size and is resized
  less: quantiles of the source's sizes go to the same quantiles of the target's.
* SM+: each object has its own target size (mapped as in MSM); the image keeps its scale. Objects are taken out, what was
  behind them is inpainted, and they are put back around their centres at the new size.

The rectified histogram (Algorithm 1 of the WACV paper) gives the smallest and the largest few objects one bin each, so that
the bins between are narrow although a few objects are huge.

Deviations: objects of one size share the middle of their quantiles (the code divides by 0 there); images without
objects get the median scale of the others (the code has a constant); SM+ moves boxes, since annotation tables hold no
masks, so that a patch brings some of its surroundings, and inpaints by Telea's method; of its probabilistic structure
inpainting, whose text could not be read in full, what is here is a probability with which an image is treated object by
object, and else by MSM.

Numbers: on TinyPerson, Faster R-CNN-FPN has an AP50_tiny of 47.35, with SM 51.33, with SM+ 51.46 (Ning, 2023, Table 2). They
were not reproduced here: neither TinyPerson nor COCO could be had whole. What was measured: docs/papers/scale_match.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from flyspeck import boxes as bx
from flyspeck.data.annotations import Annotations
from flyspeck.data.enlarge import native_sizes
from flyspeck.data.shrink import scale_annotations
from flyspeck.errors import UserError

Method = Literal["sm", "msm", "sm+"]
METHODS: tuple[str, ...] = ("sm", "msm", "sm+")


@dataclass(frozen=True, kw_only=True)
class SizeMatchRule:
    """How sizes are matched, and what is refused."""

    method: Method = "msm"
    bins: int = 100
    """Of the rectified histogram."""
    tails: float | None = None
    """Share of the objects in the first and the last bin together; None is 2 / bins, as if bins were equally full."""
    max_scale: float = 2.0
    """Images, and objects of SM+, are enlarged by no more."""
    max_side: int = 4096
    """No image gets a longer side, in px."""
    min_side: float = 1.0
    """Objects whose shorter side gets below this, in px, are dropped."""
    probability: float = 1.0
    """SM+: share of the images treated object by object."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"no method '{self.method}'", where="--match", fix=f"choose one of {', '.join(METHODS)}")
        if self.bins < 3 or not 0 <= (self.tails or 0) < 1:
            raise UserError(
                f"{self.bins} bins with tails of {self.tails}", fix="give 3 bins or more, and tails below 1"
            )
        if self.max_scale <= 0 or self.max_side < 1 or not 0 <= self.probability <= 1:
            raise UserError(
                f"max scale {self.max_scale}, max side {self.max_side}, probability {self.probability}",
                fix="give a scale above 0, a side of 1 or more and a probability in [0, 1]",
            )


@dataclass(frozen=True)
class SizeHistogram:
    """Object sizes in px as a histogram whose bins need not be equally wide."""

    edges: np.ndarray
    """(B + 1,) ascending."""
    share: np.ndarray
    """(B,) of the objects; they add up to 1."""

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` sizes: a bin by its share, then anywhere in the bin."""
        number = rng.choice(len(self.share), count, p=self.share)
        return self.edges[number] + rng.random(count) * (self.edges[number + 1] - self.edges[number])

    def mapped(self, sizes: np.ndarray, source: np.ndarray) -> np.ndarray:
        """`sizes` of the population `source` at the same quantiles of this histogram, linear between the quantiles known."""
        values, counts = np.unique(source, return_counts=True)
        rank = (np.cumsum(counts) - counts / 2) / len(source)  # the middle, where several are equally large
        return np.interp(np.interp(sizes, values, rank), np.concatenate([[0.0], np.cumsum(self.share)]), self.edges)


def rectified_histogram(sizes: np.ndarray, *, bins: int = 100, tails: float | None = None) -> SizeHistogram:
    """Histogram of `sizes (N,)` > 0 px: `tails / 2` of them in the first bin and in the last, `bins - 2` equal bins between."""
    ordered = np.sort(np.asarray(sizes, np.float64))
    if len(ordered) == 0:
        raise ValueError("no sizes to make a histogram of")
    tails = 2 / bins if tails is None else tails
    first, last = int(len(ordered) * tails / 2), int(len(ordered) * (1 - tails / 2))
    middle = ordered[first:last] if last > first else ordered
    counts, edges = np.histogram(middle, bins=bins - 2)
    if last > first:
        counts = np.concatenate([[first], counts, [len(ordered) - last]])
        edges = np.concatenate([[min(ordered[0], edges[0])], edges, [max(ordered[-1], edges[-1])]])
    return SizeHistogram(edges, counts / counts.sum())


def object_sizes(annotations: Annotations) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of the boxes to be learnt that have an area, and their sizes (n,) in px."""
    size = bx.size(annotations.boxes)
    rows = np.flatnonzero(~annotations.ignore & (size > 0))
    return rows, size[rows]


def mean_sizes(annotations: Annotations) -> tuple[np.ndarray, np.ndarray]:
    """The geometric mean `(I,)` of the sizes of each image's objects, 1 where it has none; and which have any, `(I,)` bool."""
    rows, sizes = object_sizes(annotations)
    images = annotations.image_index[rows]
    count = np.bincount(images, minlength=len(annotations))
    has, mean = count > 0, np.ones(len(annotations))
    mean[has] = np.exp(np.bincount(images, np.log(sizes), minlength=len(annotations))[has] / count[has])
    return mean, has


@dataclass(frozen=True)
class MatchPlan:
    """What becomes of every image and box of the source."""

    sizes: np.ndarray
    """(I, 2) int64 (height, width) before."""
    new_sizes: np.ndarray
    """(I, 2) int64 (height, width) after."""
    factor: np.ndarray
    """(M,) how much each box grows around its centre beyond its image's scale: 1, but for SM+."""
    capped: int
    """Images (of SM+: objects) that would have been enlarged beyond the limit."""
    wanted: float
    """The largest scale that was asked for."""


def plan_match(source: Annotations, target: Annotations, rule: SizeMatchRule) -> MatchPlan:
    """Scales for every image of `source`, or every object, by the sizes of `target`.

    Raises UserError where one of them has no objects.
    """
    rows, sizes = object_sizes(source)
    _, wanted = object_sizes(target)
    if len(wanted) == 0:
        raise UserError("the target has no boxes to take sizes from", where=target.source, fix="give another --target")
    if len(sizes) == 0:
        raise UserError("the source has no boxes to match", where=source.source, fix="give another source")
    histogram = rectified_histogram(wanted, bins=rule.bins, tails=rule.tails)
    rng = np.random.default_rng(rule.seed)
    native = native_sizes(source)
    images = source.image_index[rows]
    mean, has = mean_sizes(source)

    # SM draws for every image, in order, so that one without objects shifts nobody else's draw.
    goal = histogram.sample(rng, len(source)) if rule.method == "sm" else histogram.mapped(mean, sizes)
    scale = np.where(has, goal / mean, 1.0)
    piecewise = np.zeros(len(source), bool)
    if rule.method == "sm+":
        piecewise = rng.random(len(source)) < rule.probability
        scale[piecewise] = 1.0
    limit = np.minimum(rule.max_scale, rule.max_side / native.max(1))
    limit = np.where(piecewise, np.minimum(1.0, limit), limit)  # an image that is too big is shrunk, objects and all
    over = has & ~piecewise & (scale > limit)
    largest = float(scale[has].max())
    scale = np.minimum(scale, limit)
    if (~has).any() and has.any():
        scale[~has] = np.minimum(np.median(scale[has]), limit[~has])
    new_sizes = np.maximum(1, np.floor(native * scale[:, None] + 0.5)).astype(np.int64)

    factor = np.ones(source.num_boxes)
    capped = int(over.sum())
    own = piecewise[images]
    if own.any():
        each = histogram.mapped(sizes[own], sizes) / (sizes[own] * scale[images[own]])
        capped += int((each > rule.max_scale).sum())
        largest = max(largest, float(each.max()))
        factor[rows[own]] = np.minimum(each, rule.max_scale)
    return MatchPlan(native, new_sizes, factor, capped, largest)


def matched_table(source: Annotations, plan: MatchPlan, *, min_side: float = 1.0) -> Annotations:
    """The table of the matched images: boxes scaled with their image, those of SM+ around their centres too.

    Objects of which a side gets below `min_side` px are left out.
    """
    scaled = scale_annotations(replace(source, sizes=plan.sizes), plan.new_sizes)
    boxes = resized_around_center(scaled.boxes, plan.factor)
    height, width = plan.new_sizes[source.image_index].T
    boxes = np.where((plan.factor != 1)[:, None], _clipped(boxes, height, width), boxes)
    moved = replace(scaled, boxes=boxes, area=scaled.area * plan.factor**2)
    short = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf)
    return moved.select_boxes(source.ignore | (short >= min_side))


def resized_around_center(boxes: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Boxes `(M, 4)` with both sides times `factor (M,)`, the centre kept."""
    center, half = bx.center(boxes), (boxes[:, 2:] - boxes[:, :2]) / 2 * factor[:, None]
    return np.where((factor == 1)[:, None], boxes, np.concatenate([center - half, center + half], 1))


def _clipped(boxes: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    limit = np.stack([width, height, width, height], 1)
    return np.clip(boxes, 0, limit)


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """1-Wasserstein distance of two samples: the area between their distribution functions, in the samples' unit."""
    if len(a) == 0 or len(b) == 0:
        raise ValueError("a distance needs two samples that are not empty")
    a, b = np.sort(a), np.sort(b)
    values = np.sort(np.concatenate([a, b]))
    below = np.searchsorted(a, values[:-1], side="right") / len(a)
    other = np.searchsorted(b, values[:-1], side="right") / len(b)
    return float((np.abs(below - other) * np.diff(values)).sum())


def match_report(
    source: Annotations, target: Annotations, after: Annotations, plan: MatchPlan, rule: SizeMatchRule
) -> dict:
    """What changed, as plain values: sizes before, after and of the target, and their Wasserstein distances to the target's.

    `wasserstein_px` is in px; `wasserstein_log2` of the logarithms to base 2, where 1 is a factor of two.
    """
    _, old = object_sizes(source)
    _, new = object_sizes(after)
    _, goal = object_sizes(target)
    if len(new) == 0:
        raise UserError(
            "no object is left after matching", where=source.source, fix="lower --min-side, or take --match sm+"
        )
    return {
        "method": rule.method,
        "images": len(source),
        "objects": {"before": len(old), "after": len(new), "target": len(goal)},
        "sizes": {"before": _summary(old), "after": _summary(new), "target": _summary(goal)},
        "wasserstein_px": {
            "before": round(wasserstein(old, goal), 4),
            "after": round(wasserstein(new, goal), 4),
        },
        "wasserstein_log2": {
            "before": round(wasserstein(np.log2(old), np.log2(goal)), 4),
            "after": round(wasserstein(np.log2(new), np.log2(goal)), 4),
        },
        "capped": plan.capped,
        "largest_scale_wanted": round(plan.wanted, 3),
        "dropped": len(old) - len(new),
    }


def _summary(sizes: np.ndarray) -> dict[str, Any]:
    quantiles = {f"{q}": round(float(np.percentile(sizes, q)), 2) for q in (5, 25, 50, 75, 95)}
    return {"mean": round(float(sizes.mean()), 3), "sd": round(float(sizes.std()), 3), "percentiles": quantiles}
