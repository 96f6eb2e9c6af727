"""Scale Match on disk: images resized (or their objects, over an inpainted background), padded or tiled, with annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from flyspeck.data.annotations import Annotations
from flyspeck.data.enlarge import resample
from flyspeck.data.image_files import ending_for, in_parallel, output_names, read_true, refuse_own, save_pixels
from flyspeck.data.scale_match import (
    MatchPlan,
    SizeMatchRule,
    match_report,
    matched_table,
    object_sizes,
    plan_match,
    resized_around_center,
)
from flyspeck.data.tiling import tile_annotations
from flyspeck.data.writers import write_coco
from flyspeck.errors import UserError, missing_extra
from flyspeck.files import local_output, own_place, write_json

Corner = tuple[int, int, int, int]
_RADIUS = 3
"""Pixels around a hole that inpainting looks at."""


@dataclass(frozen=True)
class _Job:
    """One image's work."""

    path: Path
    listed: tuple[int, int]
    new_size: tuple[int, int]
    boxes: np.ndarray
    """(k, 4) in the resized image: objects to be resized on their own."""
    factor: np.ndarray
    """(k,)"""
    cuts: tuple[tuple[Corner, Path], ...]
    """Windows of the resized image and the files they go to."""


def scale_match(
    source: Annotations,
    target: Annotations,
    out: Path,
    rule: SizeMatchRule,
    *,
    name: str,
    size: tuple[int, int] | None = None,
    overlap: int = 0,
    image_format: str = "png",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Annotations, dict[str, Any]]:
    """Writes the matched data set: images under `out/images`, annotations as COCO json `out/<name>`; returns its table.

    With `size` (H, W), images that are larger are cut into tiles of that size with `overlap` px in common, smaller ones
    are padded at the bottom and on the right with their mean colour. Also writes `scale_match.json`, the report that is
    returned, and `scale_match.png`, the histograms of the sizes. Images that cannot be read are left out and listed in
    `problems`.
    """
    out = local_output(out)
    if (plan := plan_match(source, target, rule)) and rule.method == "sm+":
        _inpainting()  # a missing package is said before any work
    whole = matched_table(source, plan, min_side=rule.min_side)
    report = match_report(source, target, whole, plan, rule)
    tiles, windows = _windows(whole, size, overlap)
    names = _names(source, windows, image_format)
    jobs = [
        _job(source, plan, row, windows[row], [out / "images" / n for n in names[row]]) for row in range(len(source))
    ]
    refuse_own((job.path for job in jobs), (path for job in jobs for _, path in job.cuts), out)
    faults: dict[int, str] = {}
    for row, fault in enumerate(in_parallel(partial(_write_one, size=size), jobs, workers)):
        if fault:
            faults[row] = fault
        if progress is not None:
            progress(row + 1, len(jobs))
    if len(faults) == len(jobs):
        raise UserError(f"no image could be read; the first: {faults[0]}", where=source.root, fix="give --images")
    owner = np.repeat(np.arange(len(source)), [len(w) for w in windows])
    good = np.flatnonzero(~np.isin(owner, list(faults)))
    written = replace(
        tiles,
        root=out,
        file_names=tuple(f"images/{n}" for row in names for n in row),
        sizes=tiles.sizes if size is None else np.tile(np.array(size, np.int64), (len(tiles), 1)),
    ).select_images(good)
    written = replace(written, problems=(*source.problems, *faults.values()))
    write_coco(written, out / name)
    report |= {"written": {"images": len(written), "boxes": written.num_boxes}, "left_out": len(faults)}
    write_json(out / "scale_match.json", report)
    draw_histograms(
        {
            "source before": object_sizes(source)[1],
            f"source after ({rule.method.upper()})": object_sizes(whole)[1],
            "target": object_sizes(target)[1],
        }
    ).save(own_place(out / "scale_match.png"))
    return written, report


