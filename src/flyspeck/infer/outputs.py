"""Result files that are whole at any moment: what was written before a full disk or a kill stays readable.

A json file always ends with its closing brackets; each image's entries overwrite them and put them back in one write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path, PurePath
from typing import Any

from flyspeck import convert
from flyspeck.data import tool_files
from flyspeck.data.tool_files import LabelledBoxes
from flyspeck.data.writers import WRITERS as ANNOTATION_WRITERS
from flyspeck.errors import UserError
from flyspeck.files import storable
from flyspeck.geo import GeoReference
from flyspeck.infer.geopackage import GeoPackageWriter
from flyspeck.infer.geoparquet import GeoParquetWriter
from flyspeck.infer.growing_csv import GrowingCsv
from flyspeck.infer.reading import Result
from flyspeck.infer.writer import Writer, close_all, closed_if_it_fails, disk_full
from flyspeck.plugins import UnknownPart, with_installed
from flyspeck.version import VERSION


class _JsonList:
    """A json file around a list that grows, valid after every `extend`."""

    def __init__(self, path: Path, *, head: str = "[", tail: str = "\n]\n") -> None:
        self.path, self._tail, self._empty = path, tail, True
        self._file = path.open("w+b")
        self._end = len(head)
        with closed_if_it_fails(self):
            self._put((head + tail).encode(), 0)

    def extend(self, entries: Sequence[Any]) -> None:
        """Append entries, all or none of them."""
        if not entries:
            return
        text = ",".join("\n" + json.dumps(entry, separators=(",", ":")) for entry in entries)
        new = ("" if self._empty else ",") + text
        self._put((new + self._tail).encode(), self._end)
        self._end, self._empty = self._end + len(new.encode()), False

    def _put(self, data: bytes, at: int) -> None:
        try:
            self._file.seek(at)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            # Shrinking always works, and the closing brackets were there before.
            with suppress(OSError):
                self._file.close()
            self._file = self.path.open("r+b")
            self._file.truncate(at)
            self._file.seek(at)
            self._file.write(self._tail.encode())
            self._file.flush()
            raise disk_full(self.path, error) from error

    def close(self) -> None:
        """Close the file, which is whole already."""
        self._file.close()


class CocoWriter(Writer):
    """`detections.json`, COCO results, and `images.json` that says which image each id is, and what the categories are.

    `category_ids` (K,) by class; 1..K when left out.
    """

    keeps_all = True

    def __init__(self, folder: Path, *, classes: Sequence[str], category_ids: Sequence[int] | None = None) -> None:
        self._ids = list(category_ids) if category_ids is not None else list(range(1, len(classes) + 1))
        categories = [{"id": number, "name": name} for number, name in zip(self._ids, classes, strict=True)]
        head = '{"categories":' + json.dumps(categories) + ',\n"annotations":[],\n"images":['
        self._results = _JsonList(folder / "detections.json")
        with closed_if_it_fails(self._results):
            self._images = _JsonList(folder / "images.json", head=head, tail="\n]}\n")

    def add(self, result: Result) -> None:
        """See `Writer.add`."""
        height, width = result.detections.image_size
        name = str(result.item.name)
        entry = {"id": result.item.image_id, "file_name": name, "height": height, "width": width}
        if result.value_range is not None:  # by which the same pixels are seen again
            entry["value_range"] = [list(pair) for pair in result.value_range]
        self._images.extend([entry])
        ids = self._ids or None
        self._results.extend(convert.to_coco(result.detections, category_ids=ids, image_id=result.item.image_id))

    def close(self) -> None:
        """See `Writer.close`."""
        close_all([self._results, self._images])


class CsvWriter(Writer):
    """`detections.csv`: a line a box, the image's name first."""

    def __init__(self, folder: Path) -> None:
        head = "file_name,image_id,x1,y1,x2,y2,score,label,class,cut"
        self._lines = GrowingCsv(folder / "detections.csv", head)

    def add(self, result: Result) -> None:
        """See `Writer.add`."""
        found = result.detections
        name = convert.cell(result.item.name)
        columns = convert.columns_of(found)
        cut = found.extra.get("cut")
        columns = {key: columns[key] for key in ("image_id", "x1", "y1", "x2", "y2", "score", "label", "class")}
        columns["image_id"] = [result.item.image_id] * len(found)
        columns["cut"] = [False] * len(found) if cut is None else cut
        self._lines.add([f"{name},{line}" for line in convert.csv_lines(columns)])

    def close(self) -> None:
        """See `Writer.close`."""
        self._lines.close()


class LabelStudioWriter(Writer):
    """`label_studio.json`: tasks with predictions, to be imported as pre-annotations."""

    def __init__(self, folder: Path) -> None:
        self._tasks = _JsonList(folder / "label_studio.json")
        self._count = 0

    def add(self, result: Result) -> None:
        """See `Writer.add`."""
        self._count += 1
        self._tasks.extend(
            [tool_files.label_studio_task(labelled(result), self._count, model_version=f"flyspeck {VERSION}")]
        )

    def close(self) -> None:
        """See `Writer.close`."""
        self._tasks.close()


