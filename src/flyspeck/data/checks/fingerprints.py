"""What images are compared by: a difference hash of 256 bits, the image at 32x32, and a digest of the file.

The 32x32 cells are means of the pixels' brightness. A smooth background (the quadratic surface that fits best) is taken off
first: the light of a sky or of a lens is no resemblance. A bit of the hash says whether one of 16x17 cells is darker than its
right neighbour. That survives another brightness or contrast, JPEG, another size, noise and shifts of a pixel or two; it does
not survive turning, mirroring or cropping, which are not looked for.

An image is *plain* where what is left of the 32x32 cells is no more than its own grain would leave by chance (open sea, a blank
frame), or lies in a few cells (one bird in an empty sky). Its bits are noise, and two images of nothing are alike: plain images
are compared pixel by pixel only, and counted. Where it lies in not many cells, the image is *sparse*, and must be more alike.

The hash is written here, in place of the package `imagehash`: that needs SciPy and PyWavelets, takes one image at a time, and
compares one pair at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from flyspeck.data.image_files import in_parallel
from flyspeck.data.images import read_image
from flyspeck.errors import UserError

SIDE = 32
"""Cells along each side of the small image."""
_COLUMNS, _ROWS = 17, 16
WORDS = 4
"""64-bit words of a hash."""
_FEW, _MANY = 16.0, 48.0
"""Cells over which the structure is spread, of 1024: plain below the first, sparse below the second."""
_GRAIN = 3.0
"""How many times the deviation that independent pixels would leave in a cell counts as structure."""
_LINES = 64
"""Rows of pixels that the grain is measured on."""
_QUANTUM = 0.35
"""Least deviation of the cells, in grey levels of 8 bits, that is more than rounding."""


@dataclass(frozen=True)
class Fingerprints:
    """Of F files; rows of files that could not be read are zero, and plain."""

    bits: np.ndarray
    """(F, 4) uint64: the difference hash."""
    cells: np.ndarray
    """(F, 1024) float16: the small image without its smooth background, mean 0 and norm 1; zero where it is plain."""
    plain: np.ndarray
    """(F,) bool: too plain to be compared by anything but equality."""
    sparse: np.ndarray
    """(F,) bool: with structure in few cells."""
    digests: tuple[bytes, ...]
    """(F,) of the files' bytes; empty where the file could not be read."""
    plain_pixels: tuple[bytes, ...]
    """(F,) of plain images a digest of their size and pixels; empty for the others."""
    problems: tuple[str, ...]
    """Files that could not be read, one line each."""

    @property
    def readable(self) -> np.ndarray:
        """(F,) bool."""
        return np.array([bool(digest) for digest in self.digests], dtype=bool)

    def of(self, rows: Sequence[int]) -> Fingerprints:
        """Those of some files; the problems of all stay."""
        picked = np.asarray(rows, dtype=np.int64)
        digests, pixels = (tuple(column[row] for row in rows) for column in (self.digests, self.plain_pixels))
        bits, cells = self.bits[picked], self.cells[picked]
        return Fingerprints(bits, cells, self.plain[picked], self.sparse[picked], digests, pixels, self.problems)