def _windows(whole: Annotations, size: tuple[int, int] | None, overlap: int) -> tuple[Annotations, list[list[Corner]]]:
    """The table to be written, and of each image the windows that are cut from it."""
    if size is None:
        return whole, [[(0, 0, int(w), int(h))] for h, w in whole.sizes]
    if overlap >= min(size):
        raise UserError(f"tiles of {size[0]}x{size[1]} cannot share {overlap} px", where="--overlap", fix="give less")
    tiles = tile_annotations(whole, size=size, overlap=overlap)
    row_of = {key: row for row, key in enumerate(whole.image_ids.tolist())}
    windows: list[list[Corner]] = [[] for _ in range(len(whole))]
    for key, corner in zip(tiles.image_extra["whole"].tolist(), tiles.image_extra["corner"].tolist(), strict=True):
        x1, y1, x2, y2 = (int(value) for value in corner)
        windows[row_of[key]].append((x1, y1, x2, y2))
    image_extra = {k: v for k, v in tiles.image_extra.items() if k not in ("whole", "corner")}
    return replace(tiles, image_extra=image_extra), windows


def _names(source: Annotations, windows: Sequence[list[Corner]], image_format: str) -> list[list[str]]:
    stems = output_names(source.file_names, "")
    endings = [ending_for(source.path(row), image_format) for row in range(len(source))]
    return [
        [f"{stem}.{ending}" if len(own) == 1 else f"{stem}_{x1}_{y1}.{ending}" for x1, y1, _, _ in own]
        for stem, own, ending in zip(stems, windows, endings, strict=True)
    ]


def _job(source: Annotations, plan: MatchPlan, row: int, windows: list[Corner], paths: list[Path]) -> _Job:
    rows = np.arange(source.num_boxes)[source.of_image(row)]
    rows = rows[plan.factor[rows] != 1]
    (height, width), (new_height, new_width) = plan.sizes[row], plan.new_sizes[row]
    ratio = np.array([new_width / width, new_height / height] * 2)
    return _Job(
        source.path(row),
        (int(height), int(width)),
        (int(new_height), int(new_width)),
        source.boxes[rows] * ratio,
        plan.factor[rows],
        tuple(zip(windows, paths, strict=True)),
    )


def _write_one(job: _Job, size: tuple[int, int] | None) -> str:
    """Reads, resizes, cuts and writes one image; returns what was wrong, or nothing."""
    try:
        pixels = read_true(job.path)
    except UserError as error:
        return str(error)
    if pixels.shape[:2] != job.listed:
        got, listed = pixels.shape, job.listed
        return f"{job.path}: is {got[1]}x{got[0]} px, the annotations say {listed[1]}x{listed[0]}"
    pixels = resample(pixels, job.new_size)
    if len(job.boxes):
        pixels = resize_objects(pixels, job.boxes, job.factor)
    for (x1, y1, x2, y2), path in job.cuts:
        cut = pixels[y1:y2, x1:x2]
        save_pixels(cut if size is None else padded(cut, size), path)
    return ""


