"""CVAT's own xml (`CVAT for images 1.1`, `CVAT for video 1.1`): one file for a task, boxes as edges in pixels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, by_name
from flyspeck.data.readers.image_sizes import known_sizes
from flyspeck.data.readers.places import image_files, note_listed, settle_root
from flyspeck.data.readers.values import as_id, as_number, as_numbers, as_path, as_truth, parse_xml
from flyspeck.errors import UserError, counted

_NO_AREA = ("points", "polyline", "tag", "cuboid", "skeleton")


def read_cvat(path: Path, options: ReadOptions) -> Annotations:
    """The table of a CVAT file. Boxes, polygons, ellipses and masks become the box around them, turned boxes the upright one.

    Classes are the task's labels in its order. Of a video, frames are the images `frame_000012` of the folder, or the files of
    the folder in order where there are as many; a track's boxes marked `outside` are left out.
    """
    root = parse_xml(path, options.encoding)
    if root.tag != "annotations":
        raise UserError(f"<{root.tag}> where CVAT has <annotations>", where=path, fix="export as CVAT for images 1.1")
    draft = Draft(where=path, root=path.parent)
    names: list[str] = []
    without: Counter[str] = Counter()
    images = list(root.iter("image"))
    counts = Counter(image.get("name") for image in images)
    for image in images:
        name = as_path(image.get("name") or f"{image.get('id')}.jpg")
        if counts[image.get("name")] > 1 and image.get("subset"):
            name = f"{image.get('subset')}/{name}"  # as an export with images has it: images/Train/a.jpg
        row = draft.add_image(_key(image.get("id"), name), name, _size(image.get("height"), image.get("width")))
        _add_shapes(draft, row, image, f"{path.name}, {name}", names, without)
    if any(True for _ in root.iter("track")):
        _read_tracks(draft, root, path, names, without, options)
    settle_root(draft, [options.images] if options.images else [path.parent, path.parent / "images"])
    known_sizes(draft, options)
    note_listed(
        draft, "images of the file are not there", "images beside them are not in the file, and are no part of the set"
    )
    for kind, count in sorted(without.items()):
        draft.notes.append(f"{counted(count, 'annotation')} of the kind {kind} without a box: left out")
    listed = [(label.findtext("name") or "").strip() for label in root.findall("meta//labels/label")]
    by_name(draft, names, listed=[name for name in listed if name])
    return assemble(draft, options, f"cvat: {path.name}")


def _key(given: str | None, name: str) -> int | str:
    found = as_id(given)
    return name if found is None else found


def _size(height: str | None, width: str | None) -> tuple[int, int]:
    sides = as_number(height or ""), as_number(width or "")
    return (int(sides[0]), int(sides[1])) if all(0 < side < 2**31 for side in sides) else (-1, -1)


def _add_shapes(
    draft: Draft,
    row: int,
    shapes: Iterable[ElementTree.Element],
    place: str,
    names: list[str],
    without: Counter[str],
    label: str | None = None,
) -> None:
    for count, shape in enumerate(shapes, 1):
        if shape.tag in _NO_AREA:
            without[shape.tag] += 1
        elif shape.tag in ("box", "polygon", "ellipse", "mask"):
            draft.add_box(row, _box(shape), -2, f"{place}, {shape.tag} {count}")
            draft.outlines += shape.tag != "box"
            names.append((label or shape.get("label") or "").strip())


def _read_tracks(
    draft: Draft, root: ElementTree.Element, path: Path, names: list[str], without: Counter[str], options: ReadOptions
) -> None:
    """The boxes of tracks, image by image; frames without a box are no part of the set unless their files are there."""
    folder = options.images or (path.parent / "images" if (path.parent / "images").is_dir() else path.parent)
    files = [file.name for file in image_files(folder)] if folder.is_dir() else []
    stems = {Path(name).stem: name for name in files}
    length = as_number(root.findtext("meta//size") or "")
    size = _size(root.findtext("meta//original_size/height"), root.findtext("meta//original_size/width"))
    in_order = files if len(files) == length else []
    rows: dict[int, int] = {}

    def row_of(frame: int) -> int:
        if frame not in rows:
            stem = f"frame_{frame:06d}"
            name = stems.get(stem) or (in_order[frame] if frame < len(in_order) else f"{stem}.PNG")
            rows[frame] = draft.add_image(frame, name, size)
        return rows[frame]

    for frame in range(len(in_order)):
        row_of(frame)
    skipped = 0
    for track in root.iter("track"):
        last: int | None = None
        for shape in track:
            frame = as_id(shape.get("frame"))
            if isinstance(frame, int):
                skipped += 0 if last is None else max(0, frame - last - 1)
                last = None if as_truth(shape.get("outside")) else frame
            if isinstance(frame, int) and 0 <= frame < 2**31 and not as_truth(shape.get("outside")):
                place = f"{path.name}, track {track.get('id')}, frame {frame}"
                _add_shapes(draft, row_of(frame), [shape], place, names, without, track.get("label"))
    if skipped:
        what = "frames lie between two boxes of a track and have none in the file: nothing is put between them"
        draft.notes.append(f"{skipped} {what}; CVAT's own export writes every frame")


def _box(shape: ElementTree.Element) -> list[float]:
    """xyxy of one shape; NaN where its numbers are broken."""
    numbers = {key: as_number(value) for key, value in shape.attrib.items()}
    if shape.tag == "box":
        x1, y1, x2, y2 = (numbers.get(name, math.nan) for name in ("xtl", "ytl", "xbr", "ybr"))
        turn = math.radians(numbers.get("rotation", 0.0))
        if not turn:
            return [x1, y1, x2, y2]
        x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        half = (
            (w * abs(math.cos(turn)) + h * abs(math.sin(turn))) / 2,
            (w * abs(math.sin(turn)) + h * abs(math.cos(turn))) / 2,
        )
        return [x - half[0], y - half[1], x + half[0], y + half[1]]
    if shape.tag == "ellipse":
        x, y, a, b = (numbers.get(name, math.nan) for name in ("cx", "cy", "rx", "ry"))
        return [x - a, y - b, x + a, y + b]
    if shape.tag == "mask":
        x, y, w, h = (numbers.get(name, math.nan) for name in ("left", "top", "width", "height"))
        return [x, y, x + w, y + h]
    points = [as_numbers(pair.split(",")) for pair in (shape.get("points") or "").split(";")]
    if len(points) < 2 or any(len(p) != 2 or not all(map(math.isfinite, p)) for p in points):
        return [math.nan] * 4
    xs, ys = zip(*points, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]
