"""A detector without a network: blobs that stand out from their surroundings, of the sizes that a training set has.

What is chosen on images of the training set alone, by AP50 without classes: the band, bright or dark, the filter and its sizes,
how a blob becomes a box, and whether answers are divided by the image's mean. Boxes get the classes that objects of their size
have in the training set, each at its share of the score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.data.images import read_image
from flyspeck.errors import UserError
from flyspeck.evaluate.ap import average_precision, mean_of_known, prepare
from flyspeck.evaluate.baselines.filters import KINDS, Kind, extents, mean, peaks, response
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import INFINITE, APProtocol, Bin

MOST = 500
"""Boxes kept of an image at most."""
LARGEST = 64.0
"""Pixels: the largest blob that is looked for."""
_PIXELS, _IMAGES, _WINDOW = 2.5e6, 30, 1024
_OVERLAP = 0.3
_PROTOCOL = APProtocol("choice", "", (Bin("all", 0.0, INFINITE),), (0.5,), (MOST,), every_class=True)


@dataclass(frozen=True)
class BlobSettings:
    """One detector of blobs, all of it."""

    band: int | None
    """A band of the image; None: the mean of all."""
    dark: bool
    """Objects are darker than what surrounds them."""
    kind: Kind
    sizes: tuple[float, ...]
    """Pixels: the square root of an object's area."""
    width: float = 2.0
    """Side of the top-hat's square in sizes."""
    share: float | None = None
    """A box reaches as far as the answer stays above this share of its peak; None: it has the sides usual at its size."""
    grow: float = 1.0
    """What the box's sides are multiplied by."""
    noise: bool = False
    """Scores are answers by the image's mean answer, rather than as they are."""
    most: int = MOST
    """Boxes kept of an image: three times as many as the training set has objects in one, 30 to `MOST`."""

    @property
    def words(self) -> str:
        """The settings in one line."""
        band = "the mean of the bands" if self.band is None else f"band {self.band + 1}"
        what = f"{'dark' if self.dark else 'bright'} blobs, by {self.kind} of {band}"
        sizes = ", ".join(f"{size:.3g}" for size in self.sizes)
        box = "sides usual at that size" if self.share is None else f"extent at {self.share:g} of the peak"
        grown = "" if self.grow == 1 else f" times {self.grow:g}"
        return (
            f"{what} at {sizes} px; boxes: {box}{grown}; scores: {'contrast by its mean' if self.noise else 'contrast'}"
        )


@dataclass(frozen=True)
class _Shapes:
    """What boxes and classes are usual at a size: columns by eighths of an octave."""

    sides: np.ndarray
    """(B, 2) median width and height."""
    classes: np.ndarray
    """(B, K) shares of the classes."""

    @staticmethod
    def of(boxes: np.ndarray, labels: np.ndarray, classes: int) -> _Shapes:
        bins = np.arange(_BINS)
        at = _bin(box_algebra.size(boxes))
        overall = np.bincount(labels, minlength=classes) / len(labels)
        sides, shares = np.zeros((_BINS, 2)), np.zeros((_BINS, classes))
        extent = boxes[:, 2:] - boxes[:, :2]
        form = np.median(extent / np.maximum(box_algebra.size(boxes), 1e-6)[:, None], axis=0)
        for k in bins:
            near = np.abs(at - k) <= 2
            size = 2 ** ((k + 0.5) / 8)
            # A few objects say little of their size's form and classes: the whole set counts like ten of them.
            weight = near.sum() / (near.sum() + 10)
            own = np.median(extent[near] / box_algebra.size(boxes[near])[:, None], axis=0) if near.any() else form
            sides[k] = size * (weight * own + (1 - weight) * form)
            count = np.bincount(labels[near], minlength=classes)
            shares[k] = (count + 10 * overall) / (count.sum() + 10)
        return _Shapes(sides, shares)


_BINS = 80


def _bin(sizes: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(8 * np.log2(np.maximum(sizes, 1))), 0, _BINS - 1).astype(np.int64)


@dataclass(frozen=True)
class BlobDetector:
    """A fitted detector of blobs; `detect` runs it."""

    settings: BlobSettings
    shapes: _Shapes
    half: float
    """The answer that gets a score of 0.5."""
    chosen_on: int
    """Images of the training set."""
    ap50: float
    """Without classes, on those images."""

    def detect(self, annotations: Annotations) -> DetectionTable:
        """Boxes of every image of a table, whose pixels are read; errors as for `read_image`."""
        found = []
        for row in range(len(annotations)):
            boxes, answers = _blobs(read_image(annotations.path(row)), self.settings, self.shapes)
            found.append(self._table(row, boxes, answers))
        return joined(found)

    def _table(self, row: int, boxes: np.ndarray, answers: np.ndarray) -> DetectionTable:
        shares = self.shapes.classes[_bin(box_algebra.size(boxes))]
        place, label = np.nonzero(shares >= _LEAST_SHARE)
        scores = answers[place] / (answers[place] + self.half) * shares[place, label]
        return DetectionTable.from_columns(
            image_index=np.full(len(place), row), boxes=boxes[place], scores=scores, labels=label
        )


