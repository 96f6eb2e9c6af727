"""What a data set is like, in the numbers that decide how a detector for it is trained. NumPy only, no torch.

`fingerprint` takes them from the table alone, in a moment; `with_pixels` adds what some of the images show, and `with_groups`
what ties images to each other. Sizes are sqrt(width * height) in pixels of the files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from flyspeck import boxes as bx
from flyspeck.data.annotations import Annotations
from flyspeck.data.band_choice import Survey, choose_rule
from flyspeck.data.ground import GroundResolution, measured_ground
from flyspeck.data.headers import ImageHeader, read_header
from flyspeck.data.images import read_image
from flyspeck.data.implications import fit_anchors
from flyspeck.data.inspect import size_histogram
from flyspeck.errors import UserError, counted
from flyspeck.one_object import is_one

LOOKED_AT = 24
"""Images that are decoded for what they show and how long that takes."""
MOST_SECONDS = 3.0
"""Of decoding: what is left of the images is not looked at then."""
NEIGHBOURS_OF = 400
"""Images whose objects are asked for their nearest neighbour."""
MOST_NEIGHBOURS = 2000
"""Objects of an image that are compared with each other."""
GREY_LEVELS = 4
"""Largest difference of two bands of a grey image that was stored as colour (JPEG rounds)."""
ENOUGH_PIXELS = 1_000_000
"""Of an image, about so many are looked at for whether it is grey."""
NEAR_EDGE = 1.0
"""A box ends at the border where it is no further from it, px."""


@dataclass(frozen=True)
class Fingerprint:
    """What a training set is like; the sizes of objects and images are in pixels of the files."""

    source: str
    images: int
    objects: int
    """Boxes to learn."""
    ignore_regions: int
    ignore_share: float
    """Of all boxes."""
    images_without_objects: int
    sizes: dict[str, int]
    """Objects by bin of their size, as `inspect` counts them."""
    size_quantiles: dict[str, float]
    """Of the sizes: 5, 25, 50, 75, 95 %."""
    image_medians: tuple[float, float]
    """10 and 90 % of the images' own median sizes: how much the scale differs from image to image."""
    long_side: float
    """99 % of the objects' longer sides."""
    tiny_share: float
    """Of the objects, those of 2 to 20 px."""
    most_objects: int
    """Boxes of the fullest image."""
    per_megapixel: float
    """Objects a megapixel of image."""
    image_size: tuple[int, int]
    """Median (height, width)."""
    largest_image: tuple[int, int]
    """(height, width) of the one with most pixels."""
    megapixels: float
    """Of all images together."""
    classes: dict[str, int]
    """Objects of each class."""
    imbalance: float
    """Objects of the most frequent class over those of the rarest that has any."""
    neighbour_quantiles: tuple[float, float]
    """5 and 50 % of the distance to the nearest object's centre, in sizes of the object; infinite where each is alone."""
    crowded_share: float
    """Of the objects, those that `tiny` suppression (`flyspeck.one_object`) would take for a neighbour of their class."""
    ratios: tuple[float, ...]
    """Heights over widths that anchors should have, as `data.implications.fit_anchors` takes them from the objects."""
    edge_share: float
    """Of the objects, those that end at the image's border."""
    problems: int
    """Broken entries that the reader left out."""
    ground: GroundResolution | None = None
    """Metres a pixel, where the images say it."""
    bands: int = 3
    """That a training reads of each image, as stored."""
    bits: int = 8
    grey_as_colour: bool = False
    """Three bands are stored, and all images looked at have the same in each."""
    decode_seconds: float = 0.0
    """For a megapixel, of the images looked at; 0 where none was."""
    grouped: bool = False
    """Whether images were tied into groups; of the rest of the fields only then."""
    compared: bool = False
    """Whether pixels were compared, not names alone."""
    groups: int = 0
    """Groups of images that belong together: equal, nearly equal, tiles of one, neighbouring frames."""
    largest_group: int = 0
    duplicates: int = 0
    """Images that are there in other files too, by bytes or pixels."""
    notes: tuple[str, ...] = field(default=())
    """What a training says of bands and values."""

    def quantile(self, percent: int) -> float:
        """Size below which so many percent of the objects are: 5, 25, 50, 75 or 95."""
        return self.size_quantiles[str(percent)]

    @property
    def channels(self) -> int:
        """Bands that differ."""
        return 1 if self.grey_as_colour else self.bands

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def of(content: Mapping[str, Any]) -> Fingerprint:
        """What `to_dict` gave, also after it was JSON: infinite distances are null there."""
        near = tuple(math.inf if value is None else value for value in content["neighbour_quantiles"])
        ground = content["ground"] and GroundResolution(**content["ground"])
        pairs = {
            key: tuple(content[key]) for key in ("image_medians", "image_size", "largest_image", "ratios", "notes")
        }
        return Fingerprint(**{**content, **pairs, "neighbour_quantiles": near, "ground": ground})


