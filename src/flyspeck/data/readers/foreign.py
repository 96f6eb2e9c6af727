"""Which tool wrote a json or xml file, told by its marks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

FORMATS_OF_TOOLS = {
    "FiftyOne": "fiftyone",
    "Label Studio": "label-studio",
    "Supervisely": "supervisely",
    "VIA": "via",
    "labelme": "labelme",
}
"""The tools of `tool_of_json` whose files have a reader of their own."""


def tool_of_json(content: Any) -> str | None:
    """The tool or kind of a parsed json file; None where it has no known marks."""
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(content, Mapping):
        keys = content.keys()
        if {"images", "categories"} <= keys and isinstance(content["images"], list | Mapping):
            return "COCO"
        if {"images", "type"} <= keys and {"categories"} & keys:
            return "COCO"
        if "_via_img_metadata" in keys or _via_entries(content):
            return "VIA"
        if "shapes" in keys and {"imagePath", "imageData", "version", "flags"} & keys:
            return "labelme"
        if "objects" in keys and {"size", "tags"} & keys and "imgHeight" not in keys:
            return "Supervisely"
        if "objects" in keys and "imgHeight" in keys:
            return "Cityscapes"
        if {"classes", "labels"} <= keys and isinstance(content["labels"], Mapping):
            return "FiftyOne"
        if _is_task(content):
            return "Label Studio"
        if {"categories", "items"} <= keys:
            return "Datumaro"
        if isinstance(content.get("samples"), list):
            return "FiftyOne (a whole data set)"
        if "frames" in keys and "config" in keys:
            return "Scalabel"
    if isinstance(first, Mapping):
        if _is_task(first) or _is_short_task(first):
            return "Label Studio"
        if "score" in first:
            return "COCO results"
        if {"image", "annotations"} <= first.keys():
            return "CreateML"
        if {"name", "labels"} <= first.keys():
            return "Scalabel or BDD100K"
    return None


def _via_entries(content: Mapping[str, Any]) -> bool:
    values = list(content.values())[:3]
    return bool(values) and all(isinstance(v, Mapping) and {"filename", "regions"} <= v.keys() for v in values)


def _is_task(entry: Mapping[str, Any]) -> bool:
    return "data" in entry and bool({"annotations", "completions", "predictions"} & entry.keys())


def _is_short_task(entry: Mapping[str, Any]) -> bool:
    """An entry of Label Studio's JSON-MIN: a list of shapes that say their image's size in a key of the label's name."""
    lists = [value for value in entry.values() if isinstance(value, list) and value and isinstance(value[0], Mapping)]
    return any("original_width" in value[0] for value in lists)


def tool_of_xml(root: ElementTree.Element) -> str | None:
    """The tool or kind of an xml file by its root: VOC's `annotation`, CVAT's `annotations`; None for others."""
    if root.tag == "annotations" and (root.find("image") is not None or root.find("meta") is not None):
        return "CVAT"
    return "VOC" if root.tag == "annotation" else None
