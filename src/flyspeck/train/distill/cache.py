"""A teacher's outputs on disk: computed once for every image of the training set, read back in every epoch.

A folder holds `index.json` (whose outputs, of which images), `keys.npy` (a digest of the pixels of each image) and one
`NAME.npy` for each output, maps in half precision. Images are found by the digest of their pixels as the
student sees them: an image that is not the cached one cannot be mistaken for it. So only those augmentations are
possible that give each image in a few exact versions: none, or flips (all versions are kept).
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyspeck.data.annotations import Annotations
from flyspeck.data.loading import DetectionDataset, collate
from flyspeck.data.transforms import flip_horizontal, flip_vertical
from flyspeck.errors import UserError
from flyspeck.files import UNREADABLE, own_place, read_json, write_json
from flyspeck.train.distill.teacher import Observe, Teacher, TeacherOutputs
from flyspeck.train.sections import AugmentConfig
from flyspeck.types import ImageBatch, Sample

log = logging.getLogger("flyspeck")

VERSION = 1


class CachedSource:
    """Gives the outputs `names` of a batch from a folder that `open_cache` filled."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        try:
            self.arrays = {name: np.lib.format.open_memmap(_file(folder, name), mode="r") for name in names}
            keys = np.lib.format.open_memmap(folder / "keys.npy", mode="r")
            self.rows = {bytes(key): row for row, key in enumerate(keys)}
        except (OSError, *UNREADABLE) as error:
            raise UserError(f"not a whole cache ({error})", where=folder, fix="delete it to fill it again") from None

    def __call__(self, images: ImageBatch) -> TeacherOutputs:
        """The outputs for `images`; raises UserError for an image whose pixels are not in the cache."""
        keys = [digest(images.pixels[i, :, :h, :w]) for i, (h, w) in enumerate(images.sizes)]
        missing = [i for i, key in enumerate(keys) if key not in self.rows]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(keys)} images of a batch have other pixels than the cached ones",
                where=self.folder,
                fix="delete the cache to fill it again",
            )
        rows = [self.rows[key] for key in keys]
        found = {}
        for name, array in self.arrays.items():
            tensor = torch.from_numpy(np.stack([array[row] for row in rows])).to(images.pixels.device)
            found[name] = tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor
        return found


def digest(pixels: torch.Tensor) -> bytes:
    """16 bytes that stand for the pixels `(C, H, W)` of an image."""
    content = pixels.detach().cpu().contiguous()
    seed = f"{tuple(content.shape)} {content.dtype}".encode()
    return hashlib.blake2b(seed + content.numpy().tobytes(), digest_size=16).digest()


_STAYS = {"flip", "vertical_flip", "oversample", "copy_paste_max_objects", "copy_paste_max_size", "toward_objects"}
"""Fields that change no image, or one as the cache holds it (a flip), or nothing while the field that they belong to is off."""


def versions(augment: AugmentConfig) -> list[tuple[bool, bool]]:
    """The (horizontal, vertical) flips in which training sees each image; raises UserError if there are others too."""
    plain = AugmentConfig()
    # Whatever is not known to leave pixels and places as they are is refused, so that a new field is too.
    wrong = [
        f"augment.{name}"
        for name in AugmentConfig.model_fields
        if name not in _STAYS and getattr(augment, name) != getattr(plain, name)
    ]
    if wrong:
        raise UserError(
            f"a teacher's outputs can be cached for images that stay or flip, but {', '.join(wrong)} changes them anew"
            " in every epoch",
            where="distill.cache",
            fix="turn that off, or train without --cache-teacher",
        )
    across = [on for on, p in ((False, 1 - augment.flip), (True, augment.flip)) if p > 0]
    down = [on for on, p in ((False, 1 - augment.vertical_flip), (True, augment.vertical_flip)) if p > 0]
    return [(h, v) for v in down for h in across]


