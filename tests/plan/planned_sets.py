"""Fingerprints, plans and small sets of images for the tests of planning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.plan.choices import Machine, Speed
from flyspeck.plan.fingerprint import Fingerprint, fingerprint

MACHINE = Machine(cpus=2, memory=16 * 10**9)
SPEEDS = {
    "smallest": Speed(40.0, 10**9, 200.0),
    "small": Speed(20.0, 10**9, 100.0),
    "medium": Speed(10.0, 10**9, 50.0),
    "large": Speed(5.0, 2 * 10**9, 25.0),
    "largest": Speed(1.0, 4 * 10**9, 5.0),
}
"""Each tier half as fast as the one before, the last far slower."""


def write_set(
    path: Path,
    boxes: Sequence[Sequence[Sequence[float]]],
    *,
    size: tuple[int, int] = (64, 96),
    classes: Sequence[str] = ("thing",),
    labels: Sequence[Sequence[int]] | None = None,
    ignored: bool = False,
    colour: bool = False,
    plain: bool = False,
    seed: int = 0,
) -> Path:
    """A COCO json at `path` with images beside it: `boxes` (x, y, width, height) of each are bright on noise of their own.

    `labels` count the classes from 0; `ignored` makes ignore regions of all boxes; `colour` gives each band noise of its own, and
    otherwise three equal bands are stored; `plain` takes the noise of one image for all.
    """
    folder = path.parent / f"{path.stem}_images"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images, entries = [], []
    for number, own in enumerate(boxes):
        if plain:
            rng = np.random.default_rng(seed)
        shape = (*size, 3) if colour else (*size, 1)
        # Coarse noise: images of fine noise alone are alike in being nothing.
        coarse = rng.integers(40, 160, ((size[0] + 7) // 8, (size[1] + 7) // 8, shape[2]))
        pixels = np.kron(coarse, np.ones((8, 8, 1)))[: size[0], : size[1]].astype(np.uint8)
        for place, (x, y, w, h) in enumerate(own):
            pixels[int(y) : int(y + h), int(x) : int(x + w)] = 250
            label = 0 if labels is None else labels[number][place]
            entry = {"id": len(entries) + 1, "image_id": number + 1, "bbox": [x, y, w, h], "area": w * h}
            entries.append(entry | {"category_id": label + 1, "iscrowd": 0, "ignore": int(ignored)})
        name = f"{path.stem}_{chr(97 + number % 26)}{rng.integers(10**9)}.png"
        Image.fromarray(np.repeat(pixels, 4 - shape[2], 2) if not colour else pixels).save(folder / name)
        images.append({"id": number + 1, "file_name": f"{folder.name}/{name}", "width": size[1], "height": size[0]})
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(classes)]
    path.write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    return path


def squares(count: int, *, side: int = 8, seed: int = 0, size: tuple[int, int] = (64, 96)) -> list[list[list[float]]]:
    """Two squares in each of `count` images."""
    rng = np.random.default_rng(seed)
    return [
        [[float(rng.integers(0, size[1] // 2 - side)), float(rng.integers(0, size[0] - side)), side, side],
         [float(rng.integers(size[1] // 2, size[1] - side)), float(rng.integers(0, size[0] - side)), side, side]]
        for _ in range(count)
    ]  # fmt: skip


def a_table(tmp_path: Path, count: int = 4, *, side: int = 8) -> Annotations:
    """A table of images with two squares each."""
    return read_annotations(write_set(tmp_path / "set.json", squares(count, side=side)))


def like(found: Fingerprint, size: float | None = None, **changes: object) -> Fingerprint:
    """A fingerprint with other values; `size` sets all that follows from the objects' sizes, which are then all the same."""
    if size is not None:
        sizes = {str(q): size for q in (5, 25, 50, 75, 95)}
        changes = {"size_quantiles": sizes, "image_medians": (size, size), "long_side": size} | changes
    return replace(found, **changes)  # type: ignore[arg-type]


def base() -> Fingerprint:
    """600 images of 320x256 with three objects of 10 px each, far apart."""
    count = 1800
    corners = np.tile([[20.0, 20], [120, 100], [200, 150]], (600, 1))
    table = Annotations(
        image_ids=np.arange(600),
        file_names=tuple(f"{i}.png" for i in range(600)),
        sizes=np.tile([256, 320], (600, 1)),
        image_index=np.repeat(np.arange(600), 3),
        boxes=np.concatenate([corners, corners + 10], 1),
        labels=np.zeros(count, dtype=np.int64),
        area=np.full(count, 100.0),
        ignore=np.zeros(count, dtype=bool),
        crowd=np.zeros(count, dtype=bool),
        box_ids=np.arange(count),
        classes=("thing",),
        category_ids=(1,),
        source="made up",
    )
    return fingerprint(table)
