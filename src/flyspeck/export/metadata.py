"""What an exported file says of itself under the names that other programs look for, beside the description of its own.

QGIS's plug-in Deepness reads JSON values (its documentation, "Adding metadata to ONNX model"): kind, classes, tiles. Programs
for YOLO files read `names`, `stride`, `task` and `imgsz`, written as Python writes a dict, a number and a list. No entry says
that the outputs have another layout than they have: `det_type` is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flyspeck.data.ground import GroundResolution
from flyspeck.infer.shown import shown_enlargement, shown_tiles


def conventions(description: Mapping[str, Any]) -> dict[str, str]:
    """Entries by name, of a file that describes itself so (`export.onnx.describe`)."""
    names = dict(enumerate(description["classes"]))
    suppression = description["suppression"]
    return {
        "model_type": json.dumps("Detector"),
        "class_names": json.dumps(names),
        "det_conf": json.dumps(suppression["score"]),
        "det_iou_thresh": json.dumps(suppression["iou"]),
        "det_remove_overlap": json.dumps(True),
        "names": repr(names),
        "stride": str(description["divisor"]),
        "task": "detect",
        **_resolution(description),
        **_tiles(description),
    }


def _resolution(description: Mapping[str, Any]) -> dict[str, str]:
    """Centimetres on the ground that a pixel of the image covers; nothing where the training's images did not say."""
    ground = GroundResolution.of(description)
    return {} if ground is None else {"resolution": json.dumps(round(100 * ground.median, 4))}


def _tiles(description: Mapping[str, Any]) -> dict[str, str]:
    """The tile and the overlap that `flyspeck predict` takes, in pixels of the image; nothing where the training did not say."""
    rule = shown_enlargement(description)
    if "training_size" not in description or rule.squeeze is not None:
        return {}
    (height, width), overlap = shown_tiles(None, None, description)  # type: ignore[misc]
    scale = rule.scale((height, width))
    side = max(1, int(min(height, width) / scale))
    return {
        "tiles_size": json.dumps(side),
        "tiles_overlap": json.dumps(min(99, -int(-100 * overlap / scale // side))),
        "imgsz": str([max(1, int(height / scale)), max(1, int(width / scale))]),
    }
