"""Tiles on disk: the images cut, with their annotations as the benchmarks write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.image_files import ending_for, in_parallel, output_names, read_true, refuse_own, save_pixels
from flyspeck.data.writers import relative_names, write_coco
from flyspeck.errors import UserError

Corner = tuple[int, int, int, int]


def write_corners(whole: Annotations, tiles: Annotations, path: Path) -> None:
    """Write `tiles` (of `tile_annotations`) as the benchmark's corner file: whole images' names, `corner`, `old_images`."""
    folder = Path(path).parent
    write_coco(tiles, Path(path), file_names=relative_names(tiles, folder), old_images=_old_images(whole, folder))


def write_tiles(
    whole: Annotations,
    tiles: Annotations,
    out: Path,
    *,
    name: str,
    image_format: str = "png",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Annotations:
    """Cut the images and write the tiles under `out/images` and their annotations as `out/<name>`; returns that table.

    `tiles` comes from `tile_annotations(whole, ...)`. The json has one image per tile, with `corner` (x1, y1, x2, y2) and
    `whole`, the id of the image in `old_images` that it was cut from. Tiles of an image that cannot be read, or is not of
    the size that the annotations say, are left out and listed in `problems`.
    """
    row_of = {key: row for row, key in enumerate(whole.image_ids.tolist())}
    source = np.array([row_of[key] for key in tiles.image_extra["whole"].tolist()], dtype=np.int64)
    stems = output_names(whole.file_names, "")
    corners = [tuple(map(int, corner)) for corner in tiles.image_extra["corner"]]
    endings = [ending_for(whole.path(row), image_format) for row in range(len(whole))]
    names = [f"{stems[row]}_{x1}_{y1}.{endings[row]}" for row, (x1, y1, _, _) in zip(source, corners, strict=True)]
    jobs = []
    for row in range(len(whole)):
        first, last = np.searchsorted(source, [row, row + 1])  # tiles come image by image
        height, width = whole.sizes[row].tolist()
        jobs.append((whole.path(row), (height, width), [(corners[t], names[t]) for t in range(first, last)]))
    refuse_own((job[0] for job in jobs), (Path(out) / "images" / name for name in names), out)
    faults: dict[int, str] = {}
    for row, fault in enumerate(in_parallel(partial(_cut_one, folder=Path(out) / "images"), jobs, workers)):
        if fault:
            faults[row] = fault
        if progress is not None:
            progress(row + 1, len(jobs))
    if jobs and len(faults) == len(jobs):
        raise UserError(f"no image could be cut; the first: {faults[0]}", where=whole.root, fix="give --images")
    good = np.flatnonzero(~np.isin(source, list(faults)))
    written = replace(
        tiles.select_images(good),
        root=Path(out),
        file_names=tuple(f"images/{names[t]}" for t in good),
        problems=(*tiles.problems, *faults.values()),
    )
    write_coco(written, Path(out) / name, old_images=_old_images(whole, Path(out)))
    return written


def _old_images(whole: Annotations, folder: Path) -> list[dict[str, Any]]:
    rows = zip(whole.image_ids.tolist(), relative_names(whole, folder), whole.sizes.tolist(), strict=True)
    return [{"id": key, "file_name": name, "width": width, "height": height} for key, name, (height, width) in rows]


def _cut_one(job: tuple[Path, tuple[int, int], list[tuple[Corner, str]]], folder: Path) -> str:
    """Cut one image; returns what was wrong, or nothing."""
    source, (height, width), tiles = job
    try:
        pixels = read_true(source)
    except UserError as error:
        return str(error)
    if pixels.shape[:2] != (height, width):
        return f"{source}: is {pixels.shape[1]}x{pixels.shape[0]} px, the annotations say {width}x{height}"
    for (x1, y1, x2, y2), name in tiles:
        save_pixels(np.ascontiguousarray(pixels[y1:y2, x1:x2]), folder / name)
    return ""
