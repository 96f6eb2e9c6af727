"""Boxes of every kind of raster, read back from the files of a job: within a millimetre, or 1e-9 degrees, of where they are."""

from __future__ import annotations

import csv
import json
import math
import re
import sqlite3
import struct
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from spots import geotiff, spots_model, spotted

from flyspeck.errors import UserError
from flyspeck.infer import raster
from flyspeck.infer.job import predict

rasterio = pytest.importorskip("rasterio")
SPOTS = [[10.0, 20.0, 14.0, 24.0], [50.0, 31.0, 54.0, 35.0]]
PIXELS = spotted((48, 64), [(10, 20), (50, 31)])
UTM, NORTH = "EPSG:32633", (0.1, 0.0, 500000.0, 0.0, -0.1, 4000000.0)
DEGREES = (1e-6, 0.0, 12.5, 0.0, -1e-6, 41.25)
TURNED = (0.1 * math.cos(0.5), 0.1 * math.sin(0.5), 500000.0, 0.1 * math.sin(0.5), -0.1 * math.cos(0.5), 4000000.0)
Made = tuple[Path, tuple[float, ...], str | None]


def on_map(transform: tuple[float, ...], x: float, y: float) -> tuple[float, float]:
    a, b, c, d, e, f = transform
    return a * x + b * y + c, d * x + e * y + f


def tiff(folder: Path) -> Made:
    return geotiff(folder / "a.tif", PIXELS, NORTH, UTM), NORTH, UTM


def degrees(folder: Path) -> Made:
    return geotiff(folder / "a.tif", PIXELS, DEGREES, "EPSG:4326"), DEGREES, "EPSG:4326"


def turned(folder: Path) -> Made:
    return geotiff(folder / "a.tif", PIXELS, TURNED, UTM), TURNED, UTM


def south_up(folder: Path) -> Made:
    up = (0.1, 0.0, 500000.0, 0.0, 0.1, 4000000.0)
    return geotiff(folder / "a.tif", PIXELS, up, UTM), up, UTM


def point(folder: Path) -> Made:
    """`AREA_OR_POINT=Point`: the tie point is the centre of a pixel, and GDAL moves it."""
    geotiff(folder / "a.tif", PIXELS, NORTH, UTM)
    with rasterio.open(folder / "a.tif", "r+") as file:
        file.update_tags(AREA_OR_POINT="Point")
        file.transform = rasterio.Affine(*NORTH)
    return folder / "a.tif", NORTH, UTM


def jpeg2000(folder: Path) -> Made:
    path = folder / "a.jp2"
    with rasterio.open(
        path, "w", "JP2OpenJPEG", 64, 48, 1, UTM, rasterio.Affine(*NORTH), "uint8", QUALITY=100, REVERSIBLE="YES"
    ) as file:
        file.write(PIXELS[None])
    return path, NORTH, UTM


def png_world(folder: Path) -> Made:
    """A world file names the centre of the first pixel."""
    from PIL import Image

    Image.fromarray(PIXELS).save(folder / "a.png")
    (folder / "a.pgw").write_text("0.1\n0\n0\n-0.1\n500000.05\n3999999.95\n")
    return folder / "a.png", NORTH, None


def jpeg_wld(folder: Path) -> Made:
    from PIL import Image

    Image.fromarray(PIXELS).save(folder / "a.jpg", quality=100)
    (folder / "a.wld").write_text("0.1\n0\n0\n-0.1\n500000.05\n3999999.95\n")
    return folder / "a.jpg", NORTH, None


def png_pam(folder: Path) -> Made:
    from PIL import Image

    Image.fromarray(PIXELS).save(folder / "a.png")
    (folder / "a.png.aux.xml").write_text(
        f"<PAMDataset><SRS>{UTM}</SRS><GeoTransform>500000, 0.1, 0, 4000000, 0, -0.1</GeoTransform></PAMDataset>"
    )
    return folder / "a.png", NORTH, UTM


