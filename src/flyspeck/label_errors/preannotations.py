"""Suspects as pre-annotations: a file of an annotation tool, in which somebody settles one after the other.

Of every image with a suspect: the annotations that nothing is said against as they are, and each suspect as the detector would
have it, under a class of its own, `KIND: CLASS`. So they can be listed, accepted or deleted by class; the score is the chance.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from flyspeck.data import tool_files
from flyspeck.data.annotations import Annotations
from flyspeck.data.image_files import output_names
from flyspeck.data.tool_files import LabelledBoxes
from flyspeck.data.tool_writers import IGNORE_NAME
from flyspeck.errors import UserError, nearest
from flyspeck.files import write_text
from flyspeck.label_errors.suspects import Suspect
from flyspeck.version import VERSION

Format = Literal["cvat", "fiftyone", "label-studio", "labelme", "voc"]
FORMATS: tuple[Format, ...] = ("cvat", "fiftyone", "label-studio", "labelme", "voc")


def check_formats(names: Sequence[str]) -> None:
    """Raises UserError for a tool that is not in `FORMATS`."""
    for name in names:
        if name not in FORMATS:
            raise UserError(f"no pre-annotations for '{name}'", where="--to", fix=nearest(name, FORMATS))


def write_preannotations(annotations: Annotations, suspects: Sequence[Suspect], folder: Path, format: Format) -> Path:
    """Write the images with suspects in the tool's form into `folder`; returns the file, or the folder of files.

    Label Studio gets tasks that hold the unsuspected annotations, and predictions beside them; the other tools one list of both,
    in which the score of what is not suspected is 1.
    """
    images = list(_images(annotations, suspects))
    classes = list(dict.fromkeys(name for kept, found in images for name in (*kept.labels, *found.labels)))
    joined = [_joined(kept, found) for kept, found in images]
    if format == "label-studio":
        tasks = []
        for number, (kept, found) in enumerate(images, 1):
            task = tool_files.label_studio_task(found, number, model_version=f"flyspeck {VERSION}")
            tasks.append({**tool_files.label_studio_task(kept, number), "predictions": task["predictions"]})
        return _write(folder / "label_studio.json", json.dumps(tasks, indent=1))
    if format == "cvat":
        parts = [tool_files.cvat_image(image, number) for number, image in enumerate(joined)]
        return _write(folder / "cvat.xml", "".join([tool_files.cvat_head(classes), *parts, tool_files.CVAT_TAIL]))
    if format == "fiftyone":
        labels = {os.path.splitext(image.name)[0]: tool_files.fiftyone_labels(image, classes) for image in joined}
        return _write(folder / "fiftyone.json", json.dumps({"classes": classes, "labels": labels}, indent=1))
    ending = ".xml" if format == "voc" else ".json"
    for name, image in zip(output_names([image.name for image in joined], ending), joined, strict=True):
        text = tool_files.voc_xml(image) if format == "voc" else json.dumps(tool_files.labelme_file(image), indent=1)
        _write(folder / format / name, text)
    return folder / format


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _images(annotations: Annotations, suspects: Sequence[Suspect]) -> Iterator[tuple[LabelledBoxes, LabelledBoxes]]:
    """Of every image with suspects: its unsuspected annotations, and the suspects with their chances."""
    by_image: dict[int, list[Suspect]] = {}
    for one in suspects:
        by_image.setdefault(one.image, []).append(one)
    for image, here in sorted(by_image.items()):
        rows = np.arange(*annotations.of_image(image).indices(annotations.num_boxes))
        rows = np.setdiff1d(rows, [one.row for one in here if one.row is not None]).astype(np.int64)
        labels = [
            annotations.classes[label] if label >= 0 and not ignored else IGNORE_NAME
            for label, ignored in zip(annotations.labels[rows].tolist(), annotations.ignore[rows].tolist(), strict=True)
        ]
        height, width = annotations.sizes[image].tolist()
        name = annotations.file_names[image]
        kept = LabelledBoxes(name, (height, width), annotations.boxes[rows], labels, difficult=annotations.ignore[rows])
        boxes = np.array([_proposed_box(one) for one in here], np.float64).reshape(-1, 4)
        names = [f"{one.kind}: {_proposed_class(one)}" for one in here]
        yield kept, LabelledBoxes(name, (height, width), boxes, names, scores=np.array([one.chance for one in here]))


def _proposed_box(one: Suspect) -> tuple[float, float, float, float]:
    """Where the box should be; the annotation's own where that is not in doubt."""
    box = one.suggested_box if one.kind in ("missing", "placement") else one.box
    assert box is not None
    return box


def _proposed_class(one: Suspect) -> str | None:
    return one.suggested_class if one.kind in ("missing", "class") else one.annotated_class


def _joined(kept: LabelledBoxes, found: LabelledBoxes) -> LabelledBoxes:
    assert found.scores is not None
    assert kept.difficult is not None
    return LabelledBoxes(
        kept.name,
        kept.size,
        np.concatenate([kept.boxes, found.boxes]),
        [*kept.labels, *found.labels],
        scores=np.concatenate([np.ones(len(kept.boxes)), found.scores]),
        difficult=np.concatenate([kept.difficult, np.zeros(len(found.boxes), bool)]),
    )
