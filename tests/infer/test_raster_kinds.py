"""Rasters by what they are: bands by their meaning, ranges of 11- and 12-bit values, inverted grey, false claims."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from spots import geotiff, spots_model

from flyspeck.data.bands import KEY, PixelRule
from flyspeck.data.headers import read_header
from flyspeck.data.images import read_image
from flyspeck.errors import UserError
from flyspeck.infer import raster
from flyspeck.infer.job import predict
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.raster import RasterioSource
from flyspeck.infer.source import open_source
from flyspeck.infer.tiff_windows import TifffileSource
from flyspeck.infer.tiles import MOST_TILES
from flyspeck.infer.vips_windows import VipsSource
from flyspeck.infer.whole import open_whole
from flyspeck.infer.windows import OpenOptions, Source

rasterio = pytest.importorskip("rasterio")
tifffile = pytest.importorskip("tifffile")
imagecodecs = pytest.importorskip("imagecodecs")
pytest.importorskip("pyvips")
PLACE = (0.1, 0, 500000, 0, -0.1, 4000000)
CRS = "EPSG:32633"
EIGHT = OpenOptions().completed({"mean": [0.5] * 3})  # of a detector that learnt from 8 bits
READERS: dict[str, Callable[..., Source]] = {
    "rasterio": RasterioSource,
    "tifffile": TifffileSource,
    "pyvips": VipsSource,
    "whole": open_whole,
}


def write(path: Path, pixels: np.ndarray, meanings: tuple[str, ...] = (), **settings: Any) -> Path:
    geotiff(path, pixels, PLACE, CRS, **settings)
    if meanings:
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [rasterio.enums.ColorInterp[meaning] for meaning in meanings]
    return path


def numbered(bands: int, dtype: str = "uint8") -> np.ndarray:
    """`(20, 30, bands)`, band k of value 10 k."""
    return np.broadcast_to(np.arange(1, bands + 1, dtype=dtype) * 10, (20, 30, bands)).copy()


MEANINGS = [
    (("blue", "green", "red"), 3, [30, 20, 10]),
    (("alpha", "red", "green", "blue"), 3, [20, 30, 40]),
    (("red", "green", "blue", "undefined"), 3, [10, 20, 30]),
    (("undefined", "blue", "green", "red"), 3, [40, 30, 20]),
    (("blue", "green", "red", "undefined"), 4, [30, 20, 10, 40]),
    (("alpha", "red", "green", "blue"), 4, [20, 30, 40, 255]),
    (("gray", "alpha"), 1, [10]),
    (("gray", "undefined", "undefined"), 3, [10, 20, 30]),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("meanings", "channels", "expected"), MEANINGS)
def test_bands_are_read_by_their_meaning(
    tmp_path: Path, meanings: tuple[str, ...], channels: int, expected: list[int], reader: str
) -> None:
    pixels = numbered(len(meanings))
    if "alpha" in meanings:
        pixels[:, :, meanings.index("alpha")] = 255
    path = write(tmp_path / "a.tif", pixels, meanings, photometric="MINISBLACK")
    if reader == "whole" and channels == 3 and len(meanings) == 4 and "alpha" not in meanings:
        expected = [*expected, 40 if meanings[0] == "red" else 10]  # as training reads it: all of them, colours first
    options = OpenOptions(channels=channels)
    with READERS[reader](path, options, name="a") as source:
        assert source.read(0, 0, 30, 20)[3, 4].tolist() == expected
    with open_source(path, options) as source:
        assert source.read(0, 0, 30, 20)[3, 4].tolist() == expected[:channels]
    picked = OpenOptions(bands=(2, 1))
    with READERS[reader](path, picked, name="a") as source:  # what is asked for is what the file numbers so
        assert source.read(0, 0, 30, 20)[3, 4].tolist() == pixels[3, 4, [1, 0]].tolist()


def test_training_reads_tagged_colours_as_prediction_does(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", numbered(4), ("blue", "green", "red", "undefined"), photometric="MINISBLACK")
    assert read_image(path)[0, 0].tolist() == [30, 20, 10, 40]
    assert read_header(path).coloured
    assert read_image(path, bands=(1, 2))[0, 0].tolist() == [10, 20]


@pytest.mark.parametrize("reader", ["rasterio", "tifffile", "pyvips", "whole"])
def test_a_palette_is_looked_up_and_its_bands_are_colours(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "a.tif"
    colours = {0: (1, 2, 3, 255), 1: (250, 251, 252, 255)}
    with rasterio.open(
        path, "w", "GTiff", 30, 20, 1, CRS, rasterio.Affine(*PLACE), "uint8", photometric="palette"
    ) as file:
        file.write_colormap(1, colours)
        file.write(np.ones((1, 20, 30), np.uint8))
    with READERS[reader](path, OpenOptions(channels=3), name="a") as source:
        assert source.read(0, 0, 30, 20)[0, 0].tolist() == [250, 251, 252]
    with READERS[reader](path, OpenOptions(bands=(3, 1)), name="a") as source:
        assert source.read(0, 0, 30, 20)[0, 0].tolist() == [252, 250]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535)])
def test_white_that_is_zero_is_turned_around(tmp_path: Path, dtype: str, top: int, reader: str) -> None:
    pixels = np.full((20, 30), top - 60, dtype)
    pixels[5:8, 4:9] = 3
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    with READERS[reader](tmp_path / "a.tif", OpenOptions(), name="a") as source:
        found = source.read(0, 0, 30, 20)[:, :, 0]
    assert (found[5:8, 4:9] == top - 3).all()
    assert found[0, 0] == 60
    write(tmp_path / "b.tif", pixels, photometric="MINISWHITE")
    with open_source(tmp_path / "b.tif") as source:
        assert source.geo is not None
        assert "its 0 is white" in source.note
        assert_array_equal(source.read(0, 0, 30, 20)[:, :, 0], found)


def sensor(bits: int, bands: int = 3) -> np.ndarray:
    """`(20, 30, bands)` uint16 of a sensor of so many bits: dark ground, and a spot of four pixels near the top of the scale."""
    top = 2**bits - 1
    pixels = np.full((20, 30, bands), int(top * 0.25), np.uint16)
    pixels[6:8, 9:11] = int(top * 0.97)
    return pixels


def as_npy(path: Path, pixels: np.ndarray) -> Path:
    np.save(path.with_suffix(".npy"), pixels)
    return path.with_suffix(".npy")


def as_png(path: Path, pixels: np.ndarray) -> Path:
    path = path.with_suffix(".png")
    path.write_bytes(imagecodecs.png_encode(pixels))
    return path


def as_grey_png(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels[:, :, 0]).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def as_jp2(path: Path, pixels: np.ndarray) -> Path:
    height, width, count = pixels.shape
    with rasterio.open(
        path.with_suffix(".jp2"), "w", "JP2OpenJPEG", width, height, count, CRS, rasterio.Affine(*PLACE), "uint16",
        QUALITY=100, REVERSIBLE="YES",
    ) as file:  # fmt: skip
        file.write(np.moveaxis(pixels, 2, 0))
    return path.with_suffix(".jp2")


def as_plain_tiff(path: Path, pixels: np.ndarray) -> Path:
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    return path


FILES = [write, as_plain_tiff, as_jp2, as_png, as_grey_png, as_npy]


@pytest.mark.parametrize("bits", [10, 11, 12, 14])
@pytest.mark.parametrize("made", FILES, ids=lambda made: made.__name__)
def test_fewer_bits_than_the_file_has_fill_the_scale_and_that_is_said_and_stored(
    tmp_path: Path, made: Callable[..., Path], bits: int
) -> None:
    path = made(tmp_path / "a.tif", sensor(bits))
    top = 2**bits - 1
    with open_source(path, EIGHT) as source:
        first = source.read(0, 0, 30, 20)
        assert source.value_range == ((0.0, float(top)),)
        assert f"uint16 0 to {top} as black to white ({bits} bits by its values" in source.note
    assert first.dtype == np.uint8
    assert first[7, 10, 0] == round(int(top * 0.97) / top * 255)
    assert first[0, 0, 0] == round(int(top * 0.25) / top * 255)
    stored = source.value_range[0]
    with open_source(path, OpenOptions(channels=3, value_range=stored)) as source:  # the range of the first run, given
        assert_array_equal(source.read(0, 0, 30, 20), first)


@pytest.mark.parametrize("made", FILES, ids=lambda made: made.__name__)
def test_a_given_range_and_given_bands_hold_for_every_file(tmp_path: Path, made: Callable[..., Path]) -> None:
    pixels = sensor(12, 4) + np.arange(4, dtype=np.uint16)
    path = made(tmp_path / "a.tif", pixels)
    grey = made is as_grey_png
    options = OpenOptions(bands=(1,) if grey else (3, 2, 1), value_range=(0, 8000))
    with open_source(path, options) as source:
        expected = pixels[:, :, [0] if grey else [2, 1, 0]]
        assert_array_equal(source.read(0, 0, 30, 20), np.round(expected / 8000 * 255))
        assert source.value_range == ((0, 8000),)


@pytest.mark.parametrize("reader", ["tifffile", "pyvips", "whole", "rasterio"])
def test_every_reader_of_tiffs_takes_bands_and_ranges(tmp_path: Path, reader: str) -> None:
    pixels = sensor(12, 4) + np.arange(4, dtype=np.uint16)
    path = as_plain_tiff(tmp_path / "a.tif", pixels)
    with READERS[reader](path, OpenOptions(bands=(3, 2, 1), value_range=(0, 8000)), name="a") as source:
        assert_array_equal(source.read(0, 0, 30, 20), np.round(pixels[:, :, [2, 1, 0]] / 8000 * 255))
    with READERS[reader](path, OpenOptions(channels=4, find_range=True), name="a") as source:
        assert source.value_range == ((0.0, 4095.0),)
        assert source.read(0, 0, 30, 20)[0, 0, 0] == round(1023 / 4095 * 255)


@pytest.mark.parametrize(
    ("tags", "most"),
    [({"NBITS": 12}, 4095), ({"SIGNIFICANT_BITS": "11"}, 2047), ({"STATISTICS_MAXIMUM": "1900.5"}, 2047), ({}, 255)],
    ids=["NBITS", "SIGNIFICANT_BITS", "statistics", "values"],
)
def test_what_the_metadata_say_goes_before_the_values(tmp_path: Path, tags: dict[str, Any], most: int) -> None:
    pixels = np.full((20, 30), 200, np.uint16)
    settings = {key: value for key, value in tags.items() if key == "NBITS"}
    path = geotiff(tmp_path / "a.tif", pixels, PLACE, CRS, **settings)
    with rasterio.open(path, "r+") as file:
        file.update_tags(1, **{key: value for key, value in tags.items() if key != "NBITS"})
    with open_source(path, EIGHT) as source:
        assert source.value_range == ((0.0, float(most)),)


def test_values_of_16_bits_and_detectors_of_16_bits_keep_the_full_scale(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", sensor(16))
    with open_source(path, EIGHT) as source:
        assert source.value_range is None
        assert "uint16 0 to 65535 as black to white" in source.note
        assert_array_equal(source.read(0, 0, 30, 20), sensor(16))
    wide = OpenOptions().completed({KEY: PixelRule(channels=3, bits=16).to_dict()})
    with open_source(write(tmp_path / "b.tif", sensor(11)), wide) as source:
        assert_array_equal(source.read(0, 0, 30, 20), sensor(11))


def test_no_data_is_no_part_of_a_range(tmp_path: Path) -> None:
    pixels = sensor(11)
    pixels[:3] = 65535
    with open_source(write(tmp_path / "a.tif", pixels, nodata=65535), EIGHT) as source:
        assert source.value_range == ((0.0, 2047.0),)


def test_the_job_says_and_stores_the_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    path = write(tmp_path / "a.tif", sensor(11))
    _, model = spots_model(monkeypatch, tmp_path)
    said: list[str] = []
    predict(path, model=model, out=tmp_path / "out", draw=0, warn=said.append)
    assert any("0 to 2047 as black to white (11 bits by its values, up to 1985)" in line for line in said)
    first = json.loads((tmp_path / "out" / "detections.json").read_text())
    (image,) = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert image["value_range"] == [[0.0, 2047.0]]
    assert [one["bbox"] for one in first] == [[9.0, 6.0, 2.0, 2.0]]
    low, high = image["value_range"][0]
    predict(path, model=model, out=tmp_path / "again", draw=0, value_range=(low, high))
    assert json.loads((tmp_path / "again" / "detections.json").read_text()) == first


def claiming(path: Path, tag: str, value: int) -> Path:
    """A small TIFF of one strip whose header claims another value of a tag."""
    tifffile.imwrite(path, np.zeros((96, 96), np.uint8), photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        entry = file.pages[0].tags[tag]
    content = bytearray(path.read_bytes())
    kind = "<I" if entry.dtype == 4 else "<H"
    content[entry.valueoffset : entry.valueoffset + struct.calcsize(kind)] = struct.pack(kind, value)
    path.write_bytes(content)
    return path


CLAIMS = [
    ("ImageLength", 70000, "its 70000x96 pixels take 730 strips or tiles, and it has 1"),
    ("SamplesPerPixel", 65281, "it claims 65281 bands, where 4096 are read"),
]


@pytest.mark.parametrize("with_gdal", [True, False])
@pytest.mark.parametrize(("tag", "value", "why"), CLAIMS)
def test_what_the_file_does_not_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str, value: int, why: str, with_gdal: bool
) -> None:
    monkeypatch.setattr(raster, "has_rasterio", lambda: with_gdal)
    path = claiming(tmp_path / "a.tif", tag, value)
    with pytest.raises(UserError, match=rf"broken \({why}\)"):
        open_source(path)
    with pytest.raises(UserError, match=why):  # in training, too
        read_image(path)


def sparse(path: Path, side: int, block: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path, "w", "GTiff", side, side, 1, None, None, "uint8", tiled=True, blockxsize=block, blockysize=block,
            SPARSE_OK=True, BIGTIFF="YES",
        ):  # fmt: skip
            pass
    return path


@pytest.mark.parametrize("with_gdal", [True, False])
def test_a_sparse_raster_of_a_million_by_a_million_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_gdal: bool
) -> None:
    monkeypatch.setattr(raster, "has_rasterio", lambda: with_gdal)
    path = sparse(tmp_path / "a.tif", 1_000_000, 8192)
    with pytest.raises(UserError, match=r"1,000,000 megapixels in 0\.\d MB.*--max-megapixels"):
        open_source(path)
    predictor = Predictor(lambda _: [], tile=64, overlap=16, options=OpenOptions(max_pixels=10**13))
    (result,) = predictor.stream([path])
    assert result.problem is not None
    assert f"over the limit of {MOST_TILES:,} for one image" in str(result.problem)
    (result,) = Predictor(lambda _: [], options=OpenOptions(max_pixels=2 * 10**11)).stream([path])
    assert result.problem is not None


def test_pieces_and_whole_images_over_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.random.default_rng(0).integers(0, 9, (300, 400), np.uint8), rowsperstrip=300
    )
    write(tmp_path / "b.tif", np.zeros((300, 400), np.uint8), blockysize=300, compress="deflate")
    limit = OpenOptions(max_pixels=100_000)
    with pytest.raises(UserError, match=r"tiles or strips of 0 megapixels are over the limit of 0\.1"):
        open_source(tmp_path / "b.tif", limit)
    monkeypatch.setattr(raster, "has_pyvips", lambda: False)
    with pytest.raises(UserError, match=r"over the limit of 0\.1 for one piece"):
        open_source(tmp_path / "a.tif", limit)
    geotiff(tmp_path / "c.tif", np.zeros((320, 400), np.uint8), PLACE, CRS, tiled=True, blockxsize=64, blockysize=64)
    (result,) = Predictor(lambda _: [], options=limit).stream([tmp_path / "c.tif"])  # whole images, no tiles
    assert "give a --tile, or raise --max-megapixels" in str(result.problem)


def test_a_jpeg_2000_of_more_than_pillow_reads_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_jp2(tmp_path / "a.jp2", sensor(12, 4))
    monkeypatch.setattr(raster, "has_rasterio", lambda: False)
    with pytest.raises(UserError, match=r"JPEG 2000 of 4 bands of 16 bits: not read without GDAL.*install.*rasterio"):
        open_source(path)


def test_complex_values_are_refused_in_one_line(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "plain.tif", np.full((20, 30), 1 + 2j, np.complex64), photometric="minisblack")
    with rasterio.open(
        tmp_path / "placed.tif", "w", "GTiff", 30, 20, 1, CRS, rasterio.Affine(*PLACE), "complex64"
    ) as file:
        file.write(np.full((1, 20, 30), 1 + 2j, np.complex64))
    for name in ("plain.tif", "placed.tif"):
        with pytest.raises(UserError, match=f"{name}: .*complex"):
            open_source(tmp_path / name, OpenOptions(value_range=((0.0, 255.0),)))
