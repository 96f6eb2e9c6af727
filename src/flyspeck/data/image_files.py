"""Images out: resampling, lossless files, and work on many images at once. NumPy and Pillow only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from flyspeck.data.headers import read_header
from flyspeck.data.images import read_image
from flyspeck.errors import UserError, missing_extra
from flyspeck.files import folded, own_place, without_ending

FORMATS = ("png", "webp")
"""Lossless formats that are written."""
_PNG_LEVEL = 4  # about 15 % bigger than level 6 on thermal images, and twice as fast to write

Job = TypeVar("Job")
Result = TypeVar("Result")


def ending_for(path: Path, image_format: str) -> str:
    """The ending, without its dot, under which an image cut or resized from `path` is written: `tif` where PNG cannot hold it."""
    try:
        header = read_header(path)
    except UserError:
        return image_format  # whoever reads it says what is wrong
    bands = header.bands
    plain = (header.dtype == "uint8" and bands in (1, 3)) or (header.dtype, bands) == ("uint16", 1)
    return image_format if plain else "tif"


def read_true(path: Path) -> np.ndarray:
    """The image as `read_image` gives it, but one channel where a WebP file only holds grey.

    WebP knows no grey images, and one with loss gives channels that differ by the rounding of its colour conversion, 1.
    """
    pixels = read_image(path)
    if pixels.shape[2] == 3 and path.suffix.lower() == ".webp":
        low, high = np.minimum(pixels[..., 0], pixels[..., 2]), np.maximum(pixels[..., 0], pixels[..., 2])
        low, high = np.minimum(low, pixels[..., 1]), np.maximum(high, pixels[..., 1])
        if (high - low).max() <= 1:
            return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return pixels


def shrink_pixels(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`(H, W, C)` pixels at a smaller `size` (height, width), of the same type.

    Where both sides are divided by whole numbers, each new pixel is the plain mean of its block, rounded once
    (`Image.reduce`); else `Image.Resampling.LANCZOS`, whose filter Pillow widens with the factor. Neither aliases.
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return np.asarray(_shrunk(image, size)).reshape(*size, pixels.shape[2])
    # All others by way of float, a band at a time.
    bands = [Image.fromarray(pixels[..., c].astype(np.float32)) for c in range(pixels.shape[2])]
    small = np.stack([np.asarray(_shrunk(band, size)) for band in bands], -1)
    if pixels.dtype.kind == "f":
        return small.astype(pixels.dtype)
    limits = np.iinfo(pixels.dtype)
    return small.round().clip(limits.min, limits.max).astype(pixels.dtype)


def _shrunk(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.height % size[0] == 0 and image.width % size[1] == 0:
        return image.reduce((image.width // size[1], image.height // size[0]))
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def save_pixels(pixels: np.ndarray, path: Path) -> None:
    """Write `(H, W, C)` without loss, by the name's ending: PNG or WebP of uint8 of one or three bands, PNG of uint16 of one,
    TIFF of any bands and values (extra `tiff`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own_place(path)
    if path.suffix == ".tif":
        return _save_tiff(pixels, path)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if path.suffix == ".webp":
        if pixels.dtype != np.uint8:
            raise UserError("WebP holds 8 bits, the image has 16", where=path, fix="write png")
        image.save(path, lossless=True, method=2)
    else:
        image.save(path, compress_level=_PNG_LEVEL)


def _save_tiff(pixels: np.ndarray, path: Path) -> None:
    """No band is tagged as alpha, so that all of them are read again."""
    try:
        import tifffile
    except ImportError:
        raise missing_extra("tifffile", "tiff") from None
    bands = pixels.shape[2]
    how = {} if bands == 1 else {"planarconfig": "contig", "extrasamples": (0,) * (bands - 1)}
    stored = pixels[..., 0] if bands == 1 else pixels
    tifffile.imwrite(path, stored, photometric="minisblack", compression="zlib", **how)


def output_names(file_names: Sequence[str], suffix: str | None = None) -> list[str]:
    """Names to write images under, unlike each other even without their endings, also on a disk that knows neither case nor
    unicode forms.

    Folders are kept, but for `images` and `labels` and whatever would climb out of the folder written to; a name of nothing else
    (`..`, `...png`) is `image`, and the character 0, which no file's name holds, is `_`. `suffix` (with its dot) replaces the
    ending.
    """
    names, taken = [], set()
    for name in file_names:
        # The anchor is a drive, `/`, or `//`: POSIX keeps two slashes apart from one.
        parts = [part for part in Path(name).parts if part not in ("..", ".", Path(name).anchor)]
        # A folder `images` further in would send readers of YOLO to other label files than the ones beside.
        parts = [part for part in parts[:-1] if part not in ("images", "labels")] + parts[-1:]
        plain = Path(*(part.replace("\0", "_") for part in parts or ["image"]))
        whole = without_ending(plain)
        ending = plain.name[len(whole.name) :]
        if not plain.stem.strip("."):  # what is left of `...png` is `..`
            whole, ending = plain.with_name("image"), plain.suffix
        stem = whole.as_posix()
        while folded(stem) in taken:
            stem += "_"
        taken.add(folded(stem))
        names.append(stem + (ending if suffix is None else suffix))
    return names


def refuse_own(sources: Iterable[Path], targets: Iterable[Path], out: Path) -> None:
    """Raises UserError where one of the images that are read (`sources`) would be written over, by its own copy or another's."""
    own = {path.resolve() for path in sources}
    taken = next((path for path in targets if path.resolve() in own), None)
    if taken is not None:
        what = f"the images would be written over themselves ({taken.name})"
        raise UserError(what, where=out, fix="give another --out")


def in_parallel(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """The results in the order of the jobs; `workers` processes, or this one where that is 1.

    Fresh processes (spawn), because a fork of a process with threads may hang; `work` is a function of a module that imports
    little, since each process imports it.
    """
    if workers <= 1 or len(jobs) < 8:
        yield from map(work, jobs)
        return
    with pool_deaths_told(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, jobs, chunksize=max(1, min(16, len(jobs) // (4 * workers))))


@contextmanager
def pool_deaths_told() -> Iterator[None]:
    """Turns the end of a process of a pool, which took no part in it, into one line."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "a process that works on images could not start or was ended by the system, as where memory runs out",
            fix="free some memory or take fewer workers (--workers, workers=1), and run it again; in a script,"
            ' call this below `if __name__ == "__main__":`',
        ) from None
