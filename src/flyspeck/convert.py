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
from flyspeck.files import cell, local_output, make_folder, own_place, write_text
from flyspeck.geo import GeoReference
from flyspeck.projection import WGS84, is_geographic, transformed, unwrapped

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

    RFC 7946 knows WGS 84 only; the `crs` member of the 2008 specification names another, as GDAL and QGIS read it. Where WGS 84
    is asked for (`geo.asked`), the file follows the RFC: longitude before latitude, no `crs` member, outer rings
    counterclockwise, and what lies across the antimeridian in two parts. Without `geo` the coordinates are pixels, and the
    property `frame` says so. Raises UserError as `rings` does.
    """
    collection: dict[str, Any] = {"type": "FeatureCollection"}
    crs = None if geo is None else geo.written
    strict = geo is not None and geo.asked == WGS84
    if crs is not None and not strict:
        name = crs.replace("EPSG:", "urn:ogc:def:crs:EPSG::") if crs.startswith("EPSG:") else crs
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    frame = "pixels" if geo is None else "map"
    outlines = rings(found.boxes.astype(np.float64), geo)
    shapes = [_on_globe(ring) if strict else _polygon(ring) for ring in outlines]
    names = class_names(found)
    collection["features"] = [
        {
            "type": "Feature",
            "geometry": shape,
            "properties": {"class": name, "label": label, "score": round(score, 7), "frame": frame},
        }
        for shape, name, label, score in zip(shapes, names, found.labels.tolist(), found.scores.tolist(), strict=True)
    ]
    return collection


def rings(boxes: np.ndarray, geo: GeoReference | None) -> np.ndarray:
    """Closed outlines `(N, 5, 2)` of boxes, in map coordinates where `geo` is given, in the system that it asks for.

    There they are counterclockwise with x to the right and y up, and one that crosses the antimeridian goes on beyond ±180
    degrees. Raises UserError where a corner has no place in that system.
    """
    corners = boxes[:, [0, 1, 0, 3, 2, 3, 2, 1, 0, 1]].reshape(-1, 5, 2)
    if geo is None:
        return corners
    placed = geo.on_map(corners)
    if geo.asked is None or geo.crs is None:
        return placed
    placed = transformed(placed, geo.crs, geo.asked)
    if not np.isfinite(placed).all():
        raise UserError(f"a box has no place in {geo.asked[:40]}", fix="choose a coordinate system of that region")
    if is_geographic(geo.asked):
        placed = unwrapped(placed)
    turned = _area(placed) < 0
    placed[turned] = placed[turned, ::-1]
    return placed


def _area(outlines: np.ndarray) -> np.ndarray:
    """`(N,)` signed areas of closed outlines `(N, n, 2)`, positive where they go counterclockwise."""
    x, y = np.moveaxis(
        outlines - outlines[:, :1], 2, 0
    )  # the first corner as origin: no digits are lost to large coordinates
    return (x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1]).sum(1) / 2


def _polygon(*outlines: np.ndarray) -> dict[str, Any]:
    if len(outlines) == 1:
        return {"type": "Polygon", "coordinates": [outlines[0].tolist()]}
    return {"type": "MultiPolygon", "coordinates": [[ring.tolist()] for ring in outlines]}


def _on_globe(ring: np.ndarray) -> dict[str, Any]:
    """An outline (n, 2) in degrees as RFC 7946 wants it: within ±180, cut in two at the antimeridian (section 3.1.9)."""
    west = 360 * np.floor((ring[:-1, 0].mean() + 180) / 360)  # turns of the whole
    ring = ring - [west, 0] if west else ring
    over = 180.0 if ring[:, 0].max() > 180 else -180.0 if ring[:, 0].min() < -180 else None
    if over is None:
        return _polygon(ring)
    inside = _cut(ring, over, keep_west=over > 0)
    outside = _cut(ring, over, keep_west=over < 0) - [2 * over, 0]
    return _polygon(*(part for part in (inside, outside) if len(part) > 3))


def _cut(ring: np.ndarray, longitude: float, *, keep_west: bool) -> np.ndarray:
    """The part (n, 2) of a closed convex ring on one side of a meridian, closed."""
    side = (longitude - ring[:, 0]) * (1 if keep_west else -1)
    kept: list[np.ndarray] = []
    for k in range(len(ring) - 1):
        if side[k] >= 0:
            kept.append(ring[k])
        if side[k] * side[k + 1] < 0:
            share = side[k] / (side[k] - side[k + 1])
            crossing = ring[k] + share * (ring[k + 1] - ring[k])
            kept.append(np.array([longitude, crossing[1]]))
    return np.array([*kept, kept[0]]) if kept else np.zeros((0, 2))


def plot(found: FoundBoxes, image: Any, *, max_side: int = 1600, crops: int = 8) -> Image.Image:
    """The image (a file, an array or what becomes one) with its boxes and enlarged crops of the smallest, as a Pillow image.

    Raises UserError for what is no image, or one of another size.
    """
    pixels = read_image(image) if isinstance(image, str | Path) else _pixels(image)
    height, width = found.image_size
    if pixels.shape[:2] != (height, width) and pixels.ndim == 3 and pixels.shape[1:] == (height, width):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or pixels.shape[:2] != (height, width):
        what = f"pixels of shape {pixels.shape} for detections in an image of {height}x{width}"
        raise UserError(what, where="image", fix="give the image that they were found in")
    return annotate(pixels, found, max_side=max_side, crops=crops)


def _pixels(image: Any) -> np.ndarray:
    if callable(getattr(image, "detach", None)):
        image = image.detach().cpu()
    if not hasattr(image, "__array__"):
        fix = "give a path, an array, a tensor or a Pillow image"
        raise UserError(f"{type(image).__name__} is nothing to draw on", where="image", fix=fix)
    return np.asarray(image)


_TEXTS = {
    ".json": lambda found: json.dumps(to_coco(found)),
    ".csv": to_csv,
    ".txt": to_yolo,
    ".geojson": lambda found: json.dumps(to_geojson(found)),
}
_IMAGES = (".png", ".jpg", ".jpeg", ".webp")


def save(found: FoundBoxes, path: str | Path, image: Any = None) -> Path:
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
        make_folder(path.parent)
        plot(found, image).save(own_place(path))
    else:
        raise UserError(f"unknown ending '{ending}'", where=path, fix=nearest(ending, [*_TEXTS, *_IMAGES]))
    return path