_LEAST_SHARE = 0.1


def joined(tables: Sequence[DetectionTable]) -> DetectionTable:
    """Tables one after the other."""
    if not tables:
        return DetectionTable.empty()
    return DetectionTable.from_columns(
        image_index=np.concatenate([table.image_index for table in tables]),
        boxes=np.concatenate([table.boxes for table in tables]),
        scores=np.concatenate([table.scores for table in tables]),
        labels=np.concatenate([table.labels for table in tables]),
    )


def fit_blobs(train: Annotations, *, seed: int = 0) -> BlobDetector:
    """Choose a detector of blobs on at most 30 images, or 2.5 megapixels, of the training set.

    Of larger images, windows of 1024 px about an object are taken. Raises UserError for a table without objects.
    """
    objects = ~train.ignore & ~train.crowd & (train.labels >= 0)
    real = objects & (box_algebra.size(train.boxes) >= 1)
    if not real.any():
        raise UserError("the training set has no objects", where=train.source, fix="give annotations with objects")
    shapes = _Shapes.of(train.boxes[real], train.labels[real], len(train.classes))
    samples = list(_samples(train, np.flatnonzero(real), seed))
    truth = _truth(samples)
    sizes = np.minimum(box_algebra.size(train.boxes[real]), LARGEST)
    trio = tuple(dict.fromkeys(float(size) for size in np.quantile(sizes, (0.15, 0.5, 0.85)).round(1)))
    bands = [None, *range(samples[0][0].shape[2])] if _coloured(samples) else [None]

    def best(options: Iterable[BlobSettings]) -> tuple[float, BlobSettings]:
        return max(((_ap(options_, samples, truth, shapes), options_) for options_ in options), key=lambda o: o[0])

    most = int(np.clip(3 * np.bincount(train.image_index[real]).max(), 30, MOST))
    value, chosen = best(
        BlobSettings(band, dark, kind, trio, most=most) for band in bands for dark in (False, True) for kind in KINDS
    )
    middle = (float(np.median(sizes)),)
    wider = (*trio, float(np.quantile(sizes, 0.97).round(1)))
    value, chosen = best(
        replace(chosen, sizes=choice, width=width)
        for choice in (trio, middle, wider)
        for width in ((1.5, 2.0, 3.0) if chosen.kind == "top-hat" else (2.0,))
    )
    value, chosen = best(replace(chosen, share=share, noise=noise) for share in _SHARES for noise in (False, True))
    value, chosen = best(replace(chosen, grow=grow) for grow in (1.0, 0.85, 1.2, 1.45))
    answers = [_blobs(pixels, chosen, shapes)[1] for pixels, _, _ in samples]
    strong = np.concatenate([np.sort(a)[::-1][: max(1, len(b))] for a, (_, b, _) in zip(answers, samples, strict=True)])
    return BlobDetector(chosen, shapes, float(np.median(strong)) if len(strong) else 1.0, len(samples), value)


_SHARES = (None, 0.3, 0.5, 0.7)
_Sample = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Pixels, objects' boxes, ignored boxes."""


