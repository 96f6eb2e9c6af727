"""What is in a data set: sizes, classes, ignore regions, what is broken, and what follows from it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck import boxes as bx
from flyspeck.data.annotations import Annotations
from flyspeck.data.band_choice import Survey, band_ranges, choose_rule
from flyspeck.data.checks.boxes import find_box_faults
from flyspeck.data.fusion import fusion_facts
from flyspeck.data.headers import ImageHeader, read_header
from flyspeck.data.implications import imply
from flyspeck.errors import UserError, counted
from flyspeck.files import UNREADABLE
from flyspeck.size_bins import BINS, in_bins

FEW = 20
"""A class with fewer objects is pointed out."""


def size_histogram(boxes: np.ndarray) -> dict[str, int]:
    """Boxes (N, 4) by sqrt(area) in the six bins."""
    return dict(zip(BINS, in_bins(bx.area(boxes)).tolist(), strict=True))


def summarize(annotations: Annotations, *, check_files: bool = True) -> dict[str, Any]:
    """The facts on a data set as plain values, ready for json.

    `boxes` and `sizes` (boxes by bin of sqrt(w*h)) count ignore regions too; `objects` describes the boxes to be learnt: count,
    sizes, mean and standard deviation of the size in px, share of at most 20 px. `check_files` looks for each image and
    compares its header with the size that the annotations state.
    """
    objects = annotations.boxes[~annotations.ignore]
    per_image = np.bincount(annotations.image_index, minlength=len(annotations))
    total = max(1, annotations.num_boxes)
    sizes = size_histogram(annotations.boxes)
    facts: dict[str, Any] = {
        "source": annotations.source,
        "notes": list(annotations.notes),
        "images": len(annotations),
        "boxes": annotations.num_boxes,
        "sizes": sizes,
        "size_shares": {name: round(count / total, 6) for name, count in sizes.items()},
        "objects": _objects(objects),
        "ignore_regions": int(annotations.ignore.sum()),
        "ignore_share": round(float(annotations.ignore.mean()), 4) if annotations.num_boxes else 0.0,
        "boxes_per_image": _spread(per_image),
        "images_without_boxes": int((per_image == 0).sum()),
        "classes": _class_counts(annotations),
        "image_sizes": _image_sizes(annotations),
        "broken_entries": {"count": len(annotations.problems), "first": list(annotations.problems[:20])},
    }
    if check_files:
        facts["missing_files"], facts["unreadable_files"], facts["wrong_sizes"], survey = _check_files(annotations)
        facts["bands"] = _bands(survey)
    implied = imply(annotations)
    facts["implies"] = None if implied is None else asdict(implied)
    facts["fusion"] = fusion_facts(annotations)
    facts["box_faults"] = find_box_faults(annotations).facts()
    facts["warnings"] = _warnings(facts)
    return facts


def _objects(boxes: np.ndarray) -> dict[str, Any]:
    sizes = bx.size(boxes)
    if not len(boxes):
        return {"count": 0, "sizes": size_histogram(boxes), "size_mean": None, "size_sd": None, "share_to_20px": None}
    return {
        "count": len(boxes),
        "sizes": size_histogram(boxes),
        "size_mean": round(float(sizes.mean()), 3),
        "size_sd": round(float(sizes.std()), 3),
        "share_to_20px": round(float((sizes <= 20).mean()), 4),
        "size_percentiles": {f"{q}": round(float(np.percentile(sizes, q)), 2) for q in (5, 25, 50, 75, 95)},
    }


def _spread(counts: np.ndarray) -> dict[str, float]:
    if not len(counts):
        return {"mean": 0.0, "median": 0.0, "max": 0}
    return {"mean": round(float(counts.mean()), 3), "median": float(np.median(counts)), "max": int(counts.max())}


def _class_counts(annotations: Annotations) -> dict[str, int]:
    counts = np.bincount(annotations.labels[~annotations.ignore], minlength=len(annotations.classes))
    return dict(zip(annotations.classes, counts.tolist(), strict=True))


def _image_sizes(annotations: Annotations) -> dict[str, Any]:
    known = annotations.sizes[(annotations.sizes > 0).all(1)]
    if not len(known):
        return {"known": 0}
    low, high = known.min(0), known.max(0)
    return {
        "known": len(known),
        "width": [int(low[1]), int(high[1])],
        "height": [int(low[0]), int(high[0])],
    }


def _check_files(annotations: Annotations) -> tuple[dict, dict, dict, Survey]:
    """Images that are not there, that cannot be opened, and whose size is not the stated one: counts and the first few.

    The last are the headers of the others.
    """
    missing, unreadable, wrong = [], [], []
    headers: dict[str, ImageHeader] = {}
    for row, (height, width) in enumerate(annotations.sizes.tolist()):
        path = annotations.path(row)
        if not path.is_file():
            missing.append(annotations.file_names[row])
            continue
        try:
            headers[str(path)] = read_header(path)
            size = headers[str(path)].size
        except UserError as error:
            unreadable.append(str(error))
            continue
        if height > 0 and size != (height, width):
            wrong.append(f"{path.name}: {size[1]}x{size[0]} px, the annotations say {width}x{height}")
    first, second, third = ({"count": len(found), "first": found[:20]} for found in (missing, unreadable, wrong))
    return first, second, third, Survey(annotations.source, headers)


def _bands(survey: Survey) -> dict[str, Any]:
    """What kinds of images there are: bands, values and, of some images of each kind, the range of values by band."""
    kinds: dict[str, dict[str, Any]] = {}
    for path, header in survey.headers.items():
        kind = header.kind + (" with alpha" if header.alpha else "")
        entry = kinds.setdefault(
            kind, {"images": 0, "first": path, "bands": header.bands, "dtype": header.dtype, "alpha": header.alpha}
        )
        entry["images"] += 1
        if header.value_range is not None:
            entry.setdefault("stated_range", list(header.value_range))
    for kind, entry in kinds.items():
        entry["value_ranges"] = [[_plain(v) for v in pair] for pair in band_ranges(survey, kind)]
    return {"kinds": kinds, "trains": _training_words(survey)}


def _plain(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None


def _training_words(survey: Survey) -> list[str]:
    """What a training on this set says of its bands and values, or why it refuses them."""
    said: list[str] = []
    try:
        choose_rule(survey, say=said.append)
    except UserError as error:
        return [f"a training refuses them: {error.what}; {error.fix}"]
    return [line.removeprefix(f"{survey.source}: ") for line in said]


def _warnings(facts: dict[str, Any]) -> list[str]:
    """One line for each thing that somebody should look at; each is a fact."""
    found = []
    if not facts["objects"]["count"]:
        found.append("no objects to learn")
    empty = set(facts["box_faults"]["empty_classes"])
    few = [f"{name} ({count})" for name, count in facts["classes"].items() if count < FEW and name not in empty]
    if few and facts["objects"]["count"]:
        found.append(f"{len(few)} of {len(facts['classes'])} classes have fewer than {FEW} objects: {', '.join(few)}")
    for key, words in (
        ("broken_entries", "broken entries left out"),
        ("missing_files", "images are missing"),
        ("unreadable_files", "images cannot be read"),
        ("wrong_sizes", "images are not of the size that the annotations state"),
    ):
        if facts.get(key, {}).get("count"):
            found.append(f"{facts[key]['count']} {words}; the first: {facts[key]['first'][0]}")
    subpixel = facts["objects"]["sizes"]["[0,2)"]
    if subpixel:
        found.append(
            f"{counted(subpixel, 'object is', 'objects are')} below 2 px in size: TinyPerson's miss rate leaves those out,"
            " its AP those below 1 px"
        )
    return found


def summarize_classification(path: Path) -> dict[str, Any]:
    """The facts on a classification set of flyspeck's npz layout (`data`, `offsets`, `labels`, `classes`): it has no boxes."""
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {key: content[key] for key in ("labels", "classes") if key in content}
    except (OSError, *UNREADABLE) as error:
        raise UserError(f"not an npz file ({error})", where=path, fix="check the file") from None
    if len(arrays) < 2:
        raise UserError(
            "no arrays 'labels' and 'classes'", where=path, fix="a classification set has both, and data, offsets"
        )
    labels, names = arrays["labels"], [str(name) for name in arrays["classes"]]
    counts = np.bincount(labels, minlength=len(names))
    return {
        "source": f"npz of images with one label each: {path.name}",
        "images": len(labels),
        "boxes": 0,
        "sizes": dict.fromkeys(BINS, 0),
        "images_per_class": _spread(counts),
        "classes": dict(zip(names, counts.tolist(), strict=True)),
        "warnings": [],
    }