def padded(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`(h, w, C)` pixels at the top left of `size` (H, W), the rest in their mean colour."""
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    mean = np.round(pixels.reshape(-1, pixels.shape[2]).mean(0)).astype(pixels.dtype)
    out = np.broadcast_to(mean, (*size, pixels.shape[2])).copy()
    out[:height, :width] = pixels
    return out


def resize_objects(pixels: np.ndarray, boxes: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The image `(H, W, C)` uint8 with the content of each of `boxes (k, 4)` resized by `factor (k,)` around its centre.

    What an object that shrinks leaves free is inpainted from its surroundings. The largest are put back first.
    """
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
        raise UserError(
            f"inpainting works on one or three bands of 8 bits, the image has {pixels.shape[2]} of {pixels.dtype}",
            where="sm+",
            fix="use --match msm",
        )
    height, width = pixels.shape[:2]
    frames = [_whole_pixels(box, height, width) for box in boxes]
    patches = [pixels[y1:y2, x1:x2].copy() for x1, y1, x2, y2 in frames]
    hole = np.zeros((height, width), np.uint8)
    for (x1, y1, x2, y2), grows in zip(frames, factor, strict=True):
        if grows < 1:
            hole[y1:y2, x1:x2] = 1
    out = _inpainted(pixels, hole) if hole.any() and not hole.all() else pixels.copy()
    new = resized_around_center(boxes, factor)
    for row in np.argsort(-(new[:, 2] - new[:, 0]) * (new[:, 3] - new[:, 1]), kind="stable"):
        (x1, y1, x2, y2), patch = frames[row], patches[row]
        if patch.size == 0:
            continue
        # Where the object was cut by the border it stays cut: the part that is there keeps its place in the box.
        scale, center = factor[row], (boxes[row, :2] + boxes[row, 2:]) / 2
        left, top, right, bottom = (
            round(center[i % 2] + (value - center[i % 2]) * scale) for i, value in enumerate((x1, y1, x2, y2))
        )
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        resized = resample(patch, (bottom - top, right - left))
        a, b, c, d = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if a < c and b < d:
            out[b:d, a:c] = resized[b - top : d - top, a - left : c - left]
    return out


def _whole_pixels(box: np.ndarray, height: int, width: int) -> Corner:
    """The pixels that a box touches, inside the image."""
    x1, y1 = (max(0, int(np.floor(value))) for value in box[:2])
    x2, y2 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    return min(x1, width), min(y1, height), max(x2, min(x1, width)), max(y2, min(y1, height))


def _inpainting() -> Any:
    try:
        import cv2
    except ImportError:
        raise missing_extra("opencv-python-headless", "inpaint") from None
    return cv2


def _inpainted(pixels: np.ndarray, hole: np.ndarray) -> np.ndarray:
    cv2 = _inpainting()
    found = cv2.inpaint(np.ascontiguousarray(pixels), hole, _RADIUS, cv2.INPAINT_TELEA)
    return found.reshape(pixels.shape)


_COLORS = ((120, 120, 120), (200, 80, 20), (20, 90, 180))
_WIDTHS = (2, 3, 3)


def draw_histograms(sizes: dict[str, np.ndarray], *, bins: int = 48) -> Image.Image:
    """An image of up to three samples of object sizes in px: shares of the objects in bins of the logarithm."""
    everything = np.concatenate(list(sizes.values()))
    low, high = np.floor(np.log2(everything.min())), np.ceil(np.log2(everything.max()) + 1e-9)
    edges = np.linspace(low, max(high, low + 1), bins + 1)
    shares = {name: np.histogram(np.log2(part), edges)[0] / max(1, len(part)) for name, part in sizes.items()}
    most = max(share.max() for share in shares.values())
    width, height, left, top, right, bottom = 900, 460, 70, 30, 20, 60
    image = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    x = lambda value: left + (value - edges[0]) / (edges[-1] - edges[0]) * (width - left - right)  # noqa: E731
    y = lambda share: height - bottom - share / most * (height - top - bottom)  # noqa: E731
    draw.line([(left, y(0)), (width - right, y(0))], fill=(0, 0, 0))
    for power in range(int(edges[0]), int(edges[-1]) + 1):
        draw.line([(x(power), y(0)), (x(power), y(0) + 5)], fill=(0, 0, 0))
        draw.text((x(power), y(0) + 8), f"{2.0**power:g}", fill=(0, 0, 0), anchor="ma")
    for share in np.linspace(0, most, 5)[1:]:
        draw.line([(left, y(share)), (width - right, y(share))], fill=(225, 225, 225))
        draw.text((left - 6, y(share)), f"{share:.1%}", fill=(0, 0, 0), anchor="rm")
    draw.text((width / 2, height - 22), "size of objects, px (logarithmic)", fill=(0, 0, 0), anchor="ma")
    for number, (name, share) in enumerate(shares.items()):
        points = [(x(edges[0]), y(0))]
        for i, value in enumerate(share):
            points += [(x(edges[i]), y(value)), (x(edges[i + 1]), y(value))]
        color = _COLORS[number % 3]
        draw.line([*points, (x(edges[-1]), y(0))], fill=color, width=_WIDTHS[number % 3])
        row = top + 8 + 20 * number
        draw.line([(width - 250, row), (width - 220, row)], fill=color, width=_WIDTHS[number % 3])
        draw.text((width - 212, row), f"{name}: {len(sizes[name])} objects", fill=(0, 0, 0), anchor="lm")
    return image
