"""Detections in other people's forms. The methods of `flyspeck.Detections` are thin calls of these functions.

They stand below that class: they name what they need of it (`FoundBoxes`) and import neither it nor anything above.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from flyspeck.data.images import read_image
from flyspeck.drawing import DrawnBoxes, annotate
from flyspeck.errors import UserError, missing_extra, nearest
from flyspeck.files import local_output, write_text
from flyspeck.geo import GeoReference

if TYPE_CHECKING:
    from PIL import Image


class FoundBoxes(DrawnBoxes, Protocol):
    """What the converters need to know of `flyspeck.Detections`."""

    @property
    def image_id(self) -> int | str | None:
        """The image's id in its data set."""
        ...

    @property
    def extra(self) -> dict[str, np.ndarray]:
        """More columns of length N."""
        ...

    def __len__(self) -> int: ...


def to_coco(
    found: FoundBoxes, *, category_ids: Sequence[int] | None = None, image_id: int | str | None = None
) -> list[dict[str, Any]]:
    """COCO results: one dict a box with image_id, category_id, bbox `[x, y, w, h]` in pixels and score.

    `category_ids` (K,) are the numbers of the classes, 1..K when left out; `image_id` is the detections' own when left out.
    Boxes are rounded to a thousandth of a pixel, scores to 7 digits.
    """
    image = found.image_id if image_id is None else image_id
    corners = found.boxes.astype(np.float64)
    xywh = np.round(np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1), 3).tolist()
    labels = found.labels.tolist()
    numbers = [label + 1 for label in labels] if category_ids is None else [int(category_ids[k]) for k in labels]
    scores = np.round(found.scores.astype(np.float64), 7).tolist()
    return [
        {"image_id": image, "category_id": number, "bbox": box, "score": score}
        for number, box, score in zip(numbers, xywh, scores, strict=True)
    ]


def to_supervision(found: FoundBoxes) -> Any:
    """A `supervision.Detections`, class names under `data["class_name"]`; needs the extra `supervision`."""
    try:
        import supervision
    except ImportError:
        raise missing_extra("supervision", "supervision") from None
    data = {"class_name": np.array(class_names(found)), **found.extra}
    return supervision.Detections(
        xyxy=found.boxes.copy(),
        confidence=found.scores.copy(),
        class_id=found.labels.copy(),
        data=data,  # pyright: ignore[reportArgumentType]
    )


def to_dataframe(found: FoundBoxes) -> Any:
    """A pandas data frame with a row for every box; needs the extra `dataframe`."""
    try:
        import pandas
    except ImportError:
        raise missing_extra("pandas", "dataframe") from None
    return pandas.DataFrame(columns_of(found))


def columns_of(found: FoundBoxes) -> dict[str, Any]:
    """The boxes as named columns of length N: image_id, x1, y1, x2, y2 (pixels), score, label, class, and the extra ones."""
    x1, y1, x2, y2 = found.boxes.T
    return {
        "image_id": [found.image_id] * len(found),
        **{"x1": x1, "y1": y1, "x2": x2, "y2": y2, "score": found.scores, "label": found.labels},
        "class": class_names(found),
        **{name: column for name, column in found.extra.items() if column.ndim == 1},
    }


def class_names(found: FoundBoxes) -> list[str]:
    """The name of each box's class, its number where the classes have no names."""
    known = len(found.classes)
    return [found.classes[k] if 0 <= k < known else str(k) for k in found.labels.tolist()]


def to_csv(found: FoundBoxes, *, header: bool = True) -> str:
    """The columns of `columns_of` as comma-separated text; names with commas or quotes are quoted."""
    columns = columns_of(found)
    lines = [",".join(columns)] if header else []
    return "".join(line + "\n" for line in [*lines, *csv_lines(columns)])


def csv_lines(columns: dict[str, Any]) -> list[str]:
    """Named columns of equal length as lines of comma-separated text."""
    cells = [[cell(v) for v in (c.tolist() if isinstance(c, np.ndarray) else c)] for c in columns.values()]
    return [",".join(row) for row in zip(*cells, strict=True)]


