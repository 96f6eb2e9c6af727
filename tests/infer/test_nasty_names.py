"""File names that no text can hold as they are: every result file is written, and every reader of its kind reads it."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from flyspeck.files import storable
from flyspeck.infer import outputs
from flyspeck.infer.naming import file_names
from flyspeck.infer.reading import Result
from flyspeck.infer.source import Item
from flyspeck.types import Detections

NAMES = (
    "\udce4\udcf6.jpg",  # bytes that are no UTF-8
    "\x1b[31mred.jpg",
    "new\nline.jpg",
    "return\rline.jpg",
    "q\"uo'te,<&>.jpg",
    "u\u202egpj.jpg",
    "d/\x01\x7f\ufffe.jpg",
    "船 \U0001f41f.jpg",
)
CLASSES = ("a\x1b\udce4", 'b,"<&>\n')


def _results() -> list[Result]:
    found = Detections([[1, 2, 5, 8], [10, 10, 14, 13]], [0.5, 0.75], [0, 1], (30, 40), CLASSES)
    return [
        Result(Item(name, np.zeros((30, 40), np.uint8), number, output), found)
        for number, (name, output) in enumerate(zip(NAMES, file_names(NAMES), strict=True), start=1)
    ]


def test_a_name_keeps_every_character_that_the_file_can_hold() -> None:
    assert storable("\udce4船\x1b\n") == "\\udce4船\x1b\n"
    assert storable("\udce4船\x1b\n\ufffe", xml=True) == "\\udce4船\\x1b\n\\ufffe"


@pytest.mark.parametrize("kind", sorted(outputs.WRITERS))
def test_every_format_is_written_and_read(kind: str, tmp_path: Path) -> None:
    if kind == "geoparquet":
        pytest.importorskip("pyarrow")
        pytest.importorskip("pyproj")
    (writer,) = outputs.open_writers(tmp_path, [kind], classes=CLASSES)
    for result in _results():
        writer.add(result)
    writer.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == {"coco": 2}.get(kind, 1 if _told(kind, files) is not None else len(NAMES))
    told = _told(kind, files)
    if told is not None:
        assert told == [name for name in NAMES for _ in range(2)]
    for path in files:
        if path.suffix in (".json", ".geojson"):
            json.loads(path.read_text("utf-8"))
        elif path.suffix == ".xml":
            ElementTree.parse(path)
        elif path.suffix == ".txt":
            assert path.read_text("utf-8")


def _told(kind: str, files: list[Path]) -> list[str] | None:
    """The names of the images, a box each, that a file of all images holds, brought back to what they were."""
    path = files[0]
    if kind == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [row["file_name"] for row in rows]
        assert [row["class"] for row in rows] == [storable(name) for name in CLASSES] * len(NAMES)
    elif kind == "gpkg":
        with sqlite3.connect(path) as base:
            names = [row[0] for row in base.execute("SELECT file_name FROM detections ORDER BY fid")]
        base.close()
    elif kind == "geoparquet":
        import pyarrow.parquet

        names = pyarrow.parquet.read_table(path)["file_name"].to_pylist()
    elif kind == "cvat":
        names = [image.attrib["name"] for image in ElementTree.parse(path).iter("image") for _ in image.iter("box")]
    else:
        return [name for name in NAMES for _ in range(2)] if kind == "label-studio" else None
    return [_original(name) for name in names]


def _original(told: str) -> str:
    return {stored: name for name in NAMES for stored in (storable(name), storable(name, xml=True))}.get(told, told)
