"""HEIF and JPEG XL: files made here are read, and a missing extra is named. (What no library here can write is skipped.)"""

from __future__ import annotations

import builtins
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from flyspeck.data.images import EXTENSIONS, read_image, read_size
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.infer.source import find_items

HEIGHT, WIDTH = 48, 64


def scene() -> np.ndarray:
    """A bright object of 8 x 8 px on grey."""
    pixels = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    pixels[16:24, 32:40] = 230
    return pixels


def _box(kind: bytes, *parts: bytes, full: bool = False) -> bytes:
    content = (b"\0\0\0\0" if full else b"") + b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


def heic(pixels: np.ndarray) -> bytes:
    """An HEVC frame, encoded by PyAV, in the boxes of a HEIF file (ISO/IEC 23008-12): one item, its configuration and size."""
    av = pytest.importorskip("av")
    if "libx265" not in av.codecs_available:
        pytest.skip("this build of PyAV has no HEVC encoder, and pi-heif only reads")
    encoder = av.CodecContext.create("libx265", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = WIDTH, HEIGHT, "yuv420p", Fraction(1, 1)
    encoder.options = {"x265-params": "log-level=none:info=0:crf=4"}
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    stream = b"".join(
        bytes(packet) for packet in (*encoder.encode(frame.reformat(format="yuv420p")), *encoder.encode(None))
    )
    units = [unit.rstrip(b"\0") for unit in stream.split(b"\0\0\1") if unit.rstrip(b"\0")]
    heads = {kind: next(unit for unit in units if unit[0] >> 1 == kind) for kind in (32, 33, 34)}
    level = heads[32].replace(b"\0\0\3", b"\0\0")[6:18]  # profile and level stand after the first six bytes of the VPS
    arrays = b"".join(struct.pack(">BHH", 0x80 | kind, 1, len(unit)) + unit for kind, unit in heads.items())
    numbers = struct.pack(">HBBBBHBB", 0xF000, 0xFC, 0xFD, 0xF8, 0xF8, 0, 0x0F, 3)
    configuration = _box(b"hvcC", b"\1", level, numbers, arrays)
    coded = b"".join(struct.pack(">I", len(unit)) + unit for unit in units if unit[0] >> 1 < 32)
    size = _box(b"ispe", struct.pack(">II", WIDTH, HEIGHT), full=True)
    properties = _box(b"iprp", _box(b"ipco", configuration, size),
                      _box(b"ipma", struct.pack(">IHBBB", 1, 1, 2, 0x81, 2), full=True))  # fmt: skip
    entry = _box(b"infe", b"\x02\0\0\0", struct.pack(">HH4sB", 1, 0, b"hvc1", 0))
    items = _box(b"iinf", struct.pack(">H", 1), entry, full=True)
    handler = _box(b"hdlr", struct.pack(">I4s12xB", 0, b"pict", 0), full=True)
    kind = _box(b"ftyp", b"heic", struct.pack(">I", 0), b"mif1heic")

    def meta(offset: int) -> bytes:
        place = _box(b"iloc", struct.pack(">BBHHHHII", 0x44, 0, 1, 1, 0, 1, offset, len(coded)), full=True)
        return _box(
            b"meta", handler, _box(b"pitm", struct.pack(">H", 1), full=True), place, items, properties, full=True
        )

    return kind + meta(len(kind) + len(meta(0)) + 8) + _box(b"mdat", coded)


def jxl(pixels: np.ndarray) -> bytes:
    codecs = pytest.importorskip("imagecodecs")
    if not codecs.JPEGXL.available:
        pytest.skip("this build of imagecodecs has no JPEG XL")
    return codecs.jpegxl_encode(pixels, lossless=True)


def test_heif(tmp_path: Path) -> None:
    pytest.importorskip("pi_heif")
    path = tmp_path / "a.heic"
    path.write_bytes(heic(scene()))
    pixels = read_image(path)
    assert read_size(path) == pixels.shape[:2] == (HEIGHT, WIDTH)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - scene()).max() <= 4  # YCbCr and back
    assert read_image(path, channels=1).shape == (HEIGHT, WIDTH, 1)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_jpeg_xl_without_loss(kind: type, tmp_path: Path) -> None:
    grey = scene()[..., 0].astype(kind) * (1 if kind is np.uint8 else 200)
    path = tmp_path / "a.jxl"
    path.write_bytes(jxl(grey))
    assert_array_equal(read_image(path)[..., 0], grey)
    assert read_size(path) == (HEIGHT, WIDTH)
    if kind is np.uint8:
        path.write_bytes(jxl(scene()))
        assert_array_equal(read_image(path), scene())


@pytest.mark.parametrize("name", ["a.heic", "a.jxl"])
def test_they_are_images_of_a_set_and_of_a_folder(name: str, tmp_path: Path) -> None:
    if Path(name).suffix not in EXTENSIONS:
        pytest.skip(f"needs the extra that reads {Path(name).suffix}")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / name).write_bytes(heic(scene()) if name == "a.heic" else jxl(scene()))
    (tmp_path / "labels" / "a.txt").write_text("0 0.5625 0.4166666667 0.125 0.1666666667\n")
    table = read_annotations(tmp_path)
    assert table.boxes.round(4).tolist() == [[32, 16, 40, 24]]
    assert [item.name for item in find_items([tmp_path / "images"])[0]] == [name]


@pytest.mark.parametrize(
    ("start", "package", "extra"),
    [(b"\0\0\0\x18ftypheic\0\0\0\0", "pi_heif", "heif"), (b"\xff\x0a\x18\0", "imagecodecs", "jxl")],
)
def test_an_extra_that_is_not_there_is_named(
    start: bytes, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(start)
    true_import = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return true_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    distribution = {"jxl": "imagecodecs", "heif": "pi-heif"}[extra]
    with pytest.raises(UserError, match=rf"a\.bin: .*pip install .*'{distribution}>="):
        read_image(path)


@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypheic\0\0\0\0", b"\xff\x0a\x18\0"])
def test_broken_ones_are_one_line(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(start + b"\x07" * 40)
    with pytest.raises(UserError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
