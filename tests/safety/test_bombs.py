"""Images that claim or become far more than they are: of every kind a line or an answer, without the memory they ask for."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.by_extra import jpeg_xl_size
from flyspeck.data.images import read_image, read_size
from flyspeck.errors import UserError
from flyspeck.infer.job import _max_pixels

SIDE = 14_000
"""196 megapixels: just below the usual limit of 200."""


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(colour: int, samples: int, bits: int = 8, side: int = SIDE) -> bytes:
    """A PNG whose pixels are zeros, packed as well as they can be: one packed block of a hundred rows, again and again."""
    line, pack = 1 + side * samples * bits // 8, zlib.compressobj(9, zlib.DEFLATED, -15)
    block = pack.compress(bytes(100 * line)) + pack.flush(zlib.Z_FULL_FLUSH)
    check = struct.pack(">I", (side * line % 65521) << 16 | 1)  # Adler-32 of zeros
    data = b"\x78\xda" + block * (side // 100) + b"\x03\x00" + check
    head = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(256)) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(
    width: int, height: int, *, samples: int = 1, bits: int = 8, kind: int = 1, packing: int = 8, tile: int = 0
) -> bytes:
    """A TIFF of one strip or tile that claims so many pixels and holds a few bytes."""
    data = zlib.compress(bytes(1000)) if packing == 8 else bytes(16)
    entries = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, packing), (262, 3, 1)]
    entries += [(277, 3, samples), (339, 3, kind)]
    entries += [(322, 4, tile), (323, 4, tile), (324, 4, 0), (325, 4, len(data))] if tile else []
    entries += [(273, 4, 0), (278, 4, height), (279, 4, len(data))] if not tile else []
    entries.sort()
    at = 8 + 2 + 12 * len(entries) + 4
    body = b"".join(
        struct.pack("<HHI", tag, size, 1) + struct.pack("<I", at if tag in (273, 324) else value)
        for tag, size, value in entries
    )
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + bytes(4) + data


def blank_tiff(mode: str, side: int, packing: str) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (side, side)).save(stream, "TIFF", compression=packing)
    return stream.getvalue()


def patched(kind: str, at: Callable[[bytes], int], form: str, *values: int, **more: object) -> bytes:
    """A small image as Pillow writes it, with other numbers in its header."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, kind, **more)
    content = bytearray(stream.getvalue())
    struct.pack_into(form, content, at(bytes(content)), *values)
    return bytes(content)


