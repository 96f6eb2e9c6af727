"""Rasters by windows; each reader's tests run where its extra is installed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from planted import SeesPlanted, plant

from flyspeck.errors import UserError, install
from flyspeck.infer import raster
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.source import open_source
from flyspeck.infer.tiff_windows import TifffileSource
from flyspeck.infer.vips_windows import VipsSource
from flyspeck.infer.windows import OpenOptions

WINDOWS = [(0, 0, 130, 90), (10, 20, 30, 50), (60, 40, 70, 70), (129, 89, 130, 90)]


def pixels_of(dtype: type = np.uint8, bands: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 200, (90, 130, bands)).astype(dtype)


@pytest.mark.parametrize("layout", ["tiled", "strips", "planar", "jpeg-free deflate", "grey16"])
def test_tifffile_windows(tmp_path: Path, layout: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = pixels_of(np.uint16, 1) if layout == "grey16" else pixels_of()
    path = tmp_path / "a.tif"
    settings = {
        "tiled": {"tile": (32, 48)},
        "strips": {"rowsperstrip": 7},
        "planar": {"tile": (32, 32), "planarconfig": "separate"},
        "jpeg-free deflate": {"tile": (32, 48), "compression": "zlib"},
        "grey16": {"tile": (32, 32)},
    }[layout]
    stored = pixels[:, :, 0] if layout == "grey16" else np.moveaxis(pixels, 2, 0) if layout == "planar" else pixels
    tifffile.imwrite(path, stored, photometric="minisblack" if layout == "grey16" else "rgb", **settings)
    with TifffileSource(path, name="a") as source:
        for x1, y1, x2, y2 in WINDOWS:
            assert_array_equal(source.read(x1, y1, x2, y2), pixels[y1:y2, x1:x2])
        assert source.read(0, 0, 130, 90, (45, 65)).shape == (45, 65, pixels.shape[2])


def test_tifffile_takes_the_pyramid_for_a_coarser_scale(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(np.full((128, 128, 3), 10, np.uint8), subifds=1, tile=(32, 32), photometric="rgb")
        writer.write(np.full((64, 64, 3), 200, np.uint8), subfiletype=1, tile=(32, 32), photometric="rgb")
    with TifffileSource(tmp_path / "p.tif", name="p") as source:
        assert (source.read(0, 0, 64, 64) == 10).all()
        assert (source.read(0, 0, 64, 64, (48, 48)) == 10).all()
        assert (source.read(0, 0, 64, 64, (32, 32)) == 200).all()


def test_a_truncated_tiff_leaves_a_hole_and_the_rest(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    objects = np.array([[4, 4, 9, 9], [70, 10, 75, 18]])
    tifffile.imwrite(tmp_path / "a.tif", plant((96, 96), objects)[:, :, 0], tile=(32, 32), photometric="minisblack")
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) - 1000])
    source = TifffileSource(tmp_path / "a.tif", name="a")
    with pytest.raises(UserError, match="segment 8"):
        source.read(64, 64, 96, 96)
    source.close()
    import flyspeck.infer.reading as predictor_module

    predictor = Predictor(SeesPlanted(objects), tile=32, overlap=8)
    original = predictor_module.open_source
    try:
        predictor_module.open_source = lambda image, options, name: TifffileSource(image, name=name)
        (result,) = predictor.stream([tmp_path / "a.tif"])
    finally:
        predictor_module.open_source = original
    assert result.holes
    assert all(x2 > 64 and y2 > 64 for (_, _, x2, y2), _ in result.holes)
    assert_array_equal(sorted(result.detections.boxes.tolist()), sorted(objects.tolist()))


def write_geotiff(path: Path, pixels: np.ndarray, **settings: object) -> None:
    rasterio = pytest.importorskip("rasterio")
    height, width, count = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype, **settings}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.moveaxis(pixels, 2, 0))


def geo_settings() -> dict:
    rasterio = pytest.importorskip("rasterio")
    return {"crs": "EPSG:32617", "transform": rasterio.Affine(0.1, 0, 400000, 0, -0.1, 3280000)}


def test_rasterio_windows_and_place(tmp_path: Path) -> None:
    pixels = pixels_of(bands=4)
    write_geotiff(tmp_path / "a.tif", pixels, tiled=True, blockxsize=32, blockysize=32, **geo_settings())
    with open_source(tmp_path / "a.tif") as source:
        assert isinstance(source, raster.RasterioSource)
        for x1, y1, x2, y2 in WINDOWS:
            assert_array_equal(source.read(x1, y1, x2, y2), pixels[y1:y2, x1:x2, :3])
        assert source.geo is not None
        assert source.geo.crs == "EPSG:32617"
        assert_allclose(source.geo.transform, (0.1, 0, 400000, 0, -0.1, 3280000))
        assert source.read(0, 0, 130, 90, (45, 65)).shape == (45, 65, 3)
    with open_source(tmp_path / "a.tif", OpenOptions(bands=(4, 2))) as source:
        assert_array_equal(source.read(10, 20, 30, 50), pixels[20:50, 10:30, [3, 1]])
    with pytest.raises(UserError, match="choose from 1 to 4"):
        open_source(tmp_path / "a.tif", OpenOptions(bands=(5,)))


def test_rasterio_other_pixel_types_need_a_range(tmp_path: Path) -> None:
    values = np.linspace(-1, 3, 90 * 130).reshape(90, 130, 1).astype(np.float32)
    values[0, 0] = np.nan
    write_geotiff(tmp_path / "f.tif", values, **geo_settings())
    with pytest.raises(UserError, match=r"float32.*value-range"):
        open_source(tmp_path / "f.tif")
    with open_source(tmp_path / "f.tif", OpenOptions(value_range=(0, 2))) as source:
        expected = np.round((values / 2).clip(0, 1) * 255)
        expected[0, 0] = expected[0, 1]  # no number: the nearest one
        assert_array_equal(source.read(0, 0, 130, 90), expected)


def test_plain_tiffs_are_decoded_as_images(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    pixels = pixels_of()
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with open_source(tmp_path / "a.tif") as source:
        assert not isinstance(source, raster.RasterioSource)
        assert_array_equal(source.read(0, 0, 130, 90), pixels)


def test_rasterio_refuses_what_is_no_raster(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    (tmp_path / "a.tif").write_bytes(b"II*\0nonsense")
    with pytest.raises(UserError, match="not a raster"):
        open_source(tmp_path / "a.tif")


def test_vips_windows(tmp_path: Path) -> None:
    pytest.importorskip("pyvips")
    pixels = pixels_of()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with open_source(tmp_path / "a.png", OpenOptions(max_pixels=1000)) as source:
        assert isinstance(source, VipsSource)
        for x1, y1, x2, y2 in WINDOWS:
            assert_array_equal(source.read(x1, y1, x2, y2), pixels[y1:y2, x1:x2])


@pytest.mark.parametrize(
    ("kind", "extra"), [(raster.RasterioSource, "geo"), (TifffileSource, "tiff"), (VipsSource, "vips")]
)
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, extra: str) -> None:
    for package in ("rasterio", "tifffile", "pyvips"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=re.escape(install(extra))):
        kind(tmp_path / "a.tif", OpenOptions(), name="a")


def test_bands_and_scale_are_stated(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "a.tif", pixels_of(np.uint16, 5), **geo_settings())
    with open_source(tmp_path / "a.tif") as source:
        assert source.note == "bands 1,2,3,4,5 of 5, uint16 0 to 65535 as black to white"
    with open_source(tmp_path / "a.tif", OpenOptions(bands=(5,), value_range=(0, 4000))) as source:
        assert source.note == "bands 5 of 5, uint16 0 to 4000 as black to white"
        assert source.read(0, 0, 4, 4).dtype == np.uint8
    write_geotiff(tmp_path / "b.tif", pixels_of(), **geo_settings())
    with open_source(tmp_path / "b.tif") as source:
        assert source.note == ""


def test_a_image_packed_beyond_belief_is_refused_until_the_limit_is_raised(tmp_path: Path) -> None:
    pytest.importorskip("pyvips")
    Image.fromarray(np.zeros((3000, 3000), np.uint8)).save(tmp_path / "a.png", optimize=True)
    with pytest.raises(UserError, match=r"9 megapixels in 0\.0 MB.*--max-megapixels"):
        open_source(tmp_path / "a.png", OpenOptions(max_pixels=1_000_000))
    with open_source(tmp_path / "a.png", OpenOptions(max_pixels=10_000_000)) as source:
        assert source.size == (3000, 3000)
