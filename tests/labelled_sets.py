"""Small classification sets on the disk, as class folders and as shards: stripes whose class a crop or a mirror keeps."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("columns", "none", "rows")


def stripes(number: int, *, height: int = 36, width: int = 40) -> tuple[bytes, int]:
    """A PNG, and its label: 0 vertical stripes, 1 none, 2 horizontal ones, with noise."""
    label = number % 3
    pixels = np.random.default_rng(number).integers(90, 130, (height, width, 3))
    if label == 0:
        pixels[:, ::4] += 100
    if label == 2:
        pixels[::4] += 100
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue(), label


def write_shard(
    path: Path, samples: Sequence[tuple[str, bytes, object]], *, format: int = tarfile.USTAR_FORMAT
) -> None:
    """A tar file of images, each with a `.cls` of its label where that is not None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for key, image, label in samples:
            for ending, content in (("png", image), ("cls", None if label is None else str(label).encode())):
                if content is not None:
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_shards(root: Path, split: str, *, shards: int, each: int, first: int = 0) -> None:
    """`split/000000.tar` …, of `each` images."""
    for shard in range(shards):
        numbers = range(first + shard * each, first + (shard + 1) * each)
        write_shard(root / split / f"{shard:06d}.tar", [(f"{n:06d}", *stripes(n)) for n in numbers])


def write_folders(root: Path, split: str, count: int, *, first: int = 0) -> None:
    """`split/CLASS/000000.png` …."""
    for number in range(first, first + count):
        image, label = stripes(number)
        path = root / split / CLASSES[label] / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
