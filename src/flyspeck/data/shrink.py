"""Shrink a data set: TinyCOCO (shorter side 100 px), Tiny CityPersons and Tiny HIT-UAV are made like this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.ground import KEY as GROUND
from flyspeck.data.image_files import (
    ending_for,
    in_parallel,
    output_names,
    read_true,
    refuse_own,
    save_pixels,
    shrink_pixels,
)
from flyspeck.data.writers import write_coco
from flyspeck.errors import UserError


def small_sizes(
    sizes: np.ndarray,
    *,
    factor: float | None = None,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """New sizes `(I, 2)` for images of `sizes` (I, 2), (height, width): by `factor`, to a shorter side of `short_side` px, or
    all of one `size`, whatever that does to their proportions (SSD's way; a smaller image is enlarged).

    Rounded to whole pixels, at least 1; an image whose shorter side is no longer than `short_side` stays as it is.
    """
    if sum(option is not None for option in (factor, short_side, size)) != 1:
        raise UserError("give one of factor, short side and size", fix="--by 2, --short-side 100 or --size 300x300")
    if size is not None:
        if min(size) < 1:
            raise UserError(f"a size of {size[0]}x{size[1]}", fix="give a height and a width of 1 or more")
        return np.tile(np.array(size, np.int64), (len(sizes), 1))
    if factor is not None:
        if not 1 <= factor < np.inf:
            raise UserError(f"a factor of {factor} does not shrink", fix="give a factor of 1 or more")
        scale = np.full(len(sizes), 1 / factor)
    else:
        if short_side is None or short_side < 1:
            raise UserError(f"a short side of {short_side} px", fix="give 1 or more")
        scale = np.minimum(1.0, short_side / sizes.min(1, initial=10**9))
    return np.maximum(1, np.floor(sizes * scale[:, None] + 0.5)).astype(np.int64)


def scale_annotations(annotations: Annotations, new_sizes: np.ndarray) -> Annotations:
    """The table for images of `new_sizes` (I, 2): boxes and every other column in pixels scaled, ids and flags kept.

    The two axes are scaled by the true ratio of the sizes, so that a box covers the same part of its image. The place of a tile
    in its whole image (`corner`, `whole`) is left out: it would not be whole pixels.
    """
    ratio = (new_sizes / annotations.sizes)[annotations.image_index]  # (M, 2) y, x
    sy, sx = ratio[:, 0], ratio[:, 1]
    extra = dict(annotations.extra)
    for name, scale in (("size", np.sqrt(sx * sy)), ("height", sy)):
        if name in extra:
            extra[name] = extra[name] * scale
    for name in ("vis_bbox", "polygon"):
        if name in extra:
            extra[name] = extra[name] * np.tile(np.stack([sx, sy], 1), (1, extra[name].shape[1] // 2))
    extra.pop("xywh", None)
    return replace(
        annotations,
        sizes=new_sizes,
        boxes=annotations.boxes * np.stack([sx, sy, sx, sy], 1),
        area=annotations.area * sx * sy,
        extra=extra,
        image_extra=_image_extra(annotations, new_sizes),
    )


def _image_extra(annotations: Annotations, new_sizes: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of images that a change of size leaves true; a pixel covers more ground in a smaller image."""
    kept = {k: v for k, v in annotations.image_extra.items() if k not in ("corner", "whole")}
    if GROUND in kept:
        kept[GROUND] = kept[GROUND] / np.sqrt(np.prod(new_sizes / annotations.sizes, axis=1))
    return kept


def shrink(
    annotations: Annotations,
    out: Path,
    *,
    name: str,
    factor: float | None = None,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
    image_format: str = "png",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Annotations:
    """Write the data set smaller: images under `out/images`, annotations as COCO json `out/<name>`; returns its table.

    Sizes are those of `small_sizes`, pixels those of `shrink_pixels`, files lossless (`image_format` png or webp); an image of
    one channel keeps one. An image that cannot be read, or is not of the size that the annotations say, is left out with
    its boxes and listed in `problems` of the table returned. `progress(done, total)` is called after each image.
    """
    stems = output_names(annotations.file_names, "")
    names = [f"{stem}.{ending_for(annotations.path(row), image_format)}" for row, stem in enumerate(stems)]
    jobs = [
        (annotations.path(row), Path(out) / "images" / names[row], (int(height), int(width)))
        for row, (height, width) in enumerate(annotations.sizes)
    ]
    refuse_own((job[0] for job in jobs), (job[1] for job in jobs), out)
    rule = partial(small_sizes, factor=factor, short_side=short_side, size=size)
    rule(np.ones((0, 2), dtype=np.int64))  # a wrong option fails before any work
    true_sizes, faults = annotations.sizes.copy(), {}
    for row, result in enumerate(in_parallel(partial(_shrink_one, rule=rule), jobs, workers)):
        if isinstance(result, str):
            faults[row] = result
        else:
            true_sizes[row] = result
        if progress is not None:
            progress(row + 1, len(jobs))
    good = np.array([row for row in range(len(annotations)) if row not in faults], dtype=np.int64)
    if len(annotations) and not len(good):
        raise UserError(f"no image could be read; the first: {faults[0]}", where=annotations.root, fix="give --images")
    read = replace(annotations, sizes=true_sizes).select_images(good)
    small = scale_annotations(read, rule(read.sizes))
    small = replace(
        small,
        root=Path(out),
        file_names=tuple(f"images/{names[row]}" for row in good),
        problems=(*annotations.problems, *faults.values()),
    )
    write_coco(small, Path(out) / name)
    return small


def _shrink_one(
    job: tuple[Path, Path, tuple[int, int]], rule: Callable[[np.ndarray], np.ndarray]
) -> tuple[int, int] | str:
    """Shrink one file; returns its (height, width) before, or what was wrong."""
    source, target, listed = job
    try:
        pixels = read_true(source)
    except UserError as error:
        return str(error)
    size = pixels.shape[:2]
    if listed[0] > 0 and listed != size:
        return f"{source}: is {size[1]}x{size[0]} px, the annotations say {listed[1]}x{listed[0]}"
    new = rule(np.array([size]))[0]
    save_pixels(shrink_pixels(pixels, (int(new[0]), int(new[1]))), target)
    return size