def cell(value: Any) -> str:
    """One value as a field of a csv file."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.7g}"
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def to_yolo(found: FoundBoxes) -> str:
    """Lines `label cx cy w h score`, box as shares of the image's sides."""
    height, width = found.image_size
    centre = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    side = found.boxes[:, 2:] - found.boxes[:, :2]
    shares = np.concatenate([centre, side], axis=1).astype(np.float64) / np.array([width, height] * 2)
    rows = zip(found.labels.tolist(), shares.tolist(), found.scores.tolist(), strict=True)
    return "".join(f"{k} {' '.join(f'{v:.8g}' for v in box)} {score:.6g}\n" for k, box, score in rows)


def to_widerface(found: FoundBoxes, name: str) -> str:
    """WIDER FACE's submission of the image `name`: its name, the number of boxes, lines `x y w h score`, best score first.

    Boxes are in pixels. The benchmark asks for a file with a count of 0 where nothing was found.
    """
    order = np.argsort(-found.scores, kind="stable")
    corners = found.boxes[order].astype(np.float64)
    xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    rows = zip(xywh.tolist(), found.scores[order].tolist(), strict=True)
    lines = [" ".join(f"{value:.9g}" for value in (*box, score)) for box, score in rows]
    return "".join(f"{line}\n" for line in (name, str(len(lines)), *lines))


def to_geojson(found: FoundBoxes, geo: GeoReference | None = None) -> dict[str, Any]:
    """A GeoJSON FeatureCollection, a polygon for every box, in the coordinate system of the image.

    RFC 7946 knows WGS 84 only; the `crs` member of the 2008 specification names another, as GDAL and QGIS read it. Without
    `geo` the coordinates are pixels, and the property `frame` says so.
    """
    collection: dict[str, Any] = {"type": "FeatureCollection"}
    if geo is not None and geo.crs is not None:
        name = geo.crs.replace("EPSG:", "urn:ogc:def:crs:EPSG::") if geo.crs.startswith("EPSG:") else geo.crs
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    frame = "pixels" if geo is None else "map"
    outlines = rings(found.boxes.astype(np.float64), geo).tolist()
    names = class_names(found)
    collection["features"] = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"class": name, "label": label, "score": round(score, 7), "frame": frame},
        }
        for ring, name, label, score in zip(outlines, names, found.labels.tolist(), found.scores.tolist(), strict=True)
    ]
    return collection


def rings(boxes: np.ndarray, geo: GeoReference | None) -> np.ndarray:
    """Closed outlines `(N, 5, 2)` of boxes, in map coordinates where `geo` is given."""
    corners = boxes[:, [0, 1, 0, 3, 2, 3, 2, 1, 0, 1]].reshape(-1, 5, 2)
    if geo is None:
        return corners
    a, b, c, d, e, f = geo.transform
    x, y = corners[..., 0], corners[..., 1]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)


def plot(found: FoundBoxes, image: np.ndarray | str | Path, *, max_side: int = 1600, crops: int = 8) -> Image.Image:
    """The image (array or file) with its boxes and enlarged crops of the smallest, as a Pillow image."""
    pixels = image if isinstance(image, np.ndarray) else read_image(image)
    return annotate(pixels, found, max_side=max_side, crops=crops)


_TEXTS = {
    ".json": lambda found: json.dumps(to_coco(found)),
    ".csv": to_csv,
    ".txt": to_yolo,
    ".geojson": lambda found: json.dumps(to_geojson(found)),
}
_IMAGES = (".png", ".jpg", ".jpeg", ".webp")


def save(found: FoundBoxes, path: str | Path, image: np.ndarray | str | Path | None = None) -> Path:
    """Write by the name's ending: `.json` COCO results, `.csv`, `.txt` YOLO, `.geojson` (pixels), or an image with boxes.

    An image ending needs `image`, the array or file to draw on. Raises UserError for an unknown ending.
    """
    path = local_output(path)
    ending = path.suffix.lower()
    if ending in _TEXTS:
        write_text(path, _TEXTS[ending](found))
    elif ending in _IMAGES:
        if image is None:
            raise UserError("no image to draw on", where=path, fix="pass image=, the array or file")
        plot(found, image).save(path)
    else:
        raise UserError(f"unknown ending '{ending}'", where=path, fix=nearest(ending, [*_TEXTS, *_IMAGES]))
    return path
