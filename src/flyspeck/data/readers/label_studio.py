"""Label Studio: its json export (tasks with results), or the short one (JSON-MIN); shapes in percent of the image."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from flyspeck.data.annotations import Annotations
from flyspeck.data.images import EXTENSIONS
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, by_name
from flyspeck.data.readers.folders import is_there
from flyspeck.data.readers.image_sizes import known_sizes
from flyspeck.data.readers.places import note_listed, settle_root
from flyspeck.data.readers.values import as_id, as_name, as_number, as_numbers, as_path, load_json
from flyspeck.errors import UserError, counted

_SEVERAL = "several labels"
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")
"""What Label Studio puts before the name of a file that was uploaded."""


def read_label_studio(path: Path, options: ReadOptions) -> Annotations:
    """The table of a Label Studio export. Rectangles, polygons and ellipses become the upright box around them.

    Of a task that was annotated several times the last annotation that was not skipped is taken, with a note; predictions are
    none. Images are looked for under the name that the task gives, with and without the eight letters of an upload.
    """
    content = load_json(path, options.encoding)
    tasks = content if isinstance(content, list) else [content]
    draft = Draft(where=path, root=path.parent)
    names: list[str] = []
    without: Counter[str] = Counter()
    several = 0
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, Mapping):
            draft.problems.append(f"{path.name}: task {number} is no object")
            continue
        given = _image_of(task)
        results, more = _results(task)
        several += more
        if given is None:
            draft.problems.append(f"{path.name}: task {number} names no image")
            continue
        key = as_id(task.get("id"))
        row = draft.add_image(number if key is None else key, given, _size(results))
        for count, result in enumerate(results, 1):
            _add(draft, row, result, f"{path.name}, task {number}, result {count}", names, without)
    if not draft.image_ids:
        raise UserError("no task with an image", where=path, fix="export as JSON")
    guesses = sum(isinstance(task, Mapping) and _only_predicted(task) for task in tasks)
    if guesses:
        draft.notes.append(
            f"{guesses} tasks have predictions and no annotation: predictions are not read as ground truth"
        )
    if several:
        draft.notes.append(f"{several} tasks have several annotations: the last of each is taken")
    _note_undone(draft, tasks)
    places = [options.images] if options.images else [path.parent, path.parent / "images", path.parent / "upload"]
    draft.file_names = [_as_on_disk(name, places) for name in draft.file_names]
    settle_root(draft, places)
    known_sizes(draft, options)
    note_listed(
        draft, "images of the file are not there", "images beside them are not in the file, and are no part of the set"
    )
    if without[_SEVERAL]:
        draft.notes.append(f"{without.pop(_SEVERAL)} shapes have several labels: the first of each is taken")
    for kind, count in sorted(without.items()):
        draft.notes.append(f"{count} results are of the kind {kind} and have no box: left out")
    by_name(draft, names)
    return assemble(draft, options, f"label studio: {path.name}")


def _image_of(task: Mapping[str, Any]) -> str | None:
    """The path of a task's image: the value of its data that has an image's ending."""
    data = task.get("data")
    values = data.values() if isinstance(data, Mapping) else task.values()
    texts = [value for value in values if isinstance(value, str)]
    for text in texts:
        address = urlparse(text.replace("\\", "/"))
        inside = parse_qs(address.query).get("d")  # /data/local-files/?d=folder/a.jpg
        name = as_path(inside[0] if inside else unquote(address.path)).lstrip("/")
        if Path(name).suffix.lower() in EXTENSIONS:
            return name
    return None


def _as_on_disk(name: str, places: list[Path]) -> str:
    """`upload/3/1a2b3c4d-a.jpg` is the file a.jpg on the disk it came from, or that very name in an export with images."""
    parts = name.split("/")
    upload = _UPLOAD.fullmatch(parts[-1])
    trials = ["/".join(parts[start:]) for start in range(len(parts))]
    trials += [upload[1]] if upload else []
    return next((trial for trial in trials for place in places if is_there(place / trial)), name)


def _results(task: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], bool]:
    """The results that count, and whether there were others."""
    entries = task.get("annotations", task.get("completions"))
    if isinstance(entries, list):
        done = [e for e in entries if isinstance(e, Mapping) and not e.get("was_cancelled") and not e.get("skipped")]
        listed = done[-1].get("result") if done else []
        return [r for r in listed if isinstance(r, Mapping)] if isinstance(listed, list) else [], len(done) > 1
    found: list[Mapping[str, Any]] = []
    for value in task.values():  # JSON-MIN: {"image": …, "label": [{"x": …, "rectanglelabels": […]}]}
        if isinstance(value, list):
            found += [{"value": v, **v} for v in value if isinstance(v, Mapping) and "original_width" in v]
    return found, False


def _note_undone(draft: Draft, tasks: list[Any]) -> None:
    """Notes on annotations that were cancelled or skipped, and on tasks that nobody has annotated."""
    listed = [task.get("annotations", task.get("completions")) for task in tasks if isinstance(task, Mapping)]
    entries = [[e for e in one if isinstance(e, Mapping)] for one in listed if isinstance(one, list)]
    undone = [sum(bool(e.get("was_cancelled") or e.get("skipped")) for e in one) for one in entries]
    empty = sum(count == len(one) for count, one in zip(undone, entries, strict=True))
    if any(undone):
        draft.notes.append(
            f"{counted(sum(undone), 'annotation was', 'annotations were')} cancelled or skipped: left out"
        )
    if empty:
        draft.notes.append(f"{empty} tasks are not annotated: their images are read as images without objects")


def _only_predicted(task: Mapping[str, Any]) -> bool:
    return bool(task.get("predictions")) and not _results(task)[0]


def _size(results: list[Mapping[str, Any]]) -> tuple[int, int]:
    for result in results:
        sides = as_number(result.get("original_height")), as_number(result.get("original_width"))
        if all(0 < side < 2**31 for side in sides):
            return int(sides[0]), int(sides[1])
    return -1, -1


def _add(
    draft: Draft, row: int, result: Mapping[str, Any], place: str, names: list[str], without: Counter[str]
) -> None:
    value = result.get("value")
    value = value if isinstance(value, Mapping) else {}
    labels = next((v for key, v in value.items() if key.endswith("labels") and isinstance(v, list) and v), None)
    kind = str(result.get("type") or next((key for key in value if key.endswith("labels")), "?"))
    box = _box(value, _size([result]))
    if box is None or labels is None:
        if result.get("type") not in ("choices", "relation", "textarea", "rating", "number"):
            without["a shape without label" if labels is None else kind] += 1
        return
    if len(labels) > 1:
        without[_SEVERAL] += 1
    draft.add_box(row, box, -2, place)
    names.append(as_name(labels[0]))
    draft.outlines += "width" not in value or "height" not in value


def _box(value: Mapping[str, Any], size: tuple[int, int]) -> list[float] | None:
    """xyxy in pixels of a shape in percent of an image of `size` (H, W); None for what has no box, NaN where it is broken.

    A turned rectangle is turned clockwise, in pixels, about its upper left corner.
    """
    across, down = (size[1] / 100, size[0] / 100) if min(size) > 0 else (math.nan, math.nan)
    if isinstance(value.get("points"), list):
        points = [as_numbers(p) for p in value["points"] if isinstance(p, list) and len(p) == 2]
        if len(points) < 2:
            return [math.nan] * 4
        xs, ys = zip(*((x * across, y * down) for x, y in points), strict=True)
    elif "radiusX" in value:
        x, y, a, b = (as_number(value.get(name)) for name in ("x", "y", "radiusX", "radiusY"))
        xs, ys = ((x - a) * across, (x + a) * across), ((y - b) * down, (y + b) * down)
    elif "width" in value and "height" in value:
        x, w = (as_number(value.get(name)) * across for name in ("x", "width"))
        y, h = (as_number(value.get(name)) * down for name in ("y", "height"))
        turn = math.radians(as_number(value.get("rotation") or 0))
        corners = [(0.0, 0.0), (w, 0.0), (0.0, h), (w, h)]
        xs = tuple(x + u * math.cos(turn) - v * math.sin(turn) for u, v in corners)
        ys = tuple(y + u * math.sin(turn) + v * math.cos(turn) for u, v in corners)
    else:
        return None
    return [min(xs), min(ys), max(xs), max(ys)] if all(map(math.isfinite, (*xs, *ys))) else [math.nan] * 4