def vrt(folder: Path) -> Made:
    geotiff(folder / "tile.tif", PIXELS, NORTH, UTM)
    (folder / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="64" rasterYSize="48"><SRS>{UTM}</SRS>'
        "<GeoTransform>500000, 0.1, 0, 4000000, 0, -0.1</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">tile.tif</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return folder / "a.vrt", NORTH, UTM


def control_points(folder: Path) -> Made:
    path = folder / "a.tif"
    places = [(0, 0), (64, 0), (64, 48), (0, 48), (20, 30)]
    points = [rasterio.control.GroundControlPoint(y, x, *on_map(TURNED, x, y)) for x, y in places]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", "GTiff", 64, 48, 1, dtype="uint8") as file:
            file.write(PIXELS[None])
            file.gcps = (points, rasterio.CRS.from_string(UTM))
    return path, TURNED, UTM


KINDS = [
    *(tiff, degrees, turned, south_up, point, jpeg2000, png_world, jpeg_wld, png_pam, vrt, control_points),
]


def from_geojson(out: Path) -> tuple[list[np.ndarray], str | None]:
    (path,) = out.glob("geojson/*.geojson")
    found = json.loads(path.read_text())
    crs = found.get("crs", {}).get("properties", {}).get("name")
    if crs is None and found["features"] and abs(found["features"][0]["geometry"]["coordinates"][0][0][0]) <= 180:
        crs = "EPSG:4326"  # RFC 7946
    rings = [np.array(one["geometry"]["coordinates"][0]) for one in found["features"]]
    return rings, None if crs is None else f"EPSG:{crs.rpartition(':')[2].removeprefix('CRS')}"


def from_geopackage(out: Path) -> tuple[list[np.ndarray], str | None]:
    """By the standard's own words (OGC 12-128r17, 2.1.3); and by GDAL, where a reader of it is installed, the same."""
    file = sqlite3.connect(out / "detections.gpkg")
    rows = file.execute("SELECT geom FROM detections ORDER BY fid").fetchall()
    (srs,) = file.execute("SELECT srs_id FROM gpkg_geometry_columns").fetchone()
    file.close()
    rings = []
    for (blob,) in rows:
        assert blob[:2] == b"GP"
        assert struct.unpack("<i", blob[4:8]) == (srs,)
        rings.append(polygon(blob[8 + 32 :]))
    if find_spec("pyogrio"):
        from pyogrio import raw

        meta, _, geometry, _ = raw.read(out / "detections.gpkg", layer="detections")
        for mine, blob in zip(rings, geometry, strict=True):
            assert_array_equal(mine, polygon(blob))
        assert srs <= 0 or meta["crs"] == f"EPSG:{srs}"
    return rings, f"EPSG:{srs}" if srs > 0 else None


def polygon(wkb: bytes) -> np.ndarray:
    """The corners of a well-known binary polygon of one closed ring of five."""
    assert struct.unpack("<BIII", wkb[:13]) == (1, 3, 1, 5)
    return np.frombuffer(wkb[13:], "<f8").reshape(5, 2)


def predicted(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[str]:
    _, model = spots_model(monkeypatch, out.parent)
    said: list[str] = []
    predict(path, model=model, out=out, formats=("geojson", "gpkg", "csv"), draw=0, warn=said.append, **more)
    return said


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_coordinates_read_back_are_those_of_the_raster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[Path], Made]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path, transform, crs = kind(folder)
    said = predicted(path, tmp_path / "out", monkeypatch)
    if crs is None:
        assert any("does not say in which coordinate system" in line for line in said)
    tolerance = 1e-9 if crs == "EPSG:4326" else 1e-3
    for read in (from_geojson, from_geopackage):
        rings, system = read(tmp_path / "out")
        assert system == crs
        assert len(rings) == len(SPOTS)
        for ring, (x1, y1, x2, y2) in zip(_by_place(rings, transform), SPOTS, strict=True):
            corners = [on_map(transform, *corner) for corner in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
            for corner in corners:
                assert_allclose(np.abs(ring - corner).max(axis=1).min(), 0, atol=tolerance)
            assert_allclose(ring[0], ring[-1], rtol=0, atol=0)
    with (tmp_path / "out" / "detections.csv").open() as file:
        rows = [[float(row[key]) for key in ("x1", "y1", "x2", "y2")] for row in csv.DictReader(file)]
    assert sorted(rows) == SPOTS  # pixels of the file


def _by_place(rings: list[np.ndarray], transform: tuple[float, ...]) -> list[np.ndarray]:
    """The rings in the order of the spots: that nearest to each."""
    middles = [np.array(on_map(transform, (x1 + x2) / 2, (y1 + y2) / 2)) for x1, y1, x2, y2 in SPOTS]
    return [min(rings, key=lambda ring: float(np.abs(ring[:4].mean(axis=0) - middle).sum())) for middle in middles]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in (png_world, jpeg_wld)], ids=lambda kind: kind.__name__
)
def test_coordinates_in_degrees_are_those_of_proj(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[Path], Made]
) -> None:
    pyproj = pytest.importorskip("pyproj")
    folder = tmp_path / "in"
    folder.mkdir()
    path, transform, crs = kind(folder)
    predicted(path, tmp_path / "out", monkeypatch, crs="EPSG:4326")
    change = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    rings, system = from_geojson(tmp_path / "out")
    assert system == "EPSG:4326"
    for x1, y1, x2, y2 in SPOTS:
        for corner in ((x1, y1), (x2, y1), (x2, y2), (x1, y2)):
            expected = change.transform(*on_map(transform, *corner))
            nearest = min(float(np.abs(ring - expected).max(axis=1).min()) for ring in rings)
            assert nearest <= 1e-9


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_without_gdal_a_place_that_cannot_be_read_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[Path], Made]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path, _, _ = kind(folder)
    monkeypatch.setattr(raster, "has_rasterio", lambda: False)
    _, model = spots_model(monkeypatch, tmp_path)
    said: list[str] = []
    with pytest.raises(UserError, match="1 of 1 image could not be read"):
        predict(path, model=model, out=tmp_path / "out", formats=("geojson", "coco"), draw=0, warn=said.append)
    assert "'rasterio>=" in said[0]
    assert not list((tmp_path / "out").glob("geojson/*"))
    if kind is not vrt:  # pixels need no place
        predict(path, model=model, out=tmp_path / "pixels", formats=("coco",), draw=0)
        found = json.loads((tmp_path / "pixels" / "detections.json").read_text())
        assert len(found) == len(SPOTS)


