"""Labelled images that stay on the disk: a folder a class, or tar shards; listed once, read one by one, in bounded memory.

A list of ImageNet's 1.28 million images takes about 100 MB, in arrays that the loader's processes share; the images themselves,
as `LabelledImages`, would take 193 GB at 224 pixels. No torch here.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import warnings
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from flyspeck.data.classification import IMAGE_SUFFIXES, PILLOW_FORMATS, Split, kept_per_class
from flyspeck.data.orientation import exif_orientation, upright
from flyspeck.data.tar_shards import check_complete, class_names, samples, shards_of
from flyspeck.data.transparency import on_black
from flyspeck.errors import UserError, brief

log = logging.getLogger(__name__)

SOLUTION = "LOC_val_solution.csv"
"""ImageNet's classes of the validation images, as Kaggle gives them: `ILSVRC2012_val_00000001,n01751748 111 108 …`."""
_WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


class ShardGone(UserError):
    """A file that was there when the images were listed: nothing that others can stand in for."""


class Texts(Sequence[str]):
    """Many short texts as two arrays, which processes share without copying them."""

    def __init__(self, texts: Iterable[str]) -> None:
        pieces = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._bytes = np.frombuffer(b"".join(pieces), np.uint8)
        self._ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start = int(self._ends[index - 1]) if index else 0
        return self._bytes[start : self._ends[index]].tobytes().decode("utf-8", "surrogateescape")

    def digest(self) -> bytes:
        """The same for the same texts only."""
        return hashlib.sha256(self._bytes.tobytes() + self._ends.tobytes()).digest()


