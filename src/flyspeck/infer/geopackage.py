"""GeoPackage: every box of a job as a polygon in one file that GIS programs open. Plain sqlite3, no GDAL.

Source: OGC GeoPackage Encoding Standard 1.3 (12-128r17), clauses 1.1 (base), 2.1 (features) and the binary geometry of
clause 2.1.3. A layer holds one coordinate system: images of another one get a layer of their own. What has none keeps pixel
coordinates with y upwards (row 0 at y = 0, row k at y = -k) under srs_id -1, "undefined Cartesian".
"""

from __future__ import annotations

import sqlite3
import struct
from pathlib import Path

import numpy as np

from flyspeck import convert
from flyspeck.files import storable
from flyspeck.geo import GeoReference
from flyspeck.infer.reading import Result
from flyspeck.infer.writer import Writer, closed_if_it_fails, disk_full

_APPLICATION, _VERSION = 0x47504B47, 10300  # "GPKG", 1.3
_PIXELS = -1
_FIRST_OWN = 100_000  # srs ids of systems without an EPSG number

_BASE = """
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY, organization TEXT NOT NULL,
  organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE,
  description TEXT DEFAULT '', last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
  min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER,
  CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL UNIQUE, column_name TEXT NOT NULL,
  geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
  CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name),
  CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name),
  CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys (srs_id));
"""
# The three rows that clause 1.1.2 requires.
_REQUIRED = [
    ("Undefined Cartesian", -1, "NONE", -1, "undefined", "pixels: x to the right, y up"),
    ("Undefined geographic", 0, "NONE", 0, "undefined", None),
    (
        "WGS 84",
        4326,
        "EPSG",
        4326,
        'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]],'
        'AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],UNIT["degree",0.0174532925199433,'
        'AUTHORITY["EPSG","9122"]],AUTHORITY["EPSG","4326"]]',
        None,
    ),
]


class GeoPackageWriter(Writer):
    """`detections.gpkg`: a layer `detections` (and `detections_2`, …, one for each further coordinate system).

    Each image is one transaction: a kill or a full disk costs the image being written, not those before it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "detections.gpkg"
        try:
            self.path.unlink(missing_ok=True)
            self._file = sqlite3.connect(self.path, isolation_level=None)
            with closed_if_it_fails(self):
                self._file.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._file.execute(f"PRAGMA user_version = {_VERSION}")
                self._file.executescript(_BASE)
                self._file.executemany("INSERT INTO gpkg_spatial_ref_sys VALUES (?,?,?,?,?,?)", _REQUIRED)
        except (OSError, sqlite3.Error) as error:
            raise disk_full(self.path, error) from error
        self._layers: dict[str | None, tuple[str, int]] = {}

    def add(self, result: Result) -> None:
        """See `Writer.add`."""
        geo = result.source_geo if isinstance(result.source_geo, GeoReference) else None
        try:
            self._file.execute("BEGIN")
            layers = dict(self._layers)
            table, srs = self._layer(geo)
            rows, extent = _rows(result, geo, srs)
            self._file.executemany(f"INSERT INTO {table} VALUES (NULL,?,?,?,?,?,?,?)", rows)
            if rows:
                self._grow(table, extent)
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            self._layers = layers
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise disk_full(self.path, error) from error

    def close(self) -> None:
        """See `Writer.close`."""
        self._file.close()

    def _layer(self, geo: GeoReference | None) -> tuple[str, int]:
        """Table and srs_id for images in this system; made where it is the first."""
        key = None if geo is None else geo.written or ""
        if key in self._layers:
            return self._layers[key]
        table = "detections" if not self._layers else f"detections_{len(self._layers) + 1}"
        srs = self._system(geo.written) if geo is not None and geo.written else _PIXELS
        self._file.execute(
            f"CREATE TABLE {table} (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POLYGON, file_name TEXT, "
            "image_id TEXT, class TEXT, label INTEGER, score DOUBLE, cut BOOLEAN)"
        )
        self._file.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, srs_id) VALUES (?, 'features', ?, ?)",
            (table, table, srs),
        )
        self._file.execute("INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', ?, 0, 0)", (table, srs))
        self._layers[key] = (table, srs)
        return self._layers[key]

    def _system(self, crs: str) -> int:
        """The srs_id of an `EPSG:n` or WKT, entered where it is new."""
        code = int(crs.removeprefix("EPSG:")) if crs.startswith("EPSG:") else None
        number = code
        if number is None:
            number = _FIRST_OWN + len(self._layers)
        known = self._file.execute("SELECT 1 FROM gpkg_spatial_ref_sys WHERE srs_id = ?", (number,)).fetchone()
        if known is None:
            row = (crs[:60], number, "EPSG" if code else "NONE", number, _definition(crs), None)
            self._file.execute("INSERT INTO gpkg_spatial_ref_sys VALUES (?,?,?,?,?,?)", row)
        return number

    def _grow(self, table: str, extent: tuple[float, float, float, float]) -> None:
        """The layer's bounding box, with a further image."""
        self._file.execute(
            "UPDATE gpkg_contents SET min_x = min(ifnull(min_x, ?1), ?1), min_y = min(ifnull(min_y, ?2), ?2), "
            "max_x = max(ifnull(max_x, ?3), ?3), max_y = max(ifnull(max_y, ?4), ?4) WHERE table_name = ?5",
            (*extent, table),
        )


def _definition(crs: str) -> str:
    """Well-known text of a system; "undefined" where nothing here knows an EPSG number's (readers then look it up)."""
    if not crs.startswith("EPSG:"):
        return crs
    try:
        from rasterio.crs import CRS
    except ImportError:
        return "undefined"
    return str(CRS.from_string(crs).to_wkt())


def _rows(result: Result, geo: GeoReference | None, srs: int) -> tuple[list[tuple], tuple[float, float, float, float]]:
    found = result.detections
    rings = convert.rings(found.boxes.astype(np.float64), geo)
    if geo is None:
        rings = rings * np.array([1.0, -1.0])
    cut = found.extra.get("cut", np.zeros(len(found), bool)).tolist()
    columns = zip(
        rings, map(storable, convert.class_names(found)), found.labels.tolist(), found.scores.tolist(), cut, strict=True
    )
    identity = (storable(str(result.item.name)), storable(str(result.item.image_id)))
    rows = [(blob(ring, srs), *identity, name, k, round(s, 7), int(c)) for ring, name, k, s, c in columns]
    if not rows:
        return [], (0.0, 0.0, 0.0, 0.0)
    (x1, y1), (x2, y2) = rings.min(axis=(0, 1)), rings.max(axis=(0, 1))
    return rows, (float(x1), float(y1), float(x2), float(y2))


def blob(ring: np.ndarray, srs: int) -> bytes:
    """A closed ring (n, 2) as a GeoPackage geometry: header with its xy envelope, then a little-endian WKB polygon."""
    (x1, y1), (x2, y2) = ring.min(axis=0), ring.max(axis=0)
    flags = 0b00000011  # envelope [min x, max x, min y, max y], little-endian
    head = b"GP" + struct.pack("<BBi4d", 0, flags, srs, x1, x2, y1, y2)
    return head + struct.pack("<BIII", 1, 3, 1, len(ring)) + ring.astype("<f8").tobytes()
