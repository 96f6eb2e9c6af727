"""Which image a detection belongs to, where ids and file names might disagree.

A results file has ids only. `flyspeck predict` writes `images.json` beside it, which says what file each id was: of a folder it
numbers the files itself, and the ground truth may number them otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.values import as_id, as_path, load_json
from flyspeck.errors import UserError

LISTING = "images.json"


def ids_by_name(results: Path, annotations: Annotations) -> tuple[dict[Any, Any], str]:
    """What the image ids of a results file must be called, and a note; empty where the ids are those of the ground truth.

    Where the listing beside the file and the ground truth name the same files under other ids, names decide. Raises UserError
    where an id means two files and names do not settle it.
    """
    listing = results.parent / LISTING
    content = load_json(listing) if listing.is_file() and listing != results else None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        return {}, ""
    named = {
        as_id(image.get("id")): as_path(str(image.get("file_name", ""))) for image in images if isinstance(image, dict)
    }
    ids = [value.item() if hasattr(value, "item") else value for value in annotations.image_ids]
    theirs = {as_id(key): as_path(name) for key, name in zip(ids, annotations.file_names, strict=True)}
    clash = next((key for key, name in named.items() if key not in theirs or not _same_file(name, theirs[key])), None)
    if clash is None:
        return {}, ""
    by_tail: dict[str, list[Any]] = {}
    for key, name in zip(ids, annotations.file_names, strict=True):
        by_tail.setdefault(Path(as_path(name)).name, []).append((key, as_path(name)))
    renamed: dict[Any, Any] = {}
    for key, name in named.items():
        found = [other for other, path in by_tail.get(Path(name).name, []) if _same_file(name, path)]
        if len(found) > 1:
            raise UserError(
                f"'{name}' (image id {key}) could be {len(found)} images of the ground truth",
                where=listing,
                fix="predict on the ground truth's own json, so that ids agree",
            )
        if found:
            renamed[key] = found[0]
    if not renamed:
        what = f"image id {clash!r} is '{named[clash]}' here and {theirs.get(clash, 'unknown')!r} in the ground truth"
        raise UserError(
            what, where=listing, fix="are these detections of other images? predict on the ground truth's own json"
        )
    count = f"{len(renamed)} of {len(named)} images"
    return renamed, f"the detections' image ids are not those of the ground truth: joined by file name, {count}"


def _same_file(one: str, other: str) -> bool:
    """Whether one path is the tail of the other."""
    short, long = sorted((one, other), key=len)
    return long == short or long.endswith(f"/{short}")
