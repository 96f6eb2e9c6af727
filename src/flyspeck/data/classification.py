"""Labelled small images for pre-training: CIFAR-10 and -100, ImageNet32, folders of classes, packed npz sets.

CIFAR and ImageNet32 come as Python pickles. They are read with an unpickler that can make NumPy arrays and nothing else, so
that no file can run code. No torch here.
"""

from __future__ import annotations

import _codecs
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from flyspeck.errors import UserError
from flyspeck.files import UNREADABLE

Split = Literal["train", "val"]
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's names: it knows formats that start programs, and tells them by their content."""
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class LabelledImages:
    """Images of one size with one class each."""

    pixels: np.ndarray
    """(N, H, W, 3) uint8, RGB."""
    labels: np.ndarray
    """(N,) int64 in 0..K-1."""
    classes: tuple[str, ...]
    """(K,) names."""
    source: str
    """What was read, in words."""

    def __len__(self) -> int:
        return len(self.labels)

    def limit(self, per_class: int) -> LabelledImages:
        """The first `per_class` images of every class."""
        keep = kept_per_class(self.labels, per_class)
        return LabelledImages(self.pixels[keep], self.labels[keep], self.classes, self.source)


def kept_per_class(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Rows of the first `per_class` of every label of `(N,)`, in their order."""
    order = np.argsort(labels, kind="stable")
    sorted_labels = labels[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels)
    return np.sort(order[rank < per_class])


def read_labelled_images(folder: Path | str, split: Split, *, size: int = 32) -> LabelledImages:
    """The `train` or `val` images of a folder in any of the known layouts.

    * CIFAR-10 (`data_batch_1` … and `test_batch`), CIFAR-100 (`train`, `test`, `meta`), ImageNet32 or ImageNet64
      (`train_data_batch_1` …, `val_data`; pickles or npz): as published.
    * npz (`train.npz`, `val.npz` or `test.npz`): `data` (concatenated image files), `offsets`, `labels`, `classes`.
    * folder of classes (`train/CLASS/*.jpg`, `val/CLASS/*.jpg`): each image is resized and cropped to `size` squared.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("no such folder", where=folder)
    readers: tuple[Callable[[], LabelledImages], ...] = (
        lambda: _cifar10(folder, split),
        lambda: _cifar100(folder, split),
        lambda: _imagenet32(folder, split, ""),
        lambda: _imagenet32(folder, split, ".npz"),
        lambda: _packed(folder, split),
    )
    for mark, reader in zip(_MARKS, readers, strict=True):
        if (folder / mark).is_file():
            try:
                return reader()
            except UserError:
                raise
            except UNREADABLE as error:  # arrays of other types, shapes or lengths than each other
                text = f"its arrays do not go together ({' '.join(str(error).split())})"
                raise UserError(text, where=folder, fix="unpack it again, or write it again") from None
    if (folder / "train").is_dir():
        return _image_folder(folder, split, size)
    marks = ", ".join(_MARKS)
    raise UserError(
        "no data set of labelled images that is known",
        where=folder,
        fix=f"give the folder that holds one of {marks}, train/CLASS/images, or train/*.tar",
    )


_MARKS = ("data_batch_1", "meta", "train_data_batch_1", "train_data_batch_1.npz", "train.npz")
"""The file that tells each layout of arrays, in the order in which they are looked for."""


def is_array_set(folder: Path) -> bool:
    """Whether a folder holds one of the layouts of arrays, and no files of images."""
    return any((folder / mark).is_file() for mark in _MARKS)


class _ArrayUnpickler(pickle.Unpickler):
    """Loads dictionaries, lists, texts, numbers and NumPy arrays; refuses every other name."""

    _ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name in self._ARRAYS and global_name in ("_reconstruct", "scalar"):
            return getattr(import_module("numpy._core.multiarray"), global_name)
        if module_name in ("numpy.core.numeric", "numpy._core.numeric") and global_name == "_frombuffer":
            return import_module("numpy._core.numeric")._frombuffer
        if module_name == "numpy" and global_name in ("ndarray", "dtype"):
            return np.ndarray if global_name == "ndarray" else np.dtype
        if (module_name, global_name) == ("_codecs", "encode"):  # how Python 3 writes bytes in old protocols
            return _codecs.encode
        raise pickle.UnpicklingError(f"the file wants to load {module_name}.{global_name}")


def load_arrays(path: Path) -> dict[str, Any]:
    """The dictionary of a pickle that holds arrays, lists and texts only; its keys as text."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
    except FileNotFoundError:
        raise UserError("no such file", where=path, fix="the data set is not complete: unpack it again") from None
    except UNREADABLE as error:
        raise UserError(f"not a data batch that can be read safely ({error})", where=path) from error
    if not isinstance(content, dict):
        raise UserError("holds no dictionary", where=path)
    return {k.decode() if isinstance(k, bytes) else str(k): v for k, v in content.items()}


def _planes(flat: Any, where: Path) -> np.ndarray:
    """`(N, 3*S*S)` red, green and blue planes to `(N, S, S, 3)`."""
    flat = np.asarray(flat)
    side = round((flat.shape[-1] / 3) ** 0.5) if flat.ndim == 2 else 0
    if flat.ndim != 2 or 3 * side * side != flat.shape[1] or flat.dtype != np.uint8:
        raise UserError(f"'data' is {flat.dtype} of shape {flat.shape}, not uint8 rows of square images", where=where)
    return flat.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


def _from_batches(
    batches: Sequence[tuple[Path, dict[str, Any]]], label_key: str, classes: Sequence[str], source: str, first: int = 0
) -> LabelledImages:
    for path, batch in batches:
        for key in ("data", label_key):
            if key not in batch:
                raise UserError(f"has no '{key}'", where=path)
    pixels = np.concatenate([_planes(batch["data"], path) for path, batch in batches])
    labels = np.concatenate([np.asarray(batch[label_key], dtype=np.int64) for _, batch in batches]) - first
    return _checked(LabelledImages(pixels, labels, tuple(classes), source))


def _checked(images: LabelledImages) -> LabelledImages:
    if len(images.pixels) != len(images.labels) or len(images) == 0:
        raise UserError(f"{len(images.pixels)} images and {len(images.labels)} labels", where=images.source)
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= len(images.classes):
        raise UserError(f"labels {low} to {high} for {len(images.classes)} classes", where=images.source)
    return images


def _texts(values: Any) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


def _cifar10(folder: Path, split: Split) -> LabelledImages:
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    classes = _texts(load_arrays(folder / "batches.meta").get("label_names", range(10)))
    batches = [(folder / name, load_arrays(folder / name)) for name in names]
    return _from_batches(batches, "labels", classes, f"CIFAR-10 {split}: {folder}")


def _cifar100(folder: Path, split: Split) -> LabelledImages:
    path = folder / ("train" if split == "train" else "test")
    classes = _texts(load_arrays(folder / "meta").get("fine_label_names", range(100)))
    return _from_batches([(path, load_arrays(path))], "fine_labels", classes, f"CIFAR-100 {split}: {folder}")


def _imagenet32(folder: Path, split: Split, suffix: str) -> LabelledImages:
    names = [f"train_data_batch_{i}" for i in range(1, 11)] if split == "train" else ["val_data"]
    paths = [folder / f"{name}{suffix}" for name in names]
    batches = [(path, _npz(path) if suffix else load_arrays(path)) for path in paths]
    # Labels count from 1; there are no names in the files.
    return _from_batches(batches, "labels", [str(i) for i in range(1, 1001)], f"ImageNet32 {split}: {folder}", first=1)


def _npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise UserError("no such file", where=path, fix="the data set is not complete: unpack it again") from None
    except (OSError, *UNREADABLE) as error:
        raise UserError(f"not an npz file that can be read safely ({error})", where=path) from error


def _packed(folder: Path, split: Split) -> LabelledImages:
    path = folder / "train.npz"
    if split == "val":
        path = folder / ("val.npz" if (folder / "val.npz").is_file() else "test.npz")
    content = _npz(path)
    missing = [
        name for name in ("data", "offsets", "labels", "classes") if not isinstance(content.get(name), np.ndarray)
    ]
    if missing:
        raise UserError(f"has no '{missing[0]}'", where=path)
    data, offsets = content["data"].tobytes(), content["offsets"]
    images = []
    for row, (start, stop) in enumerate(pairwise(offsets)):
        try:
            with Image.open(io.BytesIO(data[start:stop]), formats=PILLOW_FORMATS) as image:
                images.append(np.asarray(image.convert("RGB")))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(f"image {row} cannot be decoded ({error})", where=path) from error
    if len({p.shape for p in images}) > 1:
        raise UserError("holds images of several sizes", where=path)
    classes = tuple(str(c) for c in content["classes"])
    return _checked(LabelledImages(np.stack(images), content["labels"].astype(np.int64), classes, f"{path}"))


def _image_folder(folder: Path, split: Split, size: int) -> LabelledImages:
    root = folder / split
    if split == "val" and not root.is_dir():
        root = folder / "test"
    if not root.is_dir():
        raise UserError(f"has no {split}/ beside train/", where=folder)
    # The classes are those of train/, so that both splits number them alike.
    classes = sorted(p.name for p in (folder / "train").iterdir() if p.is_dir())
    unknown = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name not in classes)
    if unknown:
        raise UserError(f"class '{unknown[0]}' is not in train/", where=root)
    images, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(p for p in (root / name).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        images += [_square(p, size) for p in files]
        labels += [label] * len(files)
    if not images:
        raise UserError("holds no images", where=root, fix=f"put them under {root.name}/CLASS/")
    labelled = LabelledImages(np.stack(images), np.asarray(labels, np.int64), tuple(classes), f"{root}")
    return _checked(labelled)


def _square(path: Path, size: int) -> np.ndarray:
    """The middle of an image whose shorter side is resized to `size`."""
    try:
        with Image.open(path, formats=PILLOW_FORMATS) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"cannot be decoded ({error})", where=path) from error
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
