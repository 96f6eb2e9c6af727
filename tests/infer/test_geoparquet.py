"""`--to geoparquet`, read back with pyarrow and geopandas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from spots import geotiff, spots_model, spotted

from flyspeck import convert
from flyspeck.geo import GeoReference
from flyspeck.infer.geoparquet import GeoParquetWriter
from flyspeck.infer.job import predict
from flyspeck.infer.reading import Result
from flyspeck.infer.source import Item
from flyspeck.types import Detections

parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("pyproj")
shapely = pytest.importorskip("shapely")

UTM = GeoReference((0.1, 0, 500000.0, 0, -0.1, 4000000.0), "EPSG:32633")
PLACES = [(20, 30), (80, 60)]


def result(number: int, geo: GeoReference | None, boxes: int = 2) -> Result:
    found = Detections(np.tile([10, 20, 14, 28], (boxes, 1)), np.full(boxes, 0.5), np.zeros(boxes), (30, 40), ("boat",))
    return Result(Item(f"{number}.tif", np.zeros((30, 40), np.uint8), number), found, source_geo=geo)


def described(path: Path) -> dict:
    return json.loads(parquet.read_schema(path).metadata[b"geo"])


def test_rows_systems_and_extents(tmp_path: Path) -> None:
    writer = GeoParquetWriter(tmp_path)
    for number, geo, boxes in ((1, UTM, 2), (2, None, 1), (3, UTM, 1), (4, UTM, 0)):
        writer.add(result(number, geo, boxes))
    assert not list(tmp_path.rglob("*.parquet"))  # whole, or not there
    writer.close()
    files = sorted((tmp_path / "geoparquet").iterdir())
    assert [file.name for file in files] == ["detections.parquet", "detections_2.parquet"]
    table = parquet.read_table(files[0]).to_pydict()
    assert table["file_name"] == ["1.tif", "1.tif", "3.tif"]
    assert table["image_id"] == ["1", "1", "3"]
    assert (table["class"], table["label"], table["score"], table["cut"]) == (
        ["boat"] * 3,
        [0] * 3,
        [0.5] * 3,
        [False] * 3,
    )
    told = described(files[0])
    assert (told["version"], told["primary_column"]) == ("1.1.0", "geometry")
    column = told["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32633}
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    # x 10..14 px at 0.1 m from 500000; y 20..28 px at -0.1 m from 4000000.
    extent = [500001, 3999997.2, 500001.4, 3999998]
    assert_allclose(column["bbox"], extent)
    outline = convert.rings(np.array([[10.0, 20, 14, 28]]), UTM)[0]
    for data, box in zip(table["geometry"], table["bbox"], strict=True):
        shape = shapely.from_wkb(data)
        assert shapely.get_coordinates(shape).tolist() == outline.tolist()
        assert list(shape.bounds) == list(box.values())
    pixels = described(files[1])["columns"]["geometry"]
    assert pixels["crs"] is None
    assert pixels["bbox"] == [10, -28, 14, -20]


def test_a_map_without_a_name_is_not_mixed_with_pixels(tmp_path: Path) -> None:
    writer = GeoParquetWriter(tmp_path)
    for number, geo in ((1, GeoReference(UTM.transform, None)), (2, None), (3, GeoReference(UTM.transform, None))):
        writer.add(result(number, geo, 1))
    writer.close()
    found = {file.name: parquet.read_table(file).to_pydict() for file in (tmp_path / "geoparquet").iterdir()}
    assert {name: table["file_name"] for name, table in found.items()} == {
        "detections.parquet": ["1.tif", "3.tif"],
        "detections_2.parquet": ["2.tif"],
    }
    assert [box["xmin"] for box in found["detections_2.parquet"]["bbox"]] == [10]
    assert all(described(tmp_path / "geoparquet" / name)["columns"]["geometry"]["crs"] is None for name in found)


def test_many_boxes_go_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flyspeck.infer.geoparquet._GROUP", 10)
    writer = GeoParquetWriter(tmp_path)
    for number in range(1, 13):
        writer.add(result(number, UTM, boxes=3))
    writer.close()
    file = parquet.ParquetFile(tmp_path / "geoparquet" / "detections.parquet")
    assert (file.metadata.num_rows, file.metadata.num_row_groups) == (36, 3)
    # What lets a reader that asks for a place skip a group: the extent of its boxes.
    group = file.metadata.row_group(0)
    columns = {group.column(k).path_in_schema: group.column(k).statistics for k in range(group.num_columns)}
    assert columns["bbox.xmin"].min == pytest.approx(500001)
    assert columns["bbox.ymax"].max == pytest.approx(3999998)


def test_a_job_in_another_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warp = pytest.importorskip("rasterio.warp")
    _, model = spots_model(monkeypatch, tmp_path)
    geotiff(tmp_path / "a.tif", spotted((100, 120), PLACES), UTM.transform, UTM.crs)
    Image.fromarray(spotted((100, 120), PLACES)).save(tmp_path / "b.png")
    out = tmp_path / "found"
    predict(tmp_path / "a.tif", model=model, out=out, formats=["geoparquet"], crs="EPSG:4326", draw=0)
    path = out / "geoparquet" / "detections.parquet"
    assert described(path)["columns"]["geometry"]["crs"]["id"] == {"authority": "EPSG", "code": 4326}
    bounds = [shapely.from_wkb(data).bounds for data in parquet.read_table(path)["geometry"].to_pylist()]
    for (x, y), (west, _, _, north) in zip(PLACES, sorted(bounds), strict=True):
        lon, lat = warp.transform(UTM.crs, "EPSG:4326", [500000 + x / 10], [4000000 - y / 10])
        assert (west, north) == pytest.approx(
            (lon[0], lat[0]), abs=2e-7
        )  # of the corner, within the turn of the meridian
    predict(
        [tmp_path / "a.tif", tmp_path / "b.png"], model=model, out=out, formats=["geoparquet"], draw=0, overwrite=True
    )
    assert sorted(file.name for file in (out / "geoparquet").iterdir()) == [
        "detections.parquet",
        "detections_2.parquet",
    ]


@pytest.mark.slow
def test_geopandas_reads_it_whole_and_by_place(tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    writer = GeoParquetWriter(tmp_path)
    for number, geo in ((1, UTM), (2, GeoReference((0.1, 0, 600000.0, 0, -0.1, 4000000.0), UTM.crs)), (3, None)):
        writer.add(result(number, geo))
    writer.close()
    path = tmp_path / "geoparquet" / "detections.parquet"
    table = geopandas.read_parquet(path)
    assert table.crs == "EPSG:32633"
    assert len(table) == 4
    assert list(geopandas.read_parquet(path, bbox=(599000, 0, 601000, 5e6))["file_name"]) == ["2.tif"] * 2
    assert geopandas.read_parquet(path.with_name("detections_2.parquet")).crs is None
