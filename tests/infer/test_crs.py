"""`--crs`: map formats in another coordinate system than the image's."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image
from spots import geotiff, spots_model, spotted

from flyspeck import convert
from flyspeck.errors import UserError
from flyspeck.geo import GeoReference
from flyspeck.infer.geopackage import GeoPackageWriter
from flyspeck.infer.job import predict
from flyspeck.infer.reading import Result
from flyspeck.infer.source import Item
from flyspeck.projection import known_crs, transformed, unwrapped
from flyspeck.types import Detections

pyproj = pytest.importorskip("pyproj")
warp = pytest.importorskip("rasterio.warp")

# A system, and a place in it (x, y) with the size of a pixel there.
PLACES = {
    "EPSG:32633": (500000.0, 4000000.0, 0.1),
    "EPSG:25832": (691000.0, 5334000.0, 0.05),
    "EPSG:3857": (1290000.0, 6130000.0, 0.3),
    "EPSG:2263": (980000.0, 200000.0, 0.5),  # feet
    "EPSG:3031": (-1500000.0, 400000.0, 10.0),  # around the South Pole
    "EPSG:4326": (12.3, 45.6, 1e-6),
}


def detections(boxes: list[list[float]]) -> Detections:
    count = len(boxes)
    found = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(found, np.full(count, 0.5), np.zeros(count, int), (4000, 4000), ("boat",))


def signed_area(ring: np.ndarray) -> float:
    x, y = (ring - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


box = st.tuples(*(st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 8), st.integers(1, 8)))


@settings(max_examples=60, deadline=None)
@given(
    source=st.sampled_from(sorted(PLACES)),
    boxes=st.lists(box, min_size=1, max_size=3),
    angle=st.floats(0, 6.28),
    mirrored=st.booleans(),
)
def test_corners_are_where_gdal_and_pyproj_say(source: str, boxes: list, angle: float, mirrored: bool) -> None:
    x0, y0, pixel = PLACES[source]
    c, s = pixel * np.cos(angle), pixel * np.sin(angle)
    flip = 1 if mirrored else -1
    transform = (c, -s * flip, x0, s, c * flip, y0)
    found = detections([[x, y, x + w, y + h] for x, y, w, h in boxes])
    collection = convert.to_geojson(found, GeoReference(transform, source, asked="EPSG:4326"))
    assert "crs" not in collection
    for (x, y, w, h), feature in zip(boxes, collection["features"], strict=True):
        assert feature["properties"]["frame"] == "map"
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert ring[0].tolist() == ring[-1].tolist()
        assert signed_area(ring) > 0  # right-hand rule
        corners = np.array([[x, y], [x, y + h], [x + w, y + h], [x + w, y]], float)
        a, b, tx, d, e, ty = transform
        px, py = corners.T
        mx, my = a * px + b * py + tx, d * px + e * py + ty
        lon, lat = warp.transform(source, "EPSG:4326", mx.tolist(), my.tolist())
        other = pyproj.Transformer.from_crs(source, "EPSG:4326", always_xy=True).transform(mx, my)
        for expected in (np.stack([lon, lat], 1), np.stack(other, 1)):
            for corner in expected:
                assert np.abs(ring - corner).max(1).min() < 1e-9


@settings(max_examples=60, deadline=None)
@given(
    longitude=st.floats(-540, 540),
    latitude=st.floats(-80, 80),
    sides=st.tuples(st.floats(1e-6, 3), st.floats(1e-6, 3)),
)
def test_what_crosses_the_antimeridian_is_cut_and_loses_nothing(
    longitude: float, latitude: float, sides: tuple
) -> None:
    geo = GeoReference((sides[0], 0, longitude, 0, -sides[1], latitude), "EPSG:4326", asked="EPSG:4326")
    (feature,) = convert.to_geojson(detections([[0, 0, 1, 1]]), geo)["features"]
    kind, parts = feature["geometry"]["type"], feature["geometry"]["coordinates"]
    rings = [np.array(part[0]) for part in ([parts] if kind == "Polygon" else parts)]
    assert all(ring[:, 0].min() >= -180 and ring[:, 0].max() <= 180 for ring in rings)
    assert all(ring[0].tolist() == ring[-1].tolist() for ring in rings)
    areas = [signed_area(ring) for ring in rings]
    assert all(area > 0 for area in areas)
    assert sum(areas) == pytest.approx(sides[0] * sides[1], rel=1e-6)
    edge = (longitude + 180) % 360
    crosses = edge + sides[0] > 360 + 1e-9
    assume(abs(edge + sides[0] - 360) > 1e-9)
    assume(edge > 1e-9)
    assert (kind == "MultiPolygon") == crosses


def test_a_raster_across_the_antimeridian_of_a_projected_system() -> None:
    # UTM zone 60 goes on beyond 180 degrees.
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32760", always_xy=True).transform(180.0, -17.0)
    geo = GeoReference((1.0, 0, x - 50, 0, -1.0, y), "EPSG:32760", asked="EPSG:4326")
    features = convert.to_geojson(detections([[0, 0, 4, 4], [46, 0, 54, 4], [90, 0, 94, 4]]), geo)["features"]
    assert [f["geometry"]["type"] for f in features] == ["Polygon", "MultiPolygon", "Polygon"]
    west, _, east = (np.array(f["geometry"]["coordinates"][0]) for f in (features[0], features[0], features[2]))
    assert west[:, 0].min() > 179
    assert east[:, 0].max() < -179
    outline = convert.rings(np.array([[46.0, 0, 54, 4]]), geo)[0]  # of a GeoPackage: in one piece
    assert np.ptp(outline[:, 0]) < 1e-3


def test_longitudes_without_a_jump() -> None:
    ring = np.array([[179.9, 0], [-179.9, 0], [-179.9, 1], [179.9, 1], [179.9, 0]])
    assert_allclose(unwrapped(ring)[:, 0], [179.9, 180.1, 180.1, 179.9, 179.9])


def test_any_other_system_is_named_as_before() -> None:
    geo = GeoReference((0.1, 0, 500000, 0, -0.1, 4000000), "EPSG:32633", asked="EPSG:3857")
    collection = convert.to_geojson(detections([[0, 0, 10, 10]]), geo)
    assert collection["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::3857"
    corner = collection["features"][0]["geometry"]["coordinates"][0][0]
    x, y = warp.transform("EPSG:32633", "EPSG:3857", [500000.0], [4000000.0])
    assert min(np.hypot(p[0] - x[0], p[1] - y[0]) for p in [corner]) < 2  # one of the corners, to a metre
    ring = np.array(collection["features"][0]["geometry"]["coordinates"][0])
    assert np.hypot(*(ring - [x[0], y[0]]).T).min() < 1e-3


def test_a_geopackage_in_it(tmp_path: Path) -> None:
    geo = GeoReference((0.1, 0, 500000, 0, -0.1, 4000000), "EPSG:32633", asked="EPSG:4326")
    other = GeoReference((0.1, 0, 690000, 0, -0.1, 5330000), "EPSG:25832", asked="EPSG:4326")
    writer = GeoPackageWriter(tmp_path)
    for number, place in enumerate((geo, other)):
        item = Item(f"{number}.tif", np.zeros((4, 4), np.uint8), number)
        writer.add(Result(item, detections([[10, 20, 14, 28]]), source_geo=place))
    writer.close()
    with sqlite3.connect(tmp_path / "detections.gpkg") as file:
        assert file.execute("SELECT table_name, srs_id FROM gpkg_contents").fetchall() == [("detections", 4326)]
    file.close()
    raw = pytest.importorskip("pyogrio.raw")
    shapely = pytest.importorskip("shapely")
    meta, _, shapes, _ = raw.read(tmp_path / "detections.gpkg")
    assert meta["crs"] == "EPSG:4326"
    for row, place in enumerate((geo, other)):
        lon, lat = shapely.get_coordinates(shapely.from_wkb(shapes[row])).T
        back = np.array(warp.transform("EPSG:4326", place.crs, lon.tolist(), lat.tolist()))
        x, y = place.transform[2], place.transform[5]
        assert_allclose([*back.min(1), *back.max(1)], [x + 1, y - 2.8, x + 1.4, y - 2], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("EPSG:4326", "EPSG:4326"), ("epsg:25832", "EPSG:25832"), ("OGC:CRS84", "EPSG:4326"), ("WGS84", "EPSG:4326"),
        ("EPSG:5773", None), ("EPSG:4978", None), ("EPSG:9518", None), ("nothing", None), ("EPSG:999999", None), ("", None),
    ],
)  # fmt: skip
def test_names_of_systems(name: str, said: str | None) -> None:
    if said is None:
        with pytest.raises(UserError, match=r"^--crs: .*; for example EPSG:4326$"):
            known_crs(name)
    else:
        assert known_crs(name) == said


def test_no_grid_is_fetched() -> None:
    transformed(np.zeros((1, 2)), "EPSG:4326", "EPSG:3857")
    assert not pyproj.network.is_network_enabled()


def test_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = spots_model(monkeypatch, tmp_path)
    pixels = spotted((100, 120), [(20, 30)])
    geotiff(tmp_path / "a.tif", pixels, (0.1, 0, 500000, 0, -0.1, 4000000), "EPSG:32633")
    asked = {"model": model, "formats": ["geojson", "coco"], "crs": "EPSG:4326", "draw": 0}
    summary = predict(tmp_path / "a.tif", out=tmp_path / "found", **asked)
    assert summary.boxes == 1
    assert json.loads((tmp_path / "found/detections.json").read_text())[0]["bbox"] == [20, 30, 4, 4]
    (feature,) = json.loads((tmp_path / "found/geojson/a.geojson").read_text())["features"]
    ring = np.array(feature["geometry"]["coordinates"][0])
    lon, lat = warp.transform("EPSG:32633", "EPSG:4326", [500002.0, 500002.4], [3999997.0, 3999996.6])
    assert_allclose([ring.min(0), ring.max(0)], [[min(lon), min(lat)], [max(lon), max(lat)]], atol=1e-7)
    assert np.abs(ring - [lon[0], lat[0]]).max(1).min() < 1e-9
    lines: list[str] = []
    Image.fromarray(pixels).save(tmp_path / "b.png")
    geotiff(tmp_path / "c.tif", pixels, (0.1, 0, 500000, 0, -0.1, 4000000), None)
    paths = [tmp_path / name for name in ("a.tif", "b.png", "c.tif")]
    with pytest.raises(UserError, match="2 of 3 images could not be read"):
        predict(paths, out=tmp_path / "three", **asked, warn=lines.append)
    wanted = [
        "error: b.png: has no georeference, so that --crs cannot be followed; leave out --crs",
        "error: c.tif: does not say its coordinate system, so that --crs cannot be followed; leave out --crs",
    ]
    assert lines == wanted
    assert [p.name for p in (tmp_path / "three/geojson").iterdir()] == ["a.geojson"]
    with pytest.raises(UserError, match=r"^--crs: coco: these formats hold pixels; add geojson or gpkg or geoparquet"):
        predict(paths, out=tmp_path / "none", model=model, crs="EPSG:4326")
    assert not (tmp_path / "none").exists()
