"""GeoParquet: every box of a job as a row with its polygon, for data bases and dataframes. Extra `geoparquet` (pyarrow, pyproj).

Source: GeoParquet specification 1.1.0 (geoparquet.org): WKB geometry, a covering bounding box for each row, the coordinate
system as PROJJSON. A file has one system: images of another one get a file of their own. What has none keeps pixel coordinates
with y upwards, as in a GeoPackage, and `"crs": null`; so has, in a file apart, what lies on a map whose system nobody says.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck import convert
from flyspeck.errors import missing_extra
from flyspeck.files import replace_file, storable
from flyspeck.geo import GeoReference
from flyspeck.infer.reading import Result
from flyspeck.infer.writer import Writer, close_all, closed_if_it_fails, disk_full
from flyspeck.projection import WGS84, project_json

FOLDER = "geoparquet"
_GROUP = 1 << 16  # rows that are held before they are written
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_WKB = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", (5, 2))])


class GeoParquetWriter(Writer):
    """`geoparquet/detections.parquet` (and `detections_2.parquet`, …, one for each further coordinate system).

    A Parquet file is whole only when it is closed: until then it has another name, and a kill leaves none. `--resume` writes it
    again from the finished tiles.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise missing_extra("pyarrow", "geoparquet") from None
        project_json(WGS84)  # a missing extra is told before the work, not at its end
        self._arrow: Any = pyarrow
        self._folder = folder / FOLDER
        self._files: dict[str | None, _OneSystem] = {}

    def add(self, result: Result) -> None:
        """See `Writer.add`."""
        geo = result.source_geo if isinstance(result.source_geo, GeoReference) else None
        crs = None if geo is None else geo.written
        key = None if geo is None else crs or ""  # a map that nobody names is not the pixels of an image
        try:
            if key not in self._files:
                number = len(self._files) + 1
                name = "detections" if number == 1 else f"detections_{number}"
                self._folder.mkdir(parents=True, exist_ok=True)
                self._files[key] = _OneSystem(self._arrow, self._folder / f"{name}.parquet", crs)
            self._files[key].add(result, geo)
        except OSError as error:
            raise disk_full(self._folder, error) from error

    def close(self) -> None:
        """See `Writer.close`."""
        close_all(list(self._files.values()))


class _OneSystem:
    """A file of one coordinate system."""

    def __init__(self, arrow: Any, path: Path, crs: str | None) -> None:
        self.path, self._arrow, self._crs = path, arrow, crs
        self._part = path.with_suffix(".part")
        box = arrow.struct([(side, arrow.float64()) for side in _SIDES])
        self._schema = arrow.schema(
            [
                ("geometry", arrow.binary()),
                ("bbox", box),
                *((name, arrow.string()) for name in ("file_name", "image_id", "class")),
                ("label", arrow.int64()),
                ("score", arrow.float64()),
                ("cut", arrow.bool_()),
            ]
        )
        # Without Arrow's own copy of the schema, which is written first and hides what is told of the file at the end.
        self._writer = arrow.parquet.ParquetWriter(self._part, self._schema, compression="zstd", store_schema=False)
        self._tables: list[Any] = []
        self._held = 0
        self._extent = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def add(self, result: Result, geo: GeoReference | None) -> None:
        """One image's boxes."""
        found, count = result.detections, len(result.detections)
        if not count:
            return
        outlines = convert.rings(found.boxes.astype(np.float64), geo)
        if geo is None:
            outlines = outlines * np.array([1.0, -1.0])
        packed = np.zeros(count, _WKB)
        packed["order"], packed["kind"], packed["rings"], packed["points"] = 1, 3, 1, 5
        packed["xy"] = outlines
        sides = np.concatenate([outlines.min(axis=1), outlines.max(axis=1)], axis=1)
        self._extent = np.concatenate(
            [
                np.minimum(self._extent[:2], sides[:, :2].min(axis=0)),
                np.maximum(self._extent[2:], sides[:, 2:].max(axis=0)),
            ]
        )
        arrow = self._arrow
        columns = [
            arrow.array([row.tobytes() for row in packed], arrow.binary()),
            arrow.StructArray.from_arrays([arrow.array(side) for side in sides.T], names=list(_SIDES)),
            arrow.array([storable(str(result.item.name))] * count),
            arrow.array([storable(str(result.item.image_id))] * count),
            arrow.array([storable(name) for name in convert.class_names(found)], arrow.string()),
            arrow.array(found.labels.astype(np.int64)),
            arrow.array(np.round(found.scores.astype(np.float64), 7)),
            arrow.array(np.asarray(found.extra.get("cut", np.zeros(count, bool)), bool)),
        ]
        self._tables.append(arrow.Table.from_arrays(columns, schema=self._schema))
        self._held += count
        if self._held >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._tables:
            self._writer.write_table(self._arrow.concat_tables(self._tables))
        self._tables, self._held = [], 0

    def close(self) -> None:
        """Writes what is held and what the specification wants to know of the file, and gives it its name. Raises UserError."""
        try:
            with closed_if_it_fails(self._writer):
                self._finish()
            replace_file(self.path, lambda temporary: shutil.move(self._part, temporary))
        except OSError as error:
            raise disk_full(self.path, error) from error

    def _finish(self) -> None:
        self._flush()
        covering = {side: ["bbox", side] for side in _SIDES}
        geometry: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": None if self._crs is None else project_json(self._crs),
            "covering": {"bbox": covering},
        }
        if np.isfinite(self._extent).all():
            geometry["bbox"] = self._extent.tolist()
        told = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
        self._writer.add_key_value_metadata({"geo": json.dumps(told)})
        self._writer.close()
