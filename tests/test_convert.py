from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from flyspeck import convert
from flyspeck.errors import UserError
from flyspeck.geo import GeoReference
from flyspeck.types import Detections

FOUND = Detections(
    [[10, 20, 14, 26], [0, 0, 1, 1]],
    [0.75, 0.5],
    [1, 0],
    (40, 80),
    ("boat", 'man, "old"'),
    image_id=9,
    extra={"cut": np.array([False, True])},
)
NOTHING = Detections.empty((40, 80), ("boat",))


def test_coco_worked_example() -> None:
    assert FOUND.to_coco() == [
        {"image_id": 9, "category_id": 2, "bbox": [10.0, 20.0, 4.0, 6.0], "score": 0.75},
        {"image_id": 9, "category_id": 1, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.5},
    ]
    assert [r["category_id"] for r in FOUND.to_coco(category_ids=[17, 3], image_id="x")] == [3, 17]
    assert FOUND.to_coco(image_id="x")[0]["image_id"] == "x"
    assert NOTHING.to_coco() == []


def test_yolo_worked_example() -> None:
    # Centre (12, 23) of 80 x 40: 0.15, 0.575; sides 4 and 6: 0.05, 0.15.
    assert convert.to_yolo(FOUND).splitlines()[0] == "1 0.15 0.575 0.05 0.15 0.75"
    assert convert.to_yolo(NOTHING) == ""


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(convert.to_csv(FOUND))))
    assert rows[0]["class"] == 'man, "old"'
    assert [float(rows[0][k]) for k in ("x1", "y1", "x2", "y2", "score")] == [10, 20, 14, 26, 0.75]
    assert [r["cut"] for r in rows] == ["0", "1"]


def test_geojson_in_map_coordinates() -> None:
    geo = GeoReference((0.5, 0, 1000, 0, -0.5, 2000), "EPSG:32617")
    collection = convert.to_geojson(FOUND, geo)
    assert collection["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32617"
    ring = collection["features"][0]["geometry"]["coordinates"][0]
    # Pixel (10, 20) is 1000 + 5, 2000 - 10; the ring is closed.
    assert_allclose(ring, [[1005, 1990], [1005, 1987], [1007, 1987], [1007, 1990], [1005, 1990]])
    # Counter-clockwise seen on a map with north up, as RFC 7946 asks.
    x, y = np.array(ring).T
    assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0
    assert convert.to_geojson(FOUND)["features"][0]["properties"]["frame"] == "pixels"
    assert "crs" not in convert.to_geojson(NOTHING)


def test_data_frame() -> None:
    pytest.importorskip("pandas")
    frame = FOUND.to_dataframe()
    assert list(frame["class"]) == ['man, "old"', "boat"]
    assert_array_equal(frame["cut"], [False, True])


def test_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    other = FOUND.to_supervision()
    assert isinstance(other, supervision.Detections)
    assert_array_equal(other.xyxy, FOUND.boxes)
    assert list(other.data["class_name"]) == ['man, "old"', "boat"]


@pytest.mark.parametrize(("package", "method"), [("pandas", "to_dataframe"), ("supervision", "to_supervision")])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, package: str, method: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"'{package}'.*pip install"):
        getattr(FOUND, method)()


@pytest.mark.parametrize("ending", [".json", ".csv", ".txt", ".geojson", ".png", ".jpg", ".webp"])
def test_save_by_ending(tmp_path: Path, ending: str) -> None:
    for found in (FOUND, NOTHING):
        path = found.save(tmp_path / f"a{ending}", np.full((40, 80, 3), 90, np.uint8))
        if ending in (".json", ".geojson"):
            json.loads(path.read_text())
        elif ending not in (".csv", ".txt"):
            with Image.open(path) as image:
                image.load()


def test_save_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean '\.json'"):
        FOUND.save(tmp_path / "a.jsn")
    with pytest.raises(UserError, match="no image to draw on"):
        FOUND.save(tmp_path / "a.png")


def test_plot_of_files_and_of_another_size(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 80), 90, np.uint8)).save(tmp_path / "a.png")
    assert FOUND.plot(tmp_path / "a.png").mode == "RGB"
    with pytest.raises(ValueError, match="for detections in an image of"):
        FOUND.plot(np.zeros((41, 80), np.uint8))
