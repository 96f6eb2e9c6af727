"""Images of any number of bands and any values: read alike by everybody, and never cut in silence."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from flyspeck.data.band_choice import Survey, choose_rule
from flyspeck.data.bands import KEY, PixelRule, rule_of
from flyspeck.data.headers import read_header
from flyspeck.data.images import read_image, read_size
from flyspeck.errors import UserError
from flyspeck.infer.source import open_source
from flyspeck.infer.windows import OpenOptions

tifffile = pytest.importorskip("tifffile")
DTYPES = ("uint8", "uint16", "int16", "float32")


def values(bands: int, dtype: str, size: tuple[int, int] = (21, 34)) -> np.ndarray:
    rng = np.random.default_rng(bands)
    if dtype == "float32":
        return rng.normal(size=(*size, bands)).astype(np.float32)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (*size, bands), endpoint=True).astype(dtype)


def write_tiff(path: Path, pixels: np.ndarray, *, planar: bool = False, **options: object) -> Path:
    """`(H, W, C)`, no band of it tagged as alpha."""
    bands = pixels.shape[2]
    stored = pixels[:, :, 0] if bands == 1 else np.moveaxis(pixels, 2, 0) if planar else pixels
    how = {} if bands == 1 else {"planarconfig": "separate" if planar else "contig", "extrasamples": (0,) * (bands - 1)}
    tifffile.imwrite(path, stored, photometric="minisblack", **how, **options)
    return path


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["plain", "planar", "deflate big-endian", "lzw tiles"])
def test_a_tiff_of_any_bands_and_values(tmp_path: Path, bands: int, dtype: str, layout: str) -> None:
    if layout == "lzw tiles":
        pytest.importorskip("imagecodecs")
    pixels = values(bands, dtype)
    options = {
        "deflate big-endian": {"compression": "zlib", "predictor": dtype != "float32", "byteorder": ">"},
        "lzw tiles": {"compression": "lzw", "tile": (16, 16)},
    }.get(layout, {})
    path = write_tiff(tmp_path / "a.tif", pixels, planar=layout == "planar", **options)
    header = read_header(path)
    assert (header.size, header.bands, header.dtype, header.alpha) == ((21, 34), bands, dtype, False)
    found = read_image(path)
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    assert_array_equal(found, pixels)
    assert read_size(path) == (21, 34)
    picked = read_image(path, bands=(bands, 1))
    assert_array_equal(picked, pixels[:, :, [bands - 1, 0]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bands", [1, 2, 4, 8])
def test_a_raster_by_windows_gives_the_pixels_of_training(tmp_path: Path, bands: int, dtype: str) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = values(bands, dtype)
    path = tmp_path / "a.tif"
    place = {"crs": "EPSG:32617", "transform": rasterio.Affine(0.1, 0, 400000, 0, -0.1, 3280000)}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=21,
        width=34,
        count=bands,
        dtype=dtype,
        photometric="MINISBLACK",
        alpha="NO",
        **place,
    ) as file:
        file.write(np.moveaxis(pixels, 2, 0))
    pairs = tuple((-1.0 - band, 2.0 + 100 * band) for band in range(bands))
    rule = PixelRule(channels=bands, value_range=pairs, of=dtype)
    options = OpenOptions().completed({"mean": [0] * bands, KEY: rule.to_dict()})
    with open_source(path, options) as source:
        assert source.geo is not None
        assert source.bands == bands
        assert_array_equal(source.read(3, 5, 30, 20), rule.read(path)[5:20, 3:30])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_png_of_16_bits_keeps_them(tmp_path: Path, mode: str) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    pixels = values(len(mode), "uint16")
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(pixels))
    header = read_header(path)
    colours = len(mode) - ("A" in mode)
    assert (header.bands, header.dtype, header.alpha) == (colours, "uint16", "A" in mode)
    assert_array_equal(read_image(path, bands=range(1, len(mode) + 1)), pixels)
    on_black = pixels[:, :, :colours].astype(np.float64)
    if "A" in mode:
        on_black = on_black * pixels[:, :, colours:] / 65535
        assert_array_equal(read_image(path, channels=len(mode)), pixels)
    assert_allclose(read_image(path), on_black, atol=0.5)


def test_colours_of_16_bits_for_a_detector_of_8_are_cut_and_that_is_said(tmp_path: Path) -> None:
    pixels = values(3, "uint16")
    (tmp_path / "a.png").write_bytes(pytest.importorskip("imagecodecs").png_encode(pixels))
    with open_source(tmp_path / "a.png", OpenOptions().completed({"mean": [0.5] * 3})) as source:
        assert_array_equal(source.read(0, 0, 34, 21), pixels >> 8)
        assert "cut to 8" in source.note
    with open_source(tmp_path / "a.png", OpenOptions().completed({KEY: PixelRule(channels=3).to_dict()})) as source:
        assert_array_equal(source.read(0, 0, 34, 21), pixels)


def test_an_array_file_is_an_image(tmp_path: Path) -> None:
    pixels = values(5, "float32")
    np.save(tmp_path / "a.npy", pixels)
    assert_array_equal(read_image(tmp_path / "a.npy"), pixels)
    assert read_header(tmp_path / "a.npy").kind == "5 bands of float32"
    np.save(tmp_path / "b.npy", np.zeros((2, 2, 2, 2)))
    with pytest.raises(UserError, match=r"b\.npy: an image must be \(H, W\)"):
        read_image(tmp_path / "b.npy")


def test_alpha_is_laid_on_black_and_read_where_it_makes_the_number(tmp_path: Path) -> None:
    pixels = values(4, "uint16")
    pixels[:, :, 3] = np.where(np.arange(34) % 2, 65535, 0)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    assert read_header(tmp_path / "a.tif").alpha
    assert_array_equal(read_image(tmp_path / "a.tif"), pixels[:, :, :3] * (pixels[:, :, 3:] > 0))
    assert_array_equal(read_image(tmp_path / "a.tif", channels=4), pixels)
    assert_array_equal(read_image(tmp_path / "a.tif", bands=(4, 1)), pixels[:, :, [3, 0]])
    with open_source(tmp_path / "a.tif", OpenOptions(channels=3)) as source:
        assert "transparency laid on black" in source.note
    Image.fromarray((pixels >> 8).astype(np.uint8), "RGBA").save(tmp_path / "b.png")
    assert_array_equal(read_image(tmp_path / "b.png", channels=4), pixels >> 8)


@pytest.mark.parametrize(("have", "want"), [(2, 1), (2, 3), (4, 3), (4, 1), (8, 4), (3, 4), (1, 2)])
def test_bands_are_never_cut_in_silence(tmp_path: Path, have: int, want: int) -> None:
    path = write_tiff(tmp_path / "a.tif", values(have, "uint8"))
    with pytest.raises(UserError, match=rf"a\.tif: an image of {have} bands? where {want} are wanted.*data\.channels"):
        read_image(path, channels=want)
    for image in (path, values(have, "uint8")):
        with pytest.raises(UserError, match=rf"an image of {have} bands? for a detector of {want}.*--bands"):
            open_source(image, OpenOptions(channels=want))


def test_a_band_that_is_not_there(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", values(4, "uint8"))
    for bands in ((5,), (0, 1), ()):
        with pytest.raises(UserError, match=r"a\.tif: bands .* of an image that has 4"):
            read_image(path, bands=bands)


def test_values_that_nobody_reads_are_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 9, 4), np.int32), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match=r"a\.tif: its pixels are 4 bands of int32; convert"):
        read_image(tmp_path / "a.tif")


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiff(tmp_path / "a.tif", values(4, "uint8"))
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name == "tifffile":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert read_header(path).kind == "4 bands of uint8"
    with pytest.raises(UserError, match=r"a\.tif: this needs the package 'tifffile'; .*pip install 'tifffile>="):
        read_image(path)


def test_nodata_is_black_and_no_part_of_a_range(tmp_path: Path) -> None:
    pixels = values(2, "float32")
    pixels[0] = -9999
    path = write_tiff(tmp_path / "a.tif", pixels, extratags=[(42113, "s", 0, "-9999", True)])
    assert np.isnan(read_image(path)[0]).all()
    rule = PixelRule(value_range=((-5.0, 5.0),))
    assert (rule.read(path)[0] == 0).all()


def test_a_collar_of_16_bits_is_no_part_of_a_range(tmp_path: Path) -> None:
    pixels = values(2, "uint16") % 4000
    pixels[0] = 65535
    paths = [write_tiff(tmp_path / "a.tif", pixels, extratags=[(42113, "s", 0, "65535", True)])]
    rule = choose_rule(Survey("a set", {path: read_header(path) for path in paths}), say=print)
    assert rule.value_range == ((0, 4095),)


@pytest.mark.parametrize("pixels", [np.array([[[-3, 9]]], np.int16), np.zeros((1, 1, 2), np.float32)])
def test_values_without_a_black_and_white_ask_for_them(pixels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"say which values.*data\.value_range.*--value-range"):
        PixelRule().scaled(pixels)
    with pytest.raises(UserError, match="value-range"):
        open_source(pixels)


@given(
    dtype=st.sampled_from(DTYPES),
    low=st.floats(-3e4, 3e4),
    width=st.floats(1, 6e4),
    per_band=st.booleans(),
    bits=st.sampled_from([8, 16]),
)
def test_a_range_is_applied_as_its_words_say(dtype: str, low: float, width: float, per_band: bool, bits: int) -> None:
    pixels = values(2, dtype, (5, 7))
    pairs = ((low, low + width), (low - 1, low + 2 * width)) if per_band else ((low, low + width),)
    found = PixelRule(value_range=pairs, bits=bits).scaled(pixels)
    top = 2**bits - 1
    assert found.dtype == (np.uint8 if bits == 8 else np.uint16)
    for band in range(2):
        a, b = pairs[band if per_band else 0]
        for value, got in zip(pixels[:, :, band].ravel().tolist(), found[:, :, band].ravel().tolist(), strict=True):
            assert got == round(min(max((value - a) / (b - a), 0), 1) * top)


def test_a_range_found_for_16_bits_leaves_8_bits_alone() -> None:
    rule = PixelRule(value_range=((0, 4095),), of="uint16")
    assert_array_equal(rule.scaled(np.array([[[4095], [0]]], np.uint16)).ravel(), [65535, 0])
    assert_array_equal(rule.scaled(np.array([[[200]]], np.uint8)).ravel(), [200])
    with pytest.raises(UserError, match="float32"):
        rule.scaled(np.zeros((1, 1, 1), np.float32))


def test_a_rule_outlives_its_run() -> None:
    rule = PixelRule(channels=3, bands=(4, 3, 2), value_range=((0, 1), (2, 3), (4, 5)), of="float32")
    assert rule_of({"mean": [0, 0, 0], KEY: rule.to_dict()}) == rule
    assert rule_of({"mean": [0.5] * 3}) == PixelRule(channels=3, bits=8)  # of a version that kept none
    assert rule_of({"channels": 1}).channels == 1  # likewise of an exported file
    wanted = OpenOptions(bands=(1, 2, 3)).completed({"mean": [0] * 3, KEY: rule.to_dict()})
    assert (wanted.bands, wanted.value_range, wanted.bits) == ((1, 2, 3), rule.value_range, 16)
    given = OpenOptions(value_range=(0, 9)).completed({"mean": [0] * 3, KEY: rule.to_dict()})
    assert (given.value_range, given.of) == ((0, 9), None)
