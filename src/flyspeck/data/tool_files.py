"""Boxes of one image as the annotation tools of the field read them: VOC xml, CVAT xml, Label Studio tasks, labelme, FiftyOne.

The same functions write a data set (`data convert`) and predictions that somebody is to correct (`predict --to`). Boxes
are xyxy pixels, half-open; numbers are rounded to 1e-6. What a tool has no place for is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from flyspeck.files import storable

_DIGITS = 6


@dataclass(frozen=True)
class LabelledBoxes:
    """The boxes of one image."""

    name: str
    """Of the image file, with its folders."""
    size: tuple[int, int]
    """(height, width) in pixels."""
    boxes: np.ndarray
    """(n, 4) xyxy."""
    labels: Sequence[str]
    """(n,) class names."""
    scores: np.ndarray | None = None
    """(n,) in [0, 1] of predictions; None of ground truth."""
    difficult: np.ndarray | None = None
    """(n,) bool: VOC's flag of boxes that are not counted."""


def voc_xml(image: LabelledBoxes) -> str:
    """A VOC file. Corners are edges (half-open), as LabelImg and CVAT write them; the mark `flyspeck` tells our reader so."""
    height, width = image.size
    lines = [
        "<annotation>",
        f"  <folder>{_text(PurePath(image.name).parent.as_posix())}</folder>",
        f"  <filename>{_text(PurePath(image.name).name)}</filename>",
        "  <source><database>flyspeck</database></source>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for row, (box, label) in enumerate(zip(_plain(image.boxes), image.labels, strict=True)):
        sides = "".join(
            f"<{k}>{v:g}</{k}>" if v == int(v) else f"<{k}>{v}</{k}>" for k, v in zip(_SIDES, box, strict=True)
        )
        flag = int(image.difficult is not None and bool(image.difficult[row]))
        score = "" if image.scores is None else f"<score>{float(image.scores[row]):.6g}</score>"
        lines.append(
            f"  <object><name>{_text(label)}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>{flag}</difficult>{score}<bndbox>{sides}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>", ""])


_SIDES = ("xmin", "ymin", "xmax", "ymax")


def cvat_image(image: LabelledBoxes, number: int) -> str:
    """An `<image>` of CVAT's xml 1.1."""
    height, width = image.size
    lines = [f'  <image id="{number}" name={_attribute(image.name)} width="{width}" height="{height}">']
    for box, label in zip(_plain(image.boxes), image.labels, strict=True):
        sides = " ".join(f'{k}="{v}"' for k, v in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True))
        lines.append(f'    <box label={_attribute(label)} source="manual" occluded="0" {sides} z_order="0"></box>')
    return "\n".join([*lines, "  </image>", ""])


def cvat_head(classes: Sequence[str]) -> str:
    """What stands before the images of a CVAT file."""
    labels = "".join(f"<label><name>{_text(name)}</name></label>" for name in classes)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"  <meta><task><labels>{labels}</labels></task></meta>\n"
    )


CVAT_TAIL = "</annotations>\n"


def label_studio_task(image: LabelledBoxes, number: int, *, model_version: str | None = None) -> dict[str, Any]:
    """A task of Label Studio: an annotation, or with scores a prediction (a pre-annotation) by `model_version`.

    The image is named as local storage serves it. The labelling interface needs `<Image name="image">` and `<RectangleLabels
    name="label" toName="image">`.
    """
    height, width = image.size
    results = []
    for row, (box, label) in enumerate(zip(_plain(image.boxes), image.labels, strict=True)):
        x1, y1, x2, y2 = box
        shares = {"x": x1 / width, "y": y1 / height, "width": (x2 - x1) / width, "height": (y2 - y1) / height}
        value = {key: round(100 * share, 9) for key, share in shares.items()}
        entry = {
            "id": f"{number}-{row + 1}",
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {**value, "rotation": 0, "rectanglelabels": [label]},
        }
        results.append(entry if image.scores is None else {**entry, "score": round(float(image.scores[row]), _DIGITS)})
    task = {"id": number, "data": {"image": f"/data/local-files/?d={quote(_bytes_of(image.name))}"}}
    if image.scores is None:
        return {**task, "annotations": [{"result": results}]}
    score = round(float(image.scores.mean()), _DIGITS) if len(image.scores) else 0.0
    return {**task, "predictions": [{"model_version": model_version or "flyspeck", "score": score, "result": results}]}


def labelme_file(image: LabelledBoxes) -> dict[str, Any]:
    """A labelme file that lies beside its image."""
    height, width = image.size
    shapes = []
    for row, (box, label) in enumerate(zip(_plain(image.boxes), image.labels, strict=True)):
        shape = {"label": label, "points": [box[:2], box[2:]], "group_id": None, "shape_type": "rectangle", "flags": {}}
        if image.scores is not None:
            shape["description"] = f"score {float(image.scores[row]):.3f}"
        shapes.append(shape)
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": PurePath(image.name).name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def fiftyone_labels(image: LabelledBoxes, classes: Sequence[str]) -> list[dict[str, Any]]:
    """An image's entry in `labels.json` of FiftyOne's FiftyOneImageDetectionDataset: boxes in shares of the image."""
    height, width = image.size
    row_of = {name: row for row, name in enumerate(classes)}
    entries = []
    for row, (box, label) in enumerate(zip(_plain(image.boxes), image.labels, strict=True)):
        x1, y1, x2, y2 = box
        shares = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
        entry: dict[str, Any] = {"label": row_of[label], "bounding_box": [round(share, 12) for share in shares]}
        entries.append(
            entry if image.scores is None else {**entry, "confidence": round(float(image.scores[row]), _DIGITS)}
        )
    return entries


def _text(name: str) -> str:
    """A name between XML's tags; a parser turns a carriage return into a line feed where it is not escaped."""
    return escape(storable(name, xml=True), {"\r": "&#13;"})


def _attribute(name: str) -> str:
    return quoteattr(storable(name, xml=True))


def _bytes_of(name: str) -> bytes:
    """The bytes by which the disk knows a name."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no disk has it
        return storable(name).encode()


def _plain(boxes: np.ndarray) -> list[list[float]]:
    return np.round(np.asarray(boxes, dtype=np.float64), _DIGITS).reshape(-1, 4).tolist()
