"""`export`: a trained detector as a file that runs without torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from flyspeck.export.package import Exported, ExportOptions, export_model
from flyspeck.files import local_output

log = logging.getLogger("flyspeck")
AnyPath = str | os.PathLike[str]


def export(
    run: AnyPath,
    *,
    out: AnyPath,
    format: Literal["onnx", "openvino"] | None = None,
    int8: bool = False,
    bits: Literal[8, 16] | None = None,
    hard_nms: float | None = None,
    suppression: Literal["nms", "tiny"] | None = None,
    factor: float | None = None,
    check: AnyPath | None = None,
    check_limit: int = 48,
    calibrate: AnyPath | None = None,
    calibration_tiles: int = 64,
    say: Callable[[str], None] = log.info,
) -> Exported:
    """Write a detector as ONNX or OpenVINO, if it finds the same boxes there on real images.

    The file holds pixel normalisation, decoding and suppression: image in, boxes in pixels, scores and labels out.

    Args:
        run: A run folder or a weights file.
        out: The file to write, ending in `.onnx` or `.xml`; its folder must be there.
        format: `onnx` or `openvino`; None: by the ending of `out`.
        int8: Compute in integers, calibrated on tiles; what that loses by size is part of the result.
        bits: Of a band of an image: 8, or 16, which takes both; None: those of the training's images.
        hard_nms: IoU of plain suppression, in place of soft-NMS.
        suppression: `tiny` lets one box of each tiny object keep its score, `nms` all that overlap little; None: as in training,
            and `tiny` for a model of version 0.1, which says nothing.
        factor: Of a detector with factors: this one alone; None: the choice of each image.
        check: Images or annotations to compare on; None: the run's validation set.
        check_limit: Compare on at most so many images, evenly spread.
        calibrate: Images for INT8; None: the run's training set.
        calibration_tiles: Tiles that INT8 is calibrated on.
        say: Called with each line on what is done; the logger `flyspeck` where it is not given.

    Returns:
        The file, how its boxes differ (pixels, scores), and AP50 by size before and after.

    Raises:
        UserError: Where the boxes differ beyond rounding, in which case nothing is written; for a detector that cannot be
            exported, a missing extra (`export`), or images that are not there.
    """
    by_ending = "openvino" if Path(out).suffix.lower() == ".xml" else "onnx"
    options = ExportOptions(
        format=format or by_ending,
        int8=int8,
        bits=bits,
        hard_nms=hard_nms,
        suppression=suppression,
        factor=factor,
        check=None if check is None else Path(check),
        check_limit=check_limit,
        calibrate=None if calibrate is None else Path(calibrate),
        calibration_tiles=calibration_tiles,
    )
    return export_model(Path(run), local_output(out), options, say=say)
