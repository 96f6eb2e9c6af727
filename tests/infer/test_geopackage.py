from __future__ import annotations

import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from flyspeck.errors import UserError
from flyspeck.geo import GeoReference
from flyspeck.infer.geopackage import GeoPackageWriter, blob
from flyspeck.infer.reading import Result
from flyspeck.infer.source import Item
from flyspeck.types import Detections

UTM = GeoReference((0.5, 0, 1000.0, 0, -0.5, 2000.0), "EPSG:32617")


def result(number: int, geo: GeoReference | None, boxes: int = 2) -> Result:
    found = Detections(np.tile([10, 20, 14, 28], (boxes, 1)), np.full(boxes, 0.5), np.zeros(boxes), (30, 40), ("boat",))
    return Result(Item(f"{number}.tif", np.zeros((30, 40), np.uint8), number), found, source_geo=geo)


def outline(data: bytes) -> np.ndarray:
    """A polygon blob's ring, read back by the layout of the standard."""
    assert data[:4] == b"GP\0\x03"
    assert struct.unpack_from("<BIII", data, 40)[:3] == (1, 3, 1)
    count = struct.unpack_from("<I", data, 49)[0]
    return np.frombuffer(data, "<f8", 2 * count, 53).reshape(-1, 2)


def test_a_blob_by_hand() -> None:
    ring = np.array([[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]], float)
    data = blob(ring, 4326)
    assert struct.unpack_from("<i4d", data, 4) == (4326, 0, 2, 0, 1)
    assert len(data) == 8 + 32 + 13 + 5 * 16
    assert_array_equal(outline(data), ring)


def test_layers_systems_and_extents(tmp_path: Path) -> None:
    writer = GeoPackageWriter(tmp_path)
    writer.add(result(1, UTM))
    writer.add(result(2, None))
    writer.add(result(3, UTM, boxes=1))
    writer.add(result(4, UTM, boxes=0))
    writer.close()
    with sqlite3.connect(tmp_path / "detections.gpkg") as file:
        assert file.execute("PRAGMA application_id").fetchone()[0] == 0x47504B47
        assert file.execute("PRAGMA user_version").fetchone()[0] == 10300
        assert file.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        systems = dict(file.execute("SELECT srs_id, organization FROM gpkg_spatial_ref_sys"))
        assert systems == {-1: "NONE", 0: "NONE", 4326: "EPSG", 32617: "EPSG"}
        layers = file.execute("SELECT table_name, srs_id, min_x, min_y, max_x, max_y FROM gpkg_contents").fetchall()
        # x 10..14 px at 0.5 m from 1000; y 20..28 px at -0.5 m from 2000. Pixels: y points up.
        assert layers == [("detections", 32617, 1005, 1986, 1007, 1990), ("detections_2", -1, 10, -28, 14, -20)]
        rows = file.execute("SELECT file_name, image_id, class, label, score, cut FROM detections").fetchall()
        assert rows == [("1.tif", "1", "boat", 0, 0.5, 0)] * 2 + [("3.tif", "3", "boat", 0, 0.5, 0)]
        ring = outline(file.execute("SELECT geom FROM detections").fetchone()[0])
        assert_allclose(ring, [[1005, 1990], [1005, 1986], [1007, 1986], [1007, 1990], [1005, 1990]])
    file.close()


def test_the_definition_of_the_system_is_written(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    writer = GeoPackageWriter(tmp_path)
    writer.add(result(1, UTM))
    writer.close()
    with sqlite3.connect(tmp_path / "detections.gpkg") as file:
        text = file.execute("SELECT definition FROM gpkg_spatial_ref_sys WHERE srs_id = 32617").fetchone()[0]
    file.close()
    assert "UTM zone 17N" in text


def test_a_full_disk_costs_only_the_image_being_written(tmp_path: Path) -> None:
    writer = GeoPackageWriter(tmp_path)
    writer.add(result(1, UTM))
    # The database may not grow further: what sqlite reports is what a full disk gives.
    pages = writer._file.execute("PRAGMA page_count").fetchone()[0]
    writer._file.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UserError, match="full"):
        writer.add(result(2, None, boxes=500))
    writer.close()
    with sqlite3.connect(tmp_path / "detections.gpkg") as file:
        assert file.execute("SELECT count(*) FROM detections").fetchone()[0] == 2
        assert file.execute("SELECT count(*) FROM gpkg_contents").fetchone()[0] == 1
    file.close()