class CvatWriter(Writer):
    """`cvat.xml`: CVAT for images 1.1, to be uploaded as annotations of a task with the same images."""

    def __init__(self, folder: Path, *, classes: Sequence[str], **_: Any) -> None:
        self.path = folder / "cvat.xml"
        self._file = self.path.open("w+b")
        with closed_if_it_fails(self):
            self._file.write((tool_files.cvat_head(classes) + tool_files.CVAT_TAIL).encode())
            self._file.flush()
        self._end = self._file.tell() - len(tool_files.CVAT_TAIL)
        self._count = 0

    def add(self, result: Result) -> None:
        """See `Writer.add`."""
        text = tool_files.cvat_image(labelled(result), self._count).encode()
        try:
            self._file.seek(self._end)
            self._file.write(text + tool_files.CVAT_TAIL.encode())
            self._file.flush()
        except OSError as error:
            with suppress(OSError):
                self._file.close()
            os.truncate(self.path, self._end)
            self._file = self.path.open("r+b")
            self._file.seek(self._end)
            self._file.write(tool_files.CVAT_TAIL.encode())
            self._file.flush()
            raise disk_full(self.path, error) from error
        self._end, self._count = self._end + len(text), self._count + 1

    def close(self) -> None:
        """See `Writer.close`."""
        self._file.close()


def labelled(result: Result) -> LabelledBoxes:
    """One image's detections as the tools' files take them."""
    found = result.detections
    names = [found.classes[label] for label in found.labels.tolist()]
    return LabelledBoxes(str(result.item.name), found.image_size, found.boxes, names, scores=found.scores)


_PLACES = {
    "yolo": ("labels", ".txt"),
    "geojson": ("geojson", ".geojson"),
    "widerface": ("widerface", ".txt"),
    "voc": ("voc", ".xml"),
    "labelme": ("labelme", ".json"),
}


class PerImageWriter(Writer):
    """One small file an image: YOLO text under `labels/`, GeoJSON under `geojson/`, or WIDER FACE's under `widerface/`."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind, self.keeps_all = kind, kind == "widerface"
        self.folder, self.ending = folder / _PLACES[kind][0], _PLACES[kind][1]

    def add(self, result: Result) -> None:
        """See `Writer.add`."""
        path = self.folder / f"{result.item.file_name}{self.ending}"
        text = self._text(result)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise disk_full(path, error) from error

    def _text(self, result: Result) -> str:
        found = result.detections
        if self.kind == "yolo":
            return convert.to_yolo(found)
        if self.kind == "widerface":
            return convert.to_widerface(found, storable(PurePath(result.item.name).name))
        if self.kind == "voc":
            return tool_files.voc_xml(labelled(result))
        if self.kind == "labelme":
            return json.dumps(tool_files.labelme_file(labelled(result)), indent=1)
        geo = result.source_geo if isinstance(result.source_geo, GeoReference) else None
        return json.dumps(convert.to_geojson(found, geo))

    def close(self) -> None:
        """See `Writer.close`."""


def _per_image(kind: str) -> Callable[..., Writer]:
    return lambda folder, **_: PerImageWriter(folder, kind)


WRITERS: dict[str, Callable[..., Writer]] = {
    "coco": CocoWriter,
    "cvat": CvatWriter,
    "label-studio": lambda folder, **_: LabelStudioWriter(folder),
    "labelme": _per_image("labelme"),
    "voc": _per_image("voc"),
    "csv": lambda folder, **_: CsvWriter(folder),
    "geojson": _per_image("geojson"),
    "geoparquet": lambda folder, **_: GeoParquetWriter(folder),
    "gpkg": lambda folder, **_: GeoPackageWriter(folder),
    "widerface": _per_image("widerface"),
    "yolo": _per_image("yolo"),
}
"""Formats by name: `(folder, *, classes, category_ids)` to a writer; a plugin adds its own by `flyspeck.register_writer`."""


MAP_FORMATS = ("geojson", "gpkg", "geoparquet")
"""Those of `WRITERS` that write where things are on a map."""


def check_formats(formats: Sequence[str]) -> None:
    """Raise UserError for a name that is not in `WRITERS`, nor in those that installed plugins add; of one in whose form
    annotations alone are written, it says so.
    """

    def find() -> None:
        for name in formats:
            if name not in WRITERS:
                raise UnknownPart(f"unknown output format '{name}'", name=name, known=WRITERS)

    try:
        with_installed(find)
    except UnknownPart as error:
        if error.name in ANNOTATION_WRITERS:
            fix = f"choose from {', '.join(WRITERS)}"
            raise UserError(f"'{error.name}' is a form of annotations, not of detections", fix=fix) from None
        raise


def open_writers(
    folder: Path, formats: Sequence[str], *, classes: Sequence[str], category_ids: Sequence[int] | None = None
) -> list[Writer]:
    """The writers of `formats` (names in `WRITERS`) into `folder`, which is made. Raises UserError; none is left open then."""
    check_formats(formats)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make this folder ({error.strerror})", where=folder) from error
    with ExitStack() as opened:
        writers = []
        for name in dict.fromkeys(formats):
            writers.append(WRITERS[name](folder, classes=classes, category_ids=category_ids))
            opened.callback(writers[-1].close)
        opened.pop_all()
    return writers