def fingerprint(table: Annotations) -> Fingerprint:
    """What the table alone says; raises UserError where there is nothing to learn.

    Image sizes that the annotations do not state are read from the headers.
    """
    objects = _learnt(table)
    boxes = table.boxes[objects]
    sizes = bx.size(boxes)
    image_sizes = _image_sizes(table)
    pixels = image_sizes.prod(1)
    medians = _medians(table, objects, sizes)
    counts = np.bincount(table.labels[objects], minlength=len(table.classes))
    per_image = np.bincount(table.image_index[objects], minlength=len(table))
    near = neighbour_distances(table.select_boxes(objects))
    ends = _at_edge(boxes, image_sizes[table.image_index[objects]])
    megapixels = float(pixels.sum()) / 1e6
    return Fingerprint(
        source=table.source,
        images=len(table),
        objects=len(boxes),
        ignore_regions=int(table.ignore.sum()),
        ignore_share=float(table.ignore.mean()),
        images_without_objects=int((per_image == 0).sum()),
        sizes=size_histogram(boxes),
        size_quantiles={str(q): float(np.percentile(sizes, q)) for q in (5, 25, 50, 75, 95)},
        image_medians=(float(np.percentile(medians, 10)), float(np.percentile(medians, 90))),
        long_side=float(np.quantile((boxes[:, 2:] - boxes[:, :2]).max(1), 0.99)),
        tiny_share=float(((sizes >= 2) & (sizes <= 20)).mean()),
        most_objects=int(np.bincount(table.image_index, minlength=1).max()),
        per_megapixel=len(boxes) / max(megapixels, 1e-9),
        image_size=(int(np.median(image_sizes[:, 0])), int(np.median(image_sizes[:, 1]))),
        largest_image=(int(image_sizes[pixels.argmax(), 0]), int(image_sizes[pixels.argmax(), 1])),
        megapixels=megapixels,
        classes=dict(zip(table.classes, counts.tolist(), strict=True)),
        imbalance=float(counts.max() / counts[counts > 0].min()),
        neighbour_quantiles=(float(_low(near, 0.05)), float(_low(near, 0.5))),
        crowded_share=crowding(table.select_boxes(objects)),
        ratios=fit_anchors(boxes, 1.0)[1],
        edge_share=float(ends.mean()),
        problems=len(table.problems),
        ground=measured_ground(table),
    )


def _learnt(table: Annotations) -> np.ndarray:
    """`(M,)` bool: boxes to learn. Raises UserError where there is none."""
    if not len(table):
        raise UserError("no images", where=table.source, fix="give annotations of some")
    objects = ~table.ignore & (table.labels >= 0) & (bx.area(table.boxes) > 0)
    if objects.any():
        return objects
    regions = int(table.ignore.sum())
    what = f"no object to learn: {counted(regions, 'ignore region')} only" if regions else "no object to learn"
    raise UserError(what, where=table.source, fix="annotate some objects, or see what is there: flyspeck data inspect")


def _image_sizes(table: Annotations) -> np.ndarray:
    """`(I, 2)` (height, width) of each image; from its header where the annotations do not say."""
    sizes = table.sizes.copy()
    for row in np.flatnonzero((sizes <= 0).any(1)).tolist():
        try:
            sizes[row] = read_header(table.path(row)).size
        except (OSError, UserError):  # training counts and lists what cannot be read
            continue
    known = sizes[(sizes > 0).all(1)]
    if not len(known):
        raise UserError(
            "no image can be opened", where=table.source, fix=f"is {table.path(0)} where it should be? see --images"
        )
    sizes[(sizes <= 0).any(1)] = np.median(known, axis=0).astype(np.int64)
    return sizes