def test_a_region_on_the_map_asks_for_the_place_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, _ = tiff(tmp_path)
    ring = [[14.9, 36.1], [15.1, 36.1], [15.1, 36.2], [14.9, 36.2], [14.9, 36.1]]
    (tmp_path / "roi.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    monkeypatch.setattr(raster, "has_rasterio", lambda: False)
    _, model = spots_model(monkeypatch, tmp_path)
    said: list[str] = []
    with pytest.raises(UserError, match="1 of 1 image could"):
        predict(path, model=model, out=tmp_path / "out", roi=tmp_path / "roi.geojson", draw=0, warn=said.append)
    assert "its GeoTIFF tags, which say where it lies on a map: not read without GDAL" in said[0]


def test_a_turned_photograph_with_a_world_file_keeps_its_stored_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", quality=100, exif=exif)
    (tmp_path / "a.jgw").write_text("0.1\n0\n0\n-0.1\n500000.05\n3999999.95\n")
    said = predicted(tmp_path / "a.jpg", tmp_path / "out", monkeypatch)
    assert any("its orientation tag is not followed" in line for line in said)
    rings, _ = from_geojson(tmp_path / "out")
    assert_allclose(_by_place(rings, NORTH)[0].min(axis=0), on_map(NORTH, 10, 24), rtol=0, atol=1e-3)


def singular(folder: Path) -> Path:
    return geotiff(folder / "a.tif", PIXELS, (0.1, 0.1, 500000, 0.1, 0.1, 4000000), UTM)


def bent(folder: Path) -> Path:
    """Control points of which one lies 5 px off the affine transform of the others."""
    path = folder / "a.tif"
    places = [(0, 0), (64, 0), (64, 48), (0, 48), (32, 24)]
    points = [rasterio.control.GroundControlPoint(y, x, 500000 + x + 5 * (x == 32), 4000000 - y) for x, y in places]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", "GTiff", 64, 48, 1, dtype="uint8") as file:
            file.write(PIXELS[None])
            file.gcps = (points, rasterio.CRS.from_string(UTM))
    return path


@pytest.mark.parametrize(
    ("made", "why"), [(singular, r"its transform \(0\.1, .*\) is singular"), (bent, "px off one affine transform")]
)
def test_a_place_that_is_none_is_told_and_maps_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[Path], Path], why: str
) -> None:
    path = made(tmp_path)
    _, model = spots_model(monkeypatch, tmp_path)
    said: list[str] = []
    predict(path, model=model, out=tmp_path / "pixels", draw=0, warn=said.append)
    (line,) = [line for line in said if "coordinates are pixels" in line]
    assert re.search(why, line)
    with pytest.raises(UserError, match="1 of 1 image could"):
        predict(path, model=model, out=tmp_path / "map", formats=("gpkg",), draw=0, warn=said.append)
    assert "map coordinates cannot be given" in said[-1]