def jxl(width: int, height: int) -> bytes:
    """The head of a JPEG XL stream of that size, and nothing after."""
    bits, count = 0, 0

    def put(value: int, size: int) -> None:
        nonlocal bits, count
        bits, count = bits | value << count, count + size

    put(0, 1)
    for number, side in enumerate((height, width)):
        put(3, 2)
        put(side - 1, 30)
        if number == 0:
            put(0, 3)
    put(1, 1)
    return b"\xff\x0a" + bits.to_bytes((count + 7) // 8, "little") + bytes(20)


def npy(shape: tuple[int, ...]) -> bytes:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(64)


def heif(width: int, height: int) -> bytes:
    """A HEIF file of one item that has a size, and no pixels."""

    def box(kind: bytes, *parts: bytes, full: bool = False) -> bytes:
        content = (b"\0\0\0\0" if full else b"") + b"".join(parts)
        return struct.pack(">I", 8 + len(content)) + kind + content

    size = box(b"ispe", struct.pack(">II", width, height), full=True)
    properties = box(b"iprp", box(b"ipco", size), box(b"ipma", struct.pack(">IHBB", 1, 1, 1, 1), full=True))
    entry = box(b"infe", b"\x02\0\0\0", struct.pack(">HH4sB", 1, 0, b"hvc1", 0))
    items = box(b"iinf", struct.pack(">H", 1), entry, full=True)
    handler = box(b"hdlr", struct.pack(">I4s12xB", 0, b"pict", 0), full=True)
    primary = box(b"pitm", struct.pack(">H", 1), full=True)
    place = box(b"iloc", struct.pack(">BBHHHHII", 0x44, 0, 1, 1, 0, 1, 0, 8), full=True)
    head = box(b"ftyp", b"heic", struct.pack(">I", 0), b"mif1heic")
    return head + box(b"meta", handler, primary, place, items, properties, full=True)


def bombs() -> dict[str, bytes]:
    """By file name: what claims much, and what holds it packed."""
    found = {
        "claims.tif": tiff(SIDE, SIDE),
        "claims-float.tif": tiff(SIDE, SIDE, bits=64, kind=3),
        "claims-bands.tif": tiff(7000, 7000, samples=4, bits=32, kind=3),
        "claims-thin.tif": tiff(70_000, 96, packing=1),
        "claims-plain.tif": tiff(SIDE, SIDE, packing=1),
        "claims-tile.tif": tiff(64, 64, tile=1 << 17),
        "claims-tile-float.tif": tiff(64, 64, tile=13_984, bits=64, kind=3),
        "claims-all.tif": tiff(2**31 - 1, 2**31 - 1),
        "packed.tif": blank_tiff("RGB", 9000, "tiff_adobe_deflate"),
        "packed-lzw.tif": blank_tiff("RGBA", 7000, "tiff_lzw"),
        "claims.bmp": patched("BMP", lambda _: 18, "<ii", SIDE, SIDE),
        "claims.gif": patched("GIF", lambda _: 6, "<HH", 65535, 3000),
        "claims.webp": patched("WEBP", lambda c: c.index(b"VP8 ") + 14, "<HH", 16383, 12000),
        "claims.jpg": patched("JPEG", lambda c: c.index(b"\xff\xc0") + 5, ">HH", SIDE, SIDE),
        "claims.jp2": patched("JPEG2000", lambda c: c.index(b"\xff\x4f\xff\x51") + 8, ">II", SIDE, SIDE),
        "claims.avif": patched("AVIF", lambda c: c.index(b"ispe") + 8, ">II", SIDE, SIDE),
        "claims.ppm": b"P6 14000 14000 255\n" + bytes(64),
        "claims-wide.ppm": b"P6 14000 14000 65535\n" + bytes(64),
        "claims-plain.pgm": b"P2 14000 14000 255\n1 2 3\n",
        "claims-float.pfm": b"Pf\n14000 14000\n-1.0\n" + bytes(64),
        "claims.jxl": jxl(SIDE, SIDE),
        "claims-all.jxl": jxl(2**30, 2**30),
        "claims.heic": heif(SIDE, SIDE),
        "claims.npy": npy((SIDE, SIDE)),
        "claims-all.npy": npy((2**40, 2**40)),
        "packed-colour.png": png(2, 3),
        "packed-alpha.png": png(6, 4),
        "packed-palette.png": png(3, 1),
        "packed-wide.png": png(2, 3, 16, 10_000),
        "packed-grey-alpha.png": png(4, 2, 8, 13_000),
    }
    return found


_READ = """
import resource, sys, time, warnings
from pathlib import Path
warnings.simplefilter("error")
from flyspeck.data.headers import read_header
from flyspeck.data.images import read_image, read_size
from flyspeck.errors import UserError
from flyspeck.infer.source import open_source
import tifffile, rasterio, pyvips  # whatever takes memory by being loaded
resource.setrlimit(resource.RLIMIT_AS, (6 << 30,) * 2)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
def window(path):
    with open_source(path) as source:
        return source.read(0, 0, min(64, source.size[1]), min(64, source.size[0]))
begun = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in (read_size, read_header, read_image, window):
        start = time.monotonic()
        try:
            read(path)
            said = "read"
        except UserError as error:
            said = "one line" if "\\n" not in str(error) else "lines"
        except MemoryError:
            said = "memory"
        except Exception as error:
            said = f"traceback {type(error).__name__} {error}"
        print(f"{path.name}\\t{read.__name__}\\t{said}\\t{peak() - begun}\\t{time.monotonic() - start:.1f}")
"""


FEW = ("claims.tif", "claims-tile-float.tif", "claims.jxl", "claims.npy", "packed-colour.png", "packed-alpha.png")


@pytest.mark.parametrize("names", [FEW, pytest.param((), marks=pytest.mark.slow)], ids=["few", "all"])
def test_no_image_takes_more_than_a_gigabyte(names: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    pytest.importorskip("rasterio")
    pytest.importorskip("pyvips")
    chosen = {name: content for name, content in bombs().items() if not names or name in names}
    for name, content in chosen.items():
        (tmp_path / name).write_bytes(content)
        assert len(content) < 3_000_000, name
    command = [sys.executable, "-c", _READ, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == 4 * len(chosen)
    wrong = [
        line for line in lines if line[2] not in ("read", "one line") or int(line[3]) > 1000 or float(line[4]) > 10
    ]
    assert not wrong, "\n".join(map(str, wrong[:20]))
    refused = {name for name, read, said, *_ in lines if read == "read_image" and said == "one line"}
    assert {name for name in chosen if name.startswith("packed") and name != "packed-lzw.tif"} <= refused


def test_a_large_image_that_is_full_is_no_bomb(tmp_path: Path) -> None:
    """The same size with something in it: what is refused is a file that could not hold what it says."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "full.png")
    Image.new("RGB", (400, 300)).save(tmp_path / "blank.png")
    small = 130_000  # the limit, so that 300 x 400 is large
    assert_array_equal(read_image(tmp_path / "full.png", max_pixels=small), pixels)
    with pytest.raises(UserError, match=r"would take .* of memory.*raise the limit"):
        read_image(tmp_path / "blank.png", max_pixels=small)
    assert read_image(tmp_path / "blank.png", max_pixels=4 * small).shape == (300, 400, 3)
    assert read_image(tmp_path / "blank.png", max_pixels=None).shape == (300, 400, 3)


@pytest.mark.parametrize("size", [(64, 48), (33, 7), (1, 1), (256, 256)])
def test_jpeg_xl_tells_its_size(size: tuple[int, int], tmp_path: Path) -> None:
    codecs = pytest.importorskip("imagecodecs")
    pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    for number, container in enumerate((False, True)):
        try:
            content = codecs.jpegxl_encode(pixels, usecontainer=container)
        except TypeError:
            pytest.skip("this imagecodecs writes no containers")
        assert jpeg_xl_size(content) == size
        path = tmp_path / f"{number}.jxl"
        path.write_bytes(content)
        assert read_size(path) == (size[1], size[0]) == read_image(path).shape[:2]


@pytest.mark.parametrize("ratio", range(1, 8))
def test_jpeg_xl_sizes_by_ratio(ratio: int) -> None:
    width, height = {1: (40, 40), 2: (48, 40), 3: (64, 48), 4: (48, 32), 5: (128, 72), 6: (40, 32), 7: (64, 32)}[ratio]
    bits = 1 | (height // 8 - 1) << 1 | ratio << 6 | 1 << 9
    assert jpeg_xl_size(b"\xff\x0a" + bits.to_bytes(2, "little")) == (width, height)


def test_jpeg_xl_that_is_cut_off() -> None:
    for content in (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n", b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\0abcd"):
        with pytest.raises(ValueError, match="JPEG XL"):
            jpeg_xl_size(content)


@pytest.mark.parametrize("limit", ["nan", "0", "-1", "-inf"])
def test_limits_that_are_none(limit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="megapixels"):
        _max_pixels(float(limit))
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    command = ["predict", "--model", str(tmp_path), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    assert main([*command, f"--max-megapixels={limit}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_limits_beyond_all_images() -> None:
    assert _max_pixels(float("inf")) is None
    assert _max_pixels(1e300) == 2**62
    assert json.dumps(_max_pixels(0.5)) == "500000"