def open_cache(
    folder: Path,
    dataset: DetectionDataset,
    teacher: Teacher,
    observe: Observe,
    *,
    augment: AugmentConfig,
    limit_bytes: float,
    divisor: int,
    smallest: int = 1,
    batch_size: int = 8,
    device: torch.device | None = None,
    precision: str = "fp32",
) -> CachedSource:
    """The cache in `folder`, filled now if there is none.

    `divisor` and `smallest` are those of the batches that the outputs are for. Says its size before it begins.
    Raises UserError if it would be larger than `limit_bytes` or than the disk's free
    space, if the images have several sizes, and if the folder holds the outputs of another teacher or other images.
    """
    flips = versions(augment)
    device = device or torch.device("cpu")
    enabled = precision == "bf16"
    first = collate([dataset.raw(0)], divisor=divisor, smallest=smallest)
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        sample = teacher.outputs(first.images.to(device), observe)
    made_of = {
        "version": VERSION,
        "teacher": teacher.hash,
        "scale": teacher.scale,
        "precision": precision,
        "images": _names_hash(dataset.annotations, flips),
        "outputs": {name: [list(_stored(t)[0].shape), str(_stored(t).dtype)] for name, t in sample.items()},
    }
    if (folder / "index.json").is_file():
        _compare(folder, made_of)
        return CachedSource(folder, sample)
    _same_size(dataset)
    count = len(dataset) * len(flips)
    each = sum(_stored(t)[0].nbytes for t in sample.values())
    _announce(folder, count, each, limit_bytes)
    arrays = {
        name: np.lib.format.open_memmap(
            own_place(_file(folder, name)), mode="w+", dtype=_stored(t).dtype, shape=(count, *_stored(t).shape[1:])
        )
        for name, t in sample.items()
    }
    keys = np.zeros(count, "V16")
    start = 0
    for batch in _batches(dataset, flips, batch_size):
        images = collate(batch, divisor=divisor, smallest=smallest).images
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            found = teacher.outputs(images.to(device), observe)
        rows = slice(start, start + len(batch))
        for name, tensor in found.items():
            stored = _stored(tensor)
            if not np.isfinite(stored).all():
                raise UserError(f"'{name}' of the teacher does not fit half precision", where="distill.cache",
                                fix="train without --cache-teacher")  # fmt: skip
            arrays[name][rows] = stored
        keys[rows] = np.array([np.void(digest(one.pixels)) for one in batch])
        start += len(batch)
    for array in arrays.values():
        array.flush()
    np.save(own_place(folder / "keys.npy"), keys)
    write_json(folder / "index.json", made_of)  # last: now it is whole
    return CachedSource(folder, sample)


def _announce(folder: Path, count: int, each: int, limit_bytes: float) -> None:
    total = count * each
    log.info("teacher's outputs: %d images x %.2f MB = %.2f GB in %s", count, each / 1e6, total / 1e9, folder)
    if total > limit_bytes:
        raise UserError(
            f"the teacher's outputs would take {total / 1e9:.2f} GB, more than the limit of {limit_bytes / 1e9:g} GB",
            where=folder,
            fix="raise distill.cache_limit_gb, name fewer levels or images, or train without --cache-teacher",
        )
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UserError(f"needs {total / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left", where=folder)


def _compare(folder: Path, wanted: dict[str, Any]) -> None:
    found = read_json(folder / "index.json", fix="delete the folder")
    words = {
        "teacher": "another teacher",
        "images": "other images",
        "scale": f"images enlarged by {found.get('scale')}",
        "precision": f"precision {found.get('precision')}",
        "outputs": "other levels or another method",
        "version": "another version of the program",
    }
    held = found.get("outputs")
    held = held if isinstance(held, dict) else {}
    found["outputs"] = {name: held.get(name) for name in wanted["outputs"]}  # it may hold more levels than are needed
    different = [words[key] for key in wanted if found.get(key) != wanted[key]]
    if different:
        raise UserError(
            f"holds the outputs of {different[0]}", where=folder, fix="choose another folder, or delete this one"
        )


def _names_hash(annotations: Annotations, flips: list[tuple[bool, bool]]) -> str:
    content = "\n".join([*annotations.file_names, str(flips), str(annotations.sizes.tolist())])
    return hashlib.sha256(content.encode()).hexdigest()


def _same_size(dataset: DetectionDataset) -> None:
    sizes = {tuple(int(s) for s in size) for size in dataset.annotations.sizes}
    if len(sizes) > 1 or min(next(iter(sizes))) <= 0:
        raise UserError(
            f"the images have {len(sizes)} sizes, or sizes that the annotations do not say",
            where="distill.cache",
            fix="cut them to one size (`flyspeck data tile`), or train without --cache-teacher",
        )


def _batches(dataset: DetectionDataset, flips: list[tuple[bool, bool]], batch_size: int) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for index in range(len(dataset)):
        plain = dataset.raw(index)
        for across, down in flips:
            sample = flip_horizontal(plain) if across else plain
            batch.append(flip_vertical(sample) if down else sample)
            if len(batch) == batch_size:
                yield batch
                batch = []
    if batch:
        yield batch


def _stored(tensor: torch.Tensor) -> np.ndarray:
    """As it lies in the file: maps in half precision, with the channels last, as they are in memory."""
    moved = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
    if tensor.ndim != 4:  # boxes, scores and sums are small and stay precise
        return moved.detach().cpu().to(torch.float32).numpy()
    return moved.detach().cpu().to(torch.float16).numpy()


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '_')}.npy"
