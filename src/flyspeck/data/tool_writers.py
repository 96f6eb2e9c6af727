"""The annotation table as files of the annotation tools (`tool_files`): what `data convert --to` writes beside COCO and YOLO.

Ignore regions become boxes of the class `ignore region`, which the readers know; VOC keeps their class and calls them difficult.
Images stay where they are. Raises UserError for an image whose size is not known, since most tools want it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flyspeck.data import tool_files
from flyspeck.data.annotations import Annotations
from flyspeck.data.image_files import output_names
from flyspeck.data.tool_files import LabelledBoxes
from flyspeck.errors import UserError
from flyspeck.files import write_text

IGNORE_NAME = "ignore region"
"""Category of regions that belong to no class, in what is written; the readers know it."""


def write_voc(annotations: Annotations, folder: Path) -> None:
    """One xml file an image into `folder/Annotations`."""
    names = output_names(annotations.file_names, ".xml")
    flat = output_names([name.replace("/", "_") for name in names], ".xml")  # `a/b.jpg` beside `a_b.jpg`
    for name, image in zip(flat, _images(annotations, keep_class=True), strict=True):
        path = folder / "Annotations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, tool_files.voc_xml(image))


def write_cvat(annotations: Annotations, path: Path) -> None:
    """One xml file, `CVAT for images 1.1`."""
    parts = [tool_files.cvat_head(_classes(annotations))]
    parts += [tool_files.cvat_image(image, number) for number, image in enumerate(_images(annotations))]
    _write(path, "".join([*parts, tool_files.CVAT_TAIL]))


def write_label_studio(annotations: Annotations, path: Path) -> None:
    """One json file of tasks with annotations."""
    tasks = [tool_files.label_studio_task(image, number) for number, image in enumerate(_images(annotations), 1)]
    _write(path, json.dumps(tasks, indent=1))


def write_labelme(annotations: Annotations, folder: Path) -> None:
    """One json file an image into `folder`, in its sub-folders; put them beside the images."""
    for name, image in zip(output_names(annotations.file_names, ".json"), _images(annotations), strict=True):
        _write(folder / name, json.dumps(tool_files.labelme_file(image), indent=1))


def write_fiftyone(annotations: Annotations, path: Path) -> None:
    """`labels.json` of a FiftyOneImageDetectionDataset (give FiftyOne the folder of the images as `data_path`)."""
    classes = _classes(annotations)
    images = list(_images(annotations))
    labels = {os.path.splitext(image.name)[0]: tool_files.fiftyone_labels(image, classes) for image in images}
    if len(labels) < len(images):
        raise UserError(
            "two images differ in their endings only", where=path, fix="FiftyOne has no place for both: rename one"
        )
    _write(path, json.dumps({"classes": classes, "labels": labels}, indent=1))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _classes(annotations: Annotations) -> list[str]:
    return [*annotations.classes, *([IGNORE_NAME] if annotations.ignore.any() else [])]


def _images(annotations: Annotations, *, keep_class: bool = False) -> Iterator[LabelledBoxes]:
    """The boxes of every image, with names in place of labels. `keep_class`: ignore regions keep the class that they have."""
    unknown = np.flatnonzero((annotations.sizes < 1).any(1))
    if len(unknown):
        name = annotations.file_names[int(unknown[0])]
        raise UserError(
            "the size of the image is not known", where=name, fix="put the images in place, or give --images"
        )
    own = annotations.own_labels if keep_class else np.where(annotations.ignore, -1, annotations.labels)
    for index, here in enumerate(annotations):
        labels = [annotations.classes[label] if label >= 0 else IGNORE_NAME for label in own[here].tolist()]
        height, width = annotations.sizes[index].tolist()
        yield LabelledBoxes(
            annotations.file_names[index],
            (height, width),
            annotations.boxes[here],
            labels,
            difficult=annotations.ignore[here],
        )