def _medians(table: Annotations, objects: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Median size of the objects of each image that has some."""
    of = table.image_index[objects]
    cuts = np.flatnonzero(np.diff(of)) + 1
    return np.array([np.median(part) for part in np.split(sizes, cuts)])


def neighbour_distances(table: Annotations) -> np.ndarray:
    """`(N,)` distance of each box's centre to the nearest other centre in its image, in sizes of the box; infinite where alone.

    Of at most `NEIGHBOURS_OF` images, evenly spread, and the first `MOST_NEIGHBOURS` boxes of each.
    """
    rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), NEIGHBOURS_OF)).round().astype(np.int64))
    found = []
    for row in rows.tolist():
        boxes = table.boxes[table.of_image(row)][:MOST_NEIGHBOURS]
        centres, nearest = bx.center(boxes), np.full(len(boxes), np.inf)
        for start in range(0, len(boxes), 256):  # a block at a time: memory stays small
            block = centres[start : start + 256]
            squares = ((block[:, None] - centres[None]) ** 2).sum(2)
            squares[np.arange(len(block)), start + np.arange(len(block))] = np.inf
            nearest[start : start + 256] = squares.min(1, initial=np.inf) ** 0.5
        found.append(nearest / np.maximum(bx.size(boxes), 1e-6))
    distances = np.concatenate(found) if found else np.zeros(0)
    return distances if len(distances) else np.full(1, np.inf)


def crowding(table: Annotations) -> float:
    """Share of the boxes that would be taken for one with another of their class in their image, if both were detections.

    Of the same images and boxes as `neighbour_distances`.
    """
    rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), NEIGHBOURS_OF)).round().astype(np.int64))
    one = count = 0
    for row in rows.tolist():
        here = table.of_image(row)
        boxes, labels = table.boxes[here][:MOST_NEIGHBOURS], table.labels[here][:MOST_NEIGHBOURS]
        area, numbers = bx.area(boxes), np.arange(len(boxes))
        for start in range(0, len(boxes), 256):
            block = slice(start, start + 256)
            low = np.maximum(boxes[block, None, :2], boxes[None, :, :2])
            high = np.minimum(boxes[block, None, 2:], boxes[None, :, 2:])
            shared = (high - low).clip(0).prod(2)
            twin = is_one(shared, area[block, None], area[None])
            twin &= (labels[block, None] == labels[None]) & (numbers[block, None] != numbers[None])
            one += int(twin.any(1).sum())
        count += len(boxes)
    return one / max(1, count)


def _low(values: np.ndarray, share: float) -> float:
    """A quantile without interpolation: some values are infinite."""
    return float(np.quantile(values, share, method="lower"))


def _at_edge(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`(N,)` bool: boxes that end at a border of their image."""
    low, high = boxes[:, :2] <= NEAR_EDGE, boxes[:, 2:] >= sizes[:, ::-1] - NEAR_EDGE
    return np.concatenate([low, high], axis=1).max(axis=1, initial=False)


def with_pixels(found: Fingerprint, table: Annotations) -> Fingerprint:
    """The same with what some images show: bands that differ, bits, and how long decoding takes.

    Raises UserError where a training would refuse the images' bands, or none of those looked at can be read.
    """
    rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), LOOKED_AT)).round().astype(np.int64))
    headers: dict[str, ImageHeader] = {}
    seconds, pixels, bits = 0.0, 0, 8
    grey, problem = [], None
    for row in rows.tolist():
        if seconds > MOST_SECONDS and pixels:
            break
        path = table.path(row)
        begun = time.perf_counter()
        try:
            headers[str(path)] = read_header(path)
            image = read_image(path)
        except (OSError, UserError) as error:
            problem = problem or error
            continue
        seconds += time.perf_counter() - begun
        pixels += image.shape[0] * image.shape[1]
        bits = max(bits, 8 * image.dtype.itemsize)
        grey.append(is_grey(image))
    if not headers or not pixels:
        raise problem if isinstance(problem, UserError) else UserError("no image can be read", where=table.source)
    said: list[str] = []
    rule = choose_rule(Survey(table.source, headers), say=said.append)
    bands = rule.channels or next(iter(headers.values())).bands
    return replace(
        found,
        bands=bands,
        bits=bits,
        grey_as_colour=bands == 3 and all(grey),
        decode_seconds=seconds / (pixels / 1e6),
        notes=tuple(line.removeprefix(f"{table.source}: ") for line in said),
    )


def is_grey(image: np.ndarray) -> bool:
    """Whether an image (H, W, C) has the same in every band, as far as a JPEG keeps that."""
    if image.shape[2] != 3:
        return image.shape[2] == 1
    some = image[
        :: max(1, image.shape[0] * image.shape[1] // ENOUGH_PIXELS)
    ]  # whole rows: a large image is not gone over
    first, second, third = (some[:, :, band] for band in range(3))
    scale = 1 if image.dtype == np.uint8 else 257
    high = np.maximum(np.maximum(first, second), third)
    spread = high - np.minimum(np.minimum(first, second), third)
    return bool((spread <= GREY_LEVELS * scale).mean() >= 0.999)