@dataclass(frozen=True)
class LabelledFiles:
    """Where the images of a classification set lie, and the class of each."""

    root: Path
    """Folder of the images, or of the shards."""
    names: Texts
    """(N,) of the images, below `root` or within their shard."""
    labels: np.ndarray
    """(N,) int64 in 0..K-1."""
    classes: tuple[str, ...]
    """(K,) names."""
    source: str
    """What was listed, in words."""
    shards: tuple[Path, ...] = ()
    """None of a folder."""
    places: np.ndarray | None = None
    """(N, 3) int64 of shards: which, first byte, bytes."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shard_of(self) -> np.ndarray | None:
        """(N,) number of each image's shard; None of a folder."""
        return None if self.places is None else self.places[:, 0]

    def limit(self, per_class: int) -> LabelledFiles:
        """The first `per_class` images of every class."""
        rows = kept_per_class(self.labels, per_class)
        names = Texts(self.names[int(row)] for row in rows)
        places = None if self.places is None else self.places[rows]
        return replace(self, names=names, labels=self.labels[rows], places=places)

    def digest(self) -> str:
        """The same for the same list only; what is in the images is not read."""
        places = b"" if self.places is None else np.ascontiguousarray(self.places).tobytes()
        parts = (self.names.digest(), self.labels.tobytes(), places, "\n".join(self.classes).encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def where(self, index: int) -> str:
        """The image in words: its file, or its shard and its name there."""
        if self.places is None:
            return str(self.root / self.names[index])
        return f"{self.shards[self.places[index, 0]]}: {self.names[index]}"

    def read(self, index: int) -> bytes:
        """The image's file. Raises UserError; ShardGone where its shard is no longer there."""
        if self.places is None:
            try:
                return (self.root / self.names[index]).read_bytes()
            except OSError as error:
                raise UserError(f"cannot be read ({error.strerror or error})", where=self.where(index)) from None
        shard, offset, size = (int(value) for value in self.places[index])
        try:
            with self.shards[shard].open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            reason = f"can no longer be read ({error.strerror or error})"
            raise ShardGone(reason, where=self.shards[shard], fix="put it back, and --resume") from None
        if len(content) < size:
            raise ShardGone("is shorter than before", where=self.shards[shard], fix="fetch it again, and --resume")
        return content


def list_labelled_images(folder: Path | str, split: Split) -> LabelledFiles:
    """The `train` or `val` images of a folder of classes or of shards; none is decoded.

    * `train/CLASS/*.jpg`, `val/CLASS/*.jpg`: the layout of ImageNet. `val/` may be flat where `LOC_val_solution.csv` lies
      in the folder.
    * `train/*.tar`, `val/*.tar`, or `*train*.tar` and `*val*.tar` side by side: WebDataset's shards, see `tar_shards`. The file
      `classes.txt` beside them may name the classes, a line each; without it they are the numbers up to the largest label
      in training.

    Raises UserError for a folder that holds neither, a class without a training image, a label that is no class, and shards
    that are missing, cut off or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("no such folder", where=folder)
    if shards_of(folder, "train"):
        return _of_shards(folder, split)
    return _of_folders(folder, split)


def _of_shards(folder: Path, split: Split) -> LabelledFiles:
    shards = shards_of(folder, split)
    if not shards:
        raise UserError(f"holds no {split} shards", where=folder, fix=f"put them into {split}/, as .tar files")
    check_complete(shards)
    named = class_names(folder)
    numbers = {name: number for number, name in enumerate(named)}
    names: list[str] = []
    labels, places = array("q"), array("q")
    for number, shard in enumerate(shards):
        for image, label in samples(shard):
            label = numbers.get(label, label) if isinstance(label, str) else label
            if not isinstance(label, int) or label < 0 or (named and label >= len(named)):
                raise _no_class(label, named, f"{shard}: {image.name}")
            names.append(image.name)
            labels.append(label)
            places.extend((number, image.offset, image.size))
    if not labels:
        raise UserError("hold no images", where=shards[0].parent, fix="write each image with its label as .cls")
    found = np.asarray(labels, np.int64)
    classes = named or _numbered(folder, split, found)
    table = np.asarray(places, np.int64).reshape(-1, 3)
    files = LabelledFiles(folder, Texts(names), found, classes, f"{shards[0].parent}", tuple(shards), table)
    _check_labels(files)
    if split == "train":
        _say_empty(files)
    return files


def _no_class(label: object, named: Sequence[str], where: str) -> UserError:
    known = f"the {len(named)} of classes.txt" if named else "whole numbers from 0"
    return UserError(
        f"its label {brief(label)} is no class ({known})", where=where, fix="mend the shard, or classes.txt"
    )


def _numbered(folder: Path, split: Split, labels: np.ndarray) -> tuple[str, ...]:
    """Classes without names: as many as the training images have, which are listed for that."""
    most = labels if split == "train" else _of_shards(folder, "train").labels
    count = int(most.max()) + 1
    if count > 10 * len(most) + 1000:
        raise UserError(f"a label of {count - 1} for {len(most)} images", where=folder, fix="number the classes from 0")
    return tuple(map(str, range(count)))


def _check_labels(files: LabelledFiles) -> None:
    wrong = np.flatnonzero(files.labels >= len(files.classes))
    if len(wrong):
        label = int(files.labels[wrong[0]])
        raise UserError(
            f"its label {label} is no class of the training images (0 to {len(files.classes) - 1}), as of {len(wrong)} images",
            where=files.where(int(wrong[0])),
            fix="mend the labels, or name all classes in classes.txt",
        )


def _say_empty(files: LabelledFiles) -> None:
    """Shards may be a part of a set: a class that they lack is said, and no error."""
    empty = np.flatnonzero(np.bincount(files.labels, minlength=len(files.classes)) == 0)
    if len(empty):
        some = ", ".join(files.classes[int(row)] for row in empty[:5])
        log.warning(
            "%s: %d of %d classes have no training image: %s", files.source, len(empty), len(files.classes), some
        )


def _of_folders(folder: Path, split: Split) -> LabelledFiles:
    train = folder / "train"
    root = train if split == "train" else next((p for p in (folder / "val", folder / "test") if p.is_dir()), None)
    if not train.is_dir():
        raise UserError("holds neither train/ nor shards", where=folder, fix="give train/CLASS/images, or train/*.tar")
    if root is None:
        raise UserError(f"has no {split}/ beside train/", where=folder)
    classes = tuple(sorted(entry.name for entry in os.scandir(train) if entry.is_dir()))
    own = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    unknown = sorted(set(own) - set(classes))
    if unknown:
        raise UserError(f"class '{unknown[0]}' is not in train/", where=root)
    if not own and split == "val" and (folder / SOLUTION).is_file():
        return _flat(root, folder / SOLUTION, classes)
    names, labels = [], []
    for label, name in enumerate(classes):
        files = _images(root / name)
        if not files and split == "train":
            raise UserError(
                "the class has no image", where=root / name, fix="put images there, or take the folder away"
            )
        names += [f"{name}/{file}" for file in files]
        labels += [label] * len(files)
    if not names:
        raise UserError("holds no images", where=root, fix=f"put them under {root.name}/CLASS/")
    return LabelledFiles(root, Texts(names), np.asarray(labels, np.int64), classes, f"{root}")


def _images(folder: Path) -> list[str]:
    """Names of the images in a folder of one class; what else lies there is said."""
    if not folder.is_dir():
        return []
    found, others = [], []
    for entry in os.scandir(folder):
        ending = os.path.splitext(entry.name)[1].lower()
        if ending in IMAGE_SUFFIXES and not entry.name.startswith("._"):
            found.append(entry.name)
        elif not entry.name.startswith("."):
            others.append(entry.name)
    if others:
        log.warning("%s: %d entries that are no images are passed over, such as %s", folder, len(others), min(others))
    return sorted(found)


def _flat(root: Path, solution: Path, classes: tuple[str, ...]) -> LabelledFiles:
    """ImageNet's validation images as they come: in one folder, with their classes in a csv file."""
    numbers = {name: number for number, name in enumerate(classes)}
    known: dict[str, str] = {}
    with solution.open(encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.reader(file):
            if len(row) > 1:
                known[row[0]] = row[1].split(" ", 1)[0]
    names = _images(root)
    labels = []
    for name in names:
        label = known.get(os.path.splitext(name)[0])
        if label not in numbers:
            what = "stands in no line of" if label is None else f"its class {brief(label)} is not in train/, by"
            raise UserError(f"{what} {solution.name}", where=root / name, fix="take the image away, or mend the file")
        labels.append(numbers[label])
    if not names:
        raise UserError("holds no images", where=root)
    return LabelledFiles(root, Texts(names), np.asarray(labels, np.int64), classes, f"{root}")


def square_of(
    files: LabelledFiles, index: int, size: int, *, rng: np.random.Generator | None, smallest: float
) -> np.ndarray:
    """Image `index` as `(size, size, 3)` uint8 RGB, upright.

    Without `rng` the middle of it, its shorter side resized to `size`; with it a random rectangle of between `smallest` and
    all of the area and an aspect ratio of between 3/4 and 4/3 (Szegedy et al., arXiv:1409.4842, section 6), mirrored half
    of the time. Bilinear, and antialiased.

    Raises UserError for an image that cannot be decoded, or has more than 8 bits; ShardGone where its shard is no longer there.
    """
    content = files.read(index)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=PILLOW_FORMATS)
        box = _middle(image.size) if rng is None else _rectangle(image.size, rng, smallest)
        pixels = _resized(image, box, size)
    except UserError as error:
        raise UserError(error.what, where=files.where(index), fix=error.fix) from None
    except Exception as error:  # decoders fail with anything
        raise UserError(f"cannot be decoded ({error})", where=files.where(index)) from None
    return pixels[:, ::-1] if rng is not None and rng.random() < 0.5 else pixels


def _middle(size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    side = min(size)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _rectangle(size: tuple[int, int], rng: np.random.Generator, smallest: float) -> tuple[float, float, float, float]:
    """A random box inside an image of `size` (width, height); the middle where ten draws did not fit."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(smallest, 1.0)
        aspect = np.exp(rng.uniform(-_WIDEST, _WIDEST))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return _middle(size)


_WIDEST = float(np.log(4 / 3))


def _resized(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    if image.mode in _WIDE:
        raise UserError("has more than 8 bits a value", fix="convert it to 8 bits first")
    width, height = image.size
    # A JPEG decodes at a half, a quarter or an eighth in a fraction of the time; twice the size is left to resample.
    least = 2 * size / max(1e-9, min(box[2] - box[0], box[3] - box[1]))
    if least < 0.5:
        image.draft("RGB", (int(width * least) + 1, int(height * least) + 1))
    x, y = image.size[0] / width, image.size[1] / height
    orientation = exif_orientation(image)
    if image.has_transparency_data:
        image = on_black(image)
    image = image.convert("RGB") if image.mode != "RGB" else image
    # Pillow resamples from the decoded size, which may end half a pixel early.
    scaled = (box[0] * x, box[1] * y, min(box[2] * x, image.size[0]), min(box[3] * y, image.size[1]))
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=scaled))
    return pixels if orientation == 1 else upright(pixels, orientation)