def fingerprint(
    files: Sequence[Path], *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> Fingerprints:
    """The fingerprints of `files`, in their order: each is decoded once; 2 KB a file are kept.

    `workers` processes; `progress(done, total)` is called after each file.
    """
    count = len(files)
    bits = np.zeros((count, WORDS), dtype=np.uint64)
    cells = np.zeros((count, SIDE * SIDE), dtype=np.float16)
    plain, sparse = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    digests, plain_pixels, problems = [], [], []
    for row, found in enumerate(in_parallel(_of_file, list(files), workers)):
        if isinstance(found, str):
            problems.append(found)
            digests.append(b"")
            plain_pixels.append(b"")
        else:
            digest, small = found
            digests.append(digest)
            plain_pixels.append(small if isinstance(small, bytes) else b"")
            if isinstance(small, np.ndarray):
                plain[row] = False
                sparse[row] = spread(small) < _MANY
                bits[row] = difference_hash(small)
                cells[row] = (small / np.linalg.norm(small)).ravel()
        if progress is not None:
            progress(row + 1, count)
    return Fingerprints(bits, cells, plain, sparse, tuple(digests), tuple(plain_pixels), tuple(problems))


def _of_file(path: Path) -> tuple[bytes, np.ndarray | bytes] | str:
    """Digest and cells of one file (where it is plain, the digest of its pixels), or what was wrong."""
    try:
        pixels = read_image(path)
        small = structure(pixels)
        return blake2b(path.read_bytes(), digest_size=16).digest(), _digest(pixels) if small is None else small
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error.strerror or error}"


def structure(pixels: np.ndarray) -> np.ndarray | None:
    """`(32, 32)` float64: the small image of `(H, W, C)` pixels without its smooth background; None where it is plain.

    Brightness is the luma of 8-bit colours, the mean of other channels.
    """
    grey = _brightness(pixels)
    small = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    rest = (small.ravel() - _SMOOTH @ (_SMOOTH.T @ small.ravel())).reshape(SIDE, SIDE)
    return None if rest.std() <= _least(grey) or spread(rest) < _FEW else rest


def spread(small: np.ndarray) -> float:
    """Over how many cells the structure is spread: 1 where all is in one, 1024 where all have the same."""
    squares = np.square(small)
    return float(squares.sum() ** 2 / np.square(squares).sum())


def _brightness(pixels: np.ndarray) -> np.ndarray:
    """`(H, W)` float32."""
    if pixels.shape[2] == 1:
        return np.ascontiguousarray(pixels[..., 0], dtype=np.float32)
    if pixels.shape[2] == 3 and pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)
    return pixels.mean(2, dtype=np.float32)


def _least(grey: np.ndarray) -> float:
    """The deviation of cells that grain alone would leave: of pixels that know nothing of their neighbours."""
    pixels_a_cell = grey.size / SIDE**2
    some = grey[:: max(1, len(grey) // _LINES)]
    # Neighbours differ by the grain, times the root of 2, and by little else; the median passes over edges.
    steps = np.abs(np.diff(some, axis=1))
    grain = float(np.median(steps)) / (0.6745 * 2**0.5) if steps.size else 0.0
    highest = float(grey.max(initial=0))
    rounding = _QUANTUM if highest <= 255 else 1e-6 * highest
    return max(rounding, _GRAIN * grain / pixels_a_cell**0.5 if pixels_a_cell > 4 else 0.0)


def _smooth() -> np.ndarray:
    """`(1024, 6)`: an orthonormal base of the quadratic surfaces over the cells."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    surfaces = [x**i * y**j for i in range(3) for j in range(3 - i)]
    return np.linalg.qr(np.stack(surfaces, -1).reshape(SIDE * SIDE, -1))[0]


_SMOOTH = _smooth()


def difference_hash(small: np.ndarray) -> np.ndarray:
    """`(4,)` uint64 of a small image `(32, 32)`: 16 rows of 16 bits, whether a cell is darker than the one on its right."""
    coarse = Image.fromarray(small.astype(np.float32)).resize((_COLUMNS, _ROWS), Image.Resampling.BOX)
    cells = np.asarray(coarse)
    return np.packbits(cells[:, :-1] < cells[:, 1:]).view(np.uint64)


def pixel_digest(path: Path) -> bytes:
    """A digest of the image's size and pixels, whatever file they came from. Raises UserError where it cannot be read."""
    return _digest(read_image(path))


def _digest(pixels: np.ndarray) -> bytes:
    if pixels.shape[2] == 3 and (pixels[..., :1] == pixels).all():
        pixels = pixels[..., :1]
    head = repr((pixels.shape, pixels.dtype.str)).encode()
    return blake2b(head + np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()
