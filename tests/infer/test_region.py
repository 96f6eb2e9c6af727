"""`--roi`: only tiles that meet a region are run, only detections with their centre inside are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from spots import geotiff, spots_model, spotted

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.geo import GeoReference
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.region import Region, read_region

pyproj = pytest.importorskip("pyproj")
shapely = pytest.importorskip("shapely")

UTM = GeoReference((0.5, 0, 500000.0, 0, -0.5, 4000000.0), "EPSG:32633")
MAPS = {
    "EPSG:32633": UTM,
    "EPSG:3857": GeoReference((0.3, 0.1, 1290000.0, 0.1, -0.3, 6130000.0), "EPSG:3857"),
    "EPSG:4326": GeoReference((1e-5, 0, 179.999, 0, -1e-5, -17.0), "EPSG:4326"),  # across the antimeridian
    "EPSG:32760": GeoReference((100.0, 0, 700000.0, 0, -100.0, 8100000.0), "EPSG:32760"),  # too, and of wide pixels
}


def to_degrees(points: np.ndarray, geo: GeoReference) -> np.ndarray:
    x, y = geo.on_map(points).reshape(-1, 2).T
    transformer = pyproj.Transformer.from_crs(geo.crs, "EPSG:4326", always_xy=True)
    return np.stack(transformer.transform(x, y), 1).reshape(points.shape)


def write(path: Path, rings: list[np.ndarray], crs: Any = None, **members: Any) -> Path:
    content: dict[str, Any] = {
        "type": "Polygon",
        "coordinates": [np.asarray(ring).tolist() for ring in rings],
        **members,
    }
    if crs is not None:
        content["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(content))
    return path


def square(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]], float)


corner = st.tuples(st.integers(-50, 350), st.integers(-50, 350))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MAPS)),
    corners=st.lists(corner, min_size=3, max_size=6, unique=True),
    centres=st.lists(st.tuples(st.integers(0, 299), st.integers(0, 299)), min_size=1, max_size=30),
)
def test_a_centre_is_inside_where_its_degrees_are(name: str, corners: list, centres: list) -> None:
    geo = MAPS[name]
    outline = to_degrees(np.array([*corners, corners[0]], float), geo)
    outline[:, 0] = outline[0, 0] + (outline[:, 0] - outline[0, 0] + 180) % 360 - 180
    shape = shapely.make_valid(shapely.Polygon(outline))
    region = Region(shape, "EPSG:4326")
    boxes = np.array([[x - 1, y - 1, x + 1, y + 1] for x, y in centres], float)
    points = to_degrees(np.array(centres, float), geo)
    expected = []
    for lon, lat in points:
        turns = [shapely.Point(lon + turn, lat) for turn in (-360, 0, 360)]
        expected.append(any(shape.distance(point) <= 1e-12 for point in turns))
    clear = [
        min(shape.boundary.distance(shapely.Point(lon + t, lat)) for t in (-360, 0, 360)) > 1e-9 for lon, lat in points
    ]
    assert (region.holds(boxes, geo) == expected)[clear].all()
    # No tile is passed over that holds such a centre, and none is run far from the region.
    tiles = np.array([[x, y, x + 50, y + 50] for y in range(0, 300, 50) for x in range(0, 300, 50)])
    met = region.meets(tiles, geo)
    for (x, y), inside in zip(centres, expected, strict=True):
        if inside:
            assert met[(y // 50) * 6 + x // 50]
    away = to_degrees((tiles[:, :2] + tiles[:, 2:]) / 2.0, geo)
    reach = np.ptp(to_degrees(np.array([[0.0, 0.0], [50.0, 50.0]]), geo), axis=0) % 360 * 4
    far = [
        min(shape.distance(shapely.Point(lon + t, lat)) for t in (-360, 0, 360)) > np.hypot(*reach) for lon, lat in away
    ]
    assert not met[far].any()


def test_holes_and_parts_and_edges() -> None:
    ring, hole, island = square(0, 0, 100, 100), square(20, 20, 80, 80), square(40, 40, 60, 60)
    shape = shapely.MultiPolygon([shapely.Polygon(ring, [hole]), shapely.Polygon(island)])
    region = Region(shape, None)
    centres = {(10, 50): True, (30, 50): False, (50, 50): True, (20, 50): True, (100, 100): True, (101, 50): False}
    boxes = np.array([[x - 2, y - 2, x + 2, y + 2] for x, y in centres], float)
    assert region.holds(boxes, None).tolist() == list(centres.values())
    tiles = np.array([[22, 22, 38, 38], [22, 22, 42, 42], [120, 0, 140, 20], [0, 0, 8, 8]])
    assert region.meets(tiles, None).tolist() == [False, True, False, True]


def test_a_long_edge_is_straight_in_the_regions_own_system() -> None:
    # Along the parallel of 60 degrees from 0 to 20 E: in a map around the pole the chord lies far to the north of it.
    geo = GeoReference((1000.0, 0, -3_000_000.0, 0, -1000.0, 4_000_000.0), "EPSG:3995")
    region = Region(shapely.Polygon([(0, 50), (20, 50), (20, 60), (0, 60), (0, 50)]), "EPSG:4326")
    back = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3995", always_xy=True)
    for latitude, inside in ((59.99, True), (60.01, False)):
        x, y = back.transform(10, latitude)
        column, row = (x + 3_000_000) / 1000, (4_000_000 - y) / 1000
        box = np.array([[column - 1, row - 1, column + 1, row + 1]])
        assert region.holds(box, geo).tolist() == [inside]
        tile = np.floor(box) + np.array([-20, -20, 20, 20])
        assert region.meets(tile, geo).tolist() == [True]


@pytest.mark.parametrize("wrap", ["Polygon", "Feature", "FeatureCollection", "GeometryCollection"])
def test_files_of_every_form(tmp_path: Path, wrap: str) -> None:
    polygon: dict[str, Any] = {"type": "Polygon", "coordinates": [[*square(10, 40, 11, 41).tolist()]]}
    polygon["coordinates"][0] = [[*point, 5.0] for point in polygon["coordinates"][0]]  # with heights
    feature = {"type": "Feature", "properties": None, "geometry": polygon}
    forms = {
        "Polygon": polygon,
        "Feature": feature,
        "FeatureCollection": {"type": "FeatureCollection", "features": [feature, {**feature, "geometry": None}]},
        "GeometryCollection": {"type": "GeometryCollection", "geometries": [polygon]},
    }
    (tmp_path / "r.geojson").write_text("\ufeff" + json.dumps(forms[wrap]), encoding="utf-8")
    region = read_region(tmp_path / "r.geojson")
    assert (region.crs, region.shape.bounds, region.notes) == ("EPSG:4326", (10, 40, 11, 41), ())


@pytest.mark.parametrize("name", ["urn:ogc:def:crs:EPSG::25832", "EPSG:25832"])
def test_the_old_crs_member(tmp_path: Path, name: str) -> None:
    region = read_region(write(tmp_path / "r.geojson", [square(691000, 5334000, 691100, 5334100)], name))
    assert region.crs == "EPSG:25832"
    region = read_region(write(tmp_path / "r.geojson", [square(10, 40, 11, 41)], "urn:ogc:def:crs:OGC:1.3:CRS84"))
    assert region.crs == "EPSG:4326"


@pytest.mark.parametrize("ending", ["gpkg", "shp"])
def test_layers_of_other_formats(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("geopandas")
    raw = pytest.importorskip("pyogrio.raw")
    path = tmp_path / f"r.{ending}"
    shapes = shapely.to_wkb(np.array([shapely.Polygon(square(500000, 3999900, 500050, 3999950))], object))
    driver = {"gpkg": "GPKG", "shp": "ESRI Shapefile"}[ending]
    raw.write(path, shapes, [np.array([1])], ["a"], driver=driver, geometry_type="Polygon", crs="EPSG:32633")
    region = read_region(path)
    assert (region.crs, region.shape.bounds) == ("EPSG:32633", (500000, 3999900, 500050, 3999950))


BROKEN: dict[str, tuple[str, str]] = {
    "not json": ("{", "not GeoJSON"),
    "no object": ("[1]", "no object with a type"),
    "a line": ('{"type": "LineString", "coordinates": [[0, 0], [1, 1]]}', "holds a 'LineString'"),
    "nothing": ('{"type": "FeatureCollection", "features": []}', "holds no polygon"),
    "no coordinates": ('{"type": "Polygon"}', "no polygon's"),
    "text": ('{"type": "Polygon", "coordinates": [[["a", 0], [1, 1], [2, 0], ["a", 0]]]}', "no polygon's"),
    "two corners": ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "no polygon's"),
    "NaN": ('{"type": "Polygon", "coordinates": [[[0, 0], [1, NaN], [1, 0], [0, 0]]]}', "NaN is no number"),
    "infinite": ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1e999], [1, 0], [0, 0]]]}', "not finite"),
    "no features": ('{"type": "FeatureCollection"}', "no polygon's"),
    "deep": ("[" * 100_000, "not GeoJSON"),
    "metres": (
        '{"type": "Polygon", "coordinates": [[[5e5, 4e6], [5e5, 4.1e6], [6e5, 4e6], [5e5, 4e6]]]}',
        "no degrees",
    ),
    "crs null": (
        '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 0]]], "crs": null}',
        "names no coordinate",
    ),
    "crs unknown": (
        '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 0]]], "crs": {"properties": {"name": "EPSG:1"}}}',
        "no coordinate system 'EPSG:1'",
    ),
    "frames": (
        '{"type": "FeatureCollection", "features": ['
        '{"type": "Feature", "properties": {"frame": "pixels"}, "geometry": '
        '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 0]]]}},'
        '{"type": "Feature", "properties": {}, "geometry": '
        '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 0]]]}}]}',
        "beside others",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_line(kind: str, tmp_path: Path) -> None:
    text, said = BROKEN[kind]
    (tmp_path / "r.geojson").write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        read_region(tmp_path / "r.geojson")
    assert "\n" not in str(caught.value)


def test_what_crosses_itself_is_mended_and_said(tmp_path: Path) -> None:
    bow = np.array([[0, 0], [2, 2], [2, 0], [0, 2], [0, 0]], float)
    region = read_region(write(tmp_path / "r.geojson", [bow], frame="pixels"))
    assert region.notes == ("r.geojson: 1 polygon that crosses itself was mended (shapely.make_valid)",)
    boxes = np.array([[0.1, 0.9, 0.3, 1.1], [0.9, 0.1, 1.1, 0.3]])
    assert region.holds(boxes, None).tolist() == [True, False]


SPOTS = [(10, 10), (100, 20), (180, 100), (60, 180)]


def test_only_tiles_that_meet_it_are_run(tmp_path: Path) -> None:
    from spots import Spots

    from flyspeck.infer.placing import Placing

    path = geotiff(tmp_path / "a.tif", spotted((200, 200), SPOTS), UTM.transform, UTM.crs)
    # Metres: pixels 0..120 by 0..60, in degrees.
    ring = to_degrees(square(0, 0, 120, 60), UTM)
    region = read_region(write(tmp_path / "r.geojson", [ring]))
    model = Spots()
    predictor = Predictor(model, tile=50, overlap=10, batch_size=4, placing=Placing(region=region))
    (result,) = predictor.stream([path])
    whole = len(predictor.tiles_of((200, 200))[0])
    assert result.num_tiles == whole
    assert model.windows == whole - result.num_outside
    assert 4 <= model.windows <= 8
    assert result.detections.boxes.tolist() == [[10, 10, 14, 14], [100, 20, 104, 24]]


def run(tmp_path: Path, model: Path, *more: str) -> int:
    return main(
        ["predict", *more, "--model", str(model), "--out", str(tmp_path / "found"), "--draw", "0", "--overwrite"]
    )


def test_a_job_over_images_inside_and_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, model = spots_model(monkeypatch, tmp_path)
    pixels = spotted((200, 200), SPOTS)
    geotiff(tmp_path / "a.tif", pixels, UTM.transform, UTM.crs)
    geotiff(tmp_path / "b.tif", pixels, (0.5, 0, 600000.0, 0, -0.5, 4000000.0), UTM.crs)
    region = write(tmp_path / "r.geojson", [to_degrees(square(0, 0, 50, 50), UTM)])
    asked = ("--roi", str(region), "--to", "coco,geojson")
    both = (str(tmp_path / "a.tif"), str(tmp_path / "b.tif"))
    assert run(tmp_path, model, *both, *asked) == 0
    out, err = capsys.readouterr()
    assert "note: --roi r.geojson meets 1 of 2 images; the others were not run" in err
    assert "a.tif: 200x200, 16 tiles (12 outside the region), 1 box: spot 1" in out
    assert "b.tif: 200x200, 16 tiles (16 outside the region), 0 boxes" in out
    assert "1 box in 2 images, 32 tiles (28 outside the region, not run)" in out
    assert [d["bbox"] for d in json.loads((tmp_path / "found/detections.json").read_text())] == [[10, 10, 4, 4]]
    assert seen.windows == 4
    # With a region that meets everything, --resume looks at the tiles that are missing alone.
    wide = write(tmp_path / "w.geojson", [to_degrees(square(-10, -10, 210, 210), UTM)])
    args = ["predict", *both, "--model", str(model), "--out", str(tmp_path / "found"), "--draw", "0", "--resume"]
    assert main([*args, "--roi", str(wide)]) == 0
    assert seen.windows == 16
    assert len(json.loads((tmp_path / "found/detections.json").read_text())) == len(SPOTS)
    # Outside of all that is given: one line, exit code 2.
    capsys.readouterr()
    assert run(tmp_path, model, both[1], *asked) == 2
    err = capsys.readouterr().err
    assert err == "error: --roi r.geojson: meets no part of the image; look at its coordinate system\n"
    assert run(tmp_path, model, both[0], "--roi", str(tmp_path / "none.geojson")) == 2
    assert "no such file" in capsys.readouterr().err


def test_images_without_georeference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model = spots_model(monkeypatch, tmp_path)
    Image.fromarray(spotted((200, 200), SPOTS)).save(tmp_path / "a.png")
    degrees = write(tmp_path / "d.geojson", [square(0, 0, 1, 1)])
    assert run(tmp_path, model, str(tmp_path / "a.png"), "--roi", str(degrees)) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith(
        "error: a.png: has no georeference, and the region is in map coordinates (--roi d.geojson); "
    )
    pixels = write(tmp_path / "p.geojson", [square(50, 0, 150, 50)], frame="pixels")
    assert run(tmp_path, model, str(tmp_path / "a.png"), "--roi", str(pixels), "--to", "coco,geojson") == 0
    assert [d["bbox"] for d in json.loads((tmp_path / "found/detections.json").read_text())] == [[100, 20, 4, 4]]
    # What is written in pixels is read as a region in pixels.
    own = tmp_path / "found/geojson/a.geojson"
    assert read_region(own).crs is None
