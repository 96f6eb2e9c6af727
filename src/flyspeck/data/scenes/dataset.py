"""Scenes as a data set: an annotation table without images, and COCO json with images on request."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.data.image_files import pool_deaths_told
from flyspeck.data.scenes import CLASSES, generate_scene, plan, scene_seed
from flyspeck.data.writers import write_coco
from flyspeck.errors import UserError
from flyspeck.files import local_output, replace_file

IMAGE_FOLDER = "images"
ANNOTATION_FILE = "annotations.json"


def scene_name(seed: int, index: int) -> str:
    """File name of image `index` of the data set with `seed`."""
    return f"{IMAGE_FOLDER}/scene-{seed}-{index:06d}.png"


def scenes_annotations(
    num_images: int,
    seed: int,
    *,
    height: int = 512,
    width: int = 640,
    kind: str | None = None,
    density: float = 1.0,
) -> Annotations:
    """The boxes of `num_images` scenes; nothing is painted, so it takes milliseconds an image.

    Image `i` is `generate_scene(scene_seed(seed, i), ...)`, whatever `num_images` is; image ids are 1..num_images and
    category ids 1..3. Crowds and blurred patches are ignore regions of every class (label -1).
    """
    if num_images < 1:
        raise UserError(f"{num_images} images asked for", fix="ask for at least 1")
    asked: dict[str, Any] = {"height": height, "width": width, "kind": kind, "density": density}
    plans = [plan(scene_seed(seed, i), **asked)[0] for i in range(num_images)]
    counts = [len(p.boxes) for p in plans]
    boxes = np.concatenate([p.boxes for p in plans])
    ignore = np.concatenate([p.ignore for p in plans])
    return Annotations(
        image_ids=np.arange(1, num_images + 1),
        file_names=tuple(scene_name(seed, i) for i in range(num_images)),
        sizes=np.tile(np.array([[height, width]], np.int64), (num_images, 1)),
        image_index=np.repeat(np.arange(num_images), counts),
        boxes=boxes,
        labels=np.concatenate([p.labels for p in plans]),
        area=box_algebra.area(boxes),
        ignore=ignore,
        crowd=np.zeros(len(boxes), bool),
        box_ids=np.arange(1, len(boxes) + 1),
        classes=CLASSES,
        category_ids=tuple(range(1, len(CLASSES) + 1)),
        source=f"scenes: seed {seed}",
    )


def write_scenes(
    out: Path | str,
    *,
    num_images: int,
    seed: int,
    height: int = 512,
    width: int = 640,
    kind: str | None = None,
    density: float = 1.0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write generated scenes: `annotations.json` (COCO) and `images/*.png`.

    Args:
        out: The folder. The json is written last: a folder that has one is complete.
        num_images: How many.
        seed: The same seed gives the same scenes.
        height: Of an image, in pixels.
        width: Of an image, in pixels.
        kind: sea, field or road; None: all of them.
        density: Objects an image, relative to the usual number.
        workers: Processes that draw.
        progress: Called with (done, total) after each image.

    Returns:
        The json's path.

    Raises:
        UserError: For a folder that holds a data set already.
    """
    out = local_output(out)
    target = out / ANNOTATION_FILE
    if target.exists():
        raise UserError("a data set is there already", where=target, fix="name another folder, or delete this one")
    asked: dict[str, Any] = {"height": height, "width": width, "kind": kind, "density": density}
    table = scenes_annotations(num_images, seed, **asked)
    (out / IMAGE_FOLDER).mkdir(parents=True, exist_ok=True)
    tasks = [(str(out), seed, index, asked) for index in range(num_images)]
    if workers > 1 and num_images > 1:
        # An executor, not a Pool: where a script has no `if __name__ == "__main__":`, a Pool starts failing workers for ever.
        context = multiprocessing.get_context("spawn")
        with pool_deaths_told(), ProcessPoolExecutor(min(workers, num_images), mp_context=context) as pool:
            _count(pool.map(_write_one, tasks, chunksize=4), num_images, progress)
    else:
        _count(map(_write_one, tasks), num_images, progress)
    write_coco(table, target, file_names=list(table.file_names))
    return target


def _count(done: Iterable[None], total: int, progress: Callable[[int, int], None] | None) -> None:
    for number, _ in enumerate(done, 1):
        if progress is not None:
            progress(number, total)


def _write_one(task: tuple[str, int, int, dict[str, Any]]) -> None:
    """Paint one scene and write it."""
    out, seed, index, asked = task
    scene = generate_scene(scene_seed(seed, index), **asked)
    path = Path(out) / scene_name(seed, index)
    image = Image.fromarray(scene.pixels)
    # level 1: grain does not compress, and higher levels cost more time than painting does
    replace_file(path, lambda temporary: image.save(temporary, format="PNG", compress_level=1))
