"""What a TIFF's samples mean, said in rarer ways: every reader understands the same, with and without GDAL."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from spots import geotiff

from flyspeck.data.headers import read_header
from flyspeck.data.images import read_image
from flyspeck.errors import UserError
from flyspeck.infer import raster
from flyspeck.infer.raster import RasterioSource
from flyspeck.infer.source import open_source
from flyspeck.infer.tiff_windows import TifffileSource
from flyspeck.infer.vips_windows import VipsSource
from flyspeck.infer.whole import open_whole
from flyspeck.infer.windows import OpenOptions, Source

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
READERS: dict[str, Callable[..., Source]] = {
    "rasterio": RasterioSource,
    "tifffile": TifffileSource,
    "pyvips": VipsSource,
    "whole": open_whole,
    "any": open_source,
}
NUMBERS = np.arange(48 * 64).reshape(48, 64) * 7 % 16
CLEAR = 30  # columns from here on are transparent


@pytest.fixture(params=READERS)
def opened(request: pytest.FixtureRequest) -> Callable[..., Source]:
    for package in ("rasterio", "tifffile", "pyvips"):
        pytest.importorskip(package)
    return READERS[request.param]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_colour_map_counts_though_the_file_calls_itself_grey(
    tmp_path: Path, opened: Callable[..., Source], bits: int
) -> None:
    path = mapped(tmp_path / "a.tif", bits)
    colours = np.stack([NUMBERS * 16, 255 - NUMBERS, NUMBERS], 2)
    with opened(path, OpenOptions(channels=3), name="a") as source:
        seen, there = source.window(0, 0, 64, 48)
    assert there is None
    assert_array_equal(seen, colours)
    assert_array_equal(read_image(path), colours)
    assert_array_equal(read_image(path, bands=[3]), NUMBERS[:, :, None])
    header = read_header(path)
    assert (header.bands, header.dtype, header.coloured) == (3, "uint8", True)


def mapped(path: Path, bits: int) -> Path:
    """A TIFF of 4, 8 or 16 bits: Photometric MinIsBlack, and a ColorMap."""
    import rasterio
    import tifffile

    colours = np.zeros((3, 2**bits), np.uint16)
    colours[:, :16] = np.stack([np.arange(16) * 16, 255 - np.arange(16), np.arange(16)]) * 257
    if bits == 4:  # written as a palette by GDAL; only the tag is changed
        with rasterio.open(
            path, "w", driver="GTiff", height=48, width=64, count=1, dtype="uint8", nbits=4, photometric="PALETTE"
        ) as file:
            file.write(NUMBERS.astype(np.uint8), 1)
            file.write_colormap(1, {k: (*(colours[:, k] // 257).tolist(), 255) for k in range(16)})
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].aspage().tags["PhotometricInterpretation"].overwrite(1)
        return path
    tags = [(320, 3, colours.size, tuple(colours.ravel().tolist()), True)]
    tifffile.imwrite(path, NUMBERS.astype(f"uint{bits}"), photometric="minisblack", extratags=tags)
    return path


@pytest.mark.parametrize("how", ["associated", "not associated", "planes", "16 bits"])
def test_grey_with_alpha_told_by_the_tag_of_extra_samples(
    tmp_path: Path, opened: Callable[..., Source], how: str
) -> None:
    import tifffile

    pixels = np.full((48, 64, 2), 100, np.uint8)
    pixels[:, :CLEAR, 1], pixels[:, CLEAR:] = 255, 0
    wide = pixels.astype(np.uint16) * 257 if how == "16 bits" else pixels
    stored = np.moveaxis(pixels, 2, 0) if how == "planes" else wide
    planes = "separate" if how == "planes" else "contig"
    path = tmp_path / "a.tif"
    extra = (1 if how == "associated" else 2,)
    tifffile.imwrite(path, stored, photometric="minisblack", planarconfig=planes, extrasamples=extra)
    if how == "planes" and opened is VipsSource:
        with pytest.raises(UserError, match="this needs the package 'tifffile'"):
            opened(path, OpenOptions(channels=3), name="a")
        return
    with opened(path, OpenOptions(channels=3), name="a") as source:
        seen, there = source.window(0, 0, 64, 48)
        assert source.bands == 1
    assert_array_equal(there, np.broadcast_to(np.arange(64) < CLEAR, (48, 64)))
    assert (seen == wide[0, 0, 0]).all()
    assert_array_equal(read_image(path, channels=1)[:, :, 0], wide[:, :, 0])
    assert_array_equal(read_image(path, channels=2), wide)


def test_transparency_that_only_gdals_file_beside_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio")
    pixels = np.full((48, 64, 2), 100, np.uint8)
    pixels[:, :CLEAR, 1], pixels[:, CLEAR:, 1] = 255, 0
    path = tmp_path / "a.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rasterio's, on writing a file without a place
        geotiff(path, pixels, (1, 0, 0, 0, 1, 0), None)
    said = '<PAMDataset><PAMRasterBand band="2"><ColorInterp>Alpha</ColorInterp></PAMRasterBand></PAMDataset>'
    path.with_name("a.tif.aux.xml").write_text(said)
    with open_source(path, OpenOptions(channels=3)) as source:
        _, there = source.window(0, 0, 64, 48)
    assert_array_equal(there, np.broadcast_to(np.arange(64) < CLEAR, (48, 64)))
    monkeypatch.setattr(raster, "has_rasterio", lambda: False)
    with pytest.raises(UserError, match=r"the transparency that a\.tif\.aux\.xml names: not read without GDAL"):
        open_source(path, OpenOptions(channels=3))