def _samples(train: Annotations, real: np.ndarray, seed: int) -> Iterator[_Sample]:
    """Images of the training set that have objects, spread at random; windows of the large ones."""
    rng = np.random.default_rng(seed)
    left = _PIXELS
    for row in rng.permutation(np.unique(train.image_index[real]))[:_IMAGES].tolist():
        pixels = read_image(train.path(row))
        rows = train.of_image(row)
        counted = np.isin(np.arange(rows.start, rows.stop), real)
        boxes = train.boxes[rows]
        corner = np.zeros(2, np.int64)
        if max(pixels.shape[:2]) > _WINDOW:
            centre = box_algebra.center(boxes[counted])[rng.integers(counted.sum())].astype(np.int64)
            most = np.maximum(np.array([pixels.shape[1], pixels.shape[0]]) - _WINDOW, 0)
            corner = np.clip(centre - _WINDOW // 2, 0, most)
            pixels = pixels[corner[1] : corner[1] + _WINDOW, corner[0] : corner[0] + _WINDOW]
        boxes = boxes - np.tile(corner, 2)
        clipped = box_algebra.clip(boxes, *pixels.shape[:2])
        whole = box_algebra.area(clipped) >= 0.5 * box_algebra.area(boxes)
        seen = box_algebra.area(clipped) > 0
        yield pixels, boxes[counted & whole], clipped[seen & ~(counted & whole)]
        left -= pixels.shape[0] * pixels.shape[1]
        if left <= 0:
            break


def _coloured(samples: Sequence[_Sample]) -> bool:
    """Whether all images have the same bands, which differ from each other."""
    bands = {pixels.shape[2] for pixels, _, _ in samples}
    return len(bands) == 1 and bands != {1} and any((p != p[:, :, :1]).any() for p, _, _ in samples)


def _truth(samples: Sequence[_Sample]) -> Annotations:
    """The samples' boxes as a table of one class."""
    boxes = [np.concatenate([objects, ignored]) for _, objects, ignored in samples]
    flags = np.concatenate([np.r_[np.zeros(len(o), bool), np.ones(len(i), bool)] for _, o, i in samples])
    every = np.concatenate(boxes)
    count = len(every)
    return Annotations(
        image_ids=np.arange(len(samples)),
        file_names=tuple(str(k) for k in range(len(samples))),
        sizes=np.array([pixels.shape[:2] for pixels, _, _ in samples]),
        image_index=np.repeat(np.arange(len(samples)), [len(b) for b in boxes]),
        boxes=every,
        labels=np.zeros(count, np.int64),
        area=box_algebra.area(every),
        ignore=flags,
        crowd=flags,
        box_ids=np.arange(1, count + 1),
        classes=("object",),
        category_ids=(1,),
    )


def _ap(settings: BlobSettings, samples: Sequence[_Sample], truth: Annotations, shapes: _Shapes) -> float:
    """AP50 without classes of settings on samples."""
    found = []
    for row, (pixels, _, _) in enumerate(samples):
        boxes, answers = _blobs(pixels, settings, shapes)
        found.append(
            DetectionTable.from_columns(
                image_index=np.full(len(boxes), row), boxes=boxes, scores=answers, labels=np.zeros(len(boxes))
            )
        )
    arrays = average_precision(prepare(truth, joined(found), _PROTOCOL), _PROTOCOL)
    return mean_of_known(arrays.average[0, :, 0])


def _blobs(pixels: np.ndarray, settings: BlobSettings, shapes: _Shapes) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `(N, 4)` and answers `(N,)` of an image `(H, W, C)`, by falling answer; large images go in windows."""
    height, width = pixels.shape[:2]
    margin = int(4 * max(settings.sizes)) + 8
    boxes, answers, noises = [], [], []
    for top in range(0, height, _WINDOW):
        for left in range(0, width, _WINDOW):
            y0, x0 = max(0, top - margin), max(0, left - margin)
            grey = _grey(pixels[y0 : top + _WINDOW + margin, x0 : left + _WINDOW + margin], settings)
            for own, answer, noise in _of_window(grey, settings, shapes):
                own = own + np.array([x0, y0, x0, y0])
                centre = box_algebra.center(own)
                mine = (centre[:, 0] >= left) & (centre[:, 0] < left + _WINDOW)
                mine &= (centre[:, 1] >= top) & (centre[:, 1] < top + _WINDOW)
                boxes.append(own[mine])
                answers.append(answer[mine])
                noises.append(noise)
    every, answer = box_algebra.clip(np.concatenate(boxes), height, width), np.concatenate(answers)
    if settings.noise:
        answer = answer / (np.mean(noises) + 1e-6)
    order = np.argsort(-answer, kind="stable")
    order = order[box_algebra.area(every[order]) > 0]
    order = order[: 2 * settings.most]
    kept = _suppressed(every[order])[: settings.most]
    return every[order][kept], answer[order][kept]


def _grey(pixels: np.ndarray, settings: BlobSettings) -> np.ndarray:
    band = settings.band if settings.band is not None and settings.band < pixels.shape[2] else None
    grey = pixels.mean(2, dtype=np.float32) if band is None else pixels[:, :, band].astype(np.float32)
    grey = np.nan_to_num(grey, nan=0.0, posinf=0.0, neginf=0.0)
    return -grey if settings.dark else grey


def _of_window(
    grey: np.ndarray, settings: BlobSettings, shapes: _Shapes
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Of every size: boxes, answers, and the window's mean answer."""
    for size in settings.sizes:
        answer = response(grey, settings.kind, size, settings.width)
        if size >= 5 and settings.kind == "top-hat":
            answer = mean(answer, 3)  # a single pixel of noise is no blob, and plateaus become peaks
        y, x = peaks(answer, max(3, round(0.6 * size) | 1), settings.most)
        strength = answer[y, x].astype(np.float64)
        if settings.share is None:
            side = shapes.sides[_bin(np.array([size]))[0]] * settings.grow / 2
            middle = np.stack([x, y], 1) + 0.5
            boxes = np.concatenate([middle - side, middle + side], 1)
        else:
            boxes = extents(answer, y, x, settings.share, max(2, round(1.5 * size)))
            middle, side = box_algebra.center(boxes), (boxes[:, 2:] - boxes[:, :2]) * settings.grow / 2
            boxes = np.concatenate([middle - side, middle + side], 1)
        yield boxes, strength, float(answer.mean())


def _suppressed(boxes: np.ndarray) -> np.ndarray:
    """Rows of boxes, best first, that no better one overlaps."""
    alive, kept = np.ones(len(boxes), bool), []
    for row in range(len(boxes)):
        if alive[row]:
            kept.append(row)
            alive &= box_algebra.iou(boxes[row][None], boxes)[0] <= _OVERLAP
    return np.array(kept, np.int64)
