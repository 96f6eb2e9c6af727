"""`export`: a trained detector as a file that runs without torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from flyspeck.export.litert import export_litert
from flyspeck.export.package import export_model
from flyspeck.export.proof import Exported, ExportOptions, format_by_ending
from flyspeck.files import local_output

log = logging.getLogger("flyspeck")
AnyPath = str | os.PathLike[str]


def export(
    run: AnyPath,
    *,
    out: AnyPath,
    format: Literal["onnx", "openvino", "litert"] | None = None,
    int8: bool = False,
    bits: Literal[8, 16] | None = None,
    hard_nms: float | None = None,
    suppression: Literal["nms", "tiny"] | None = None,
    factor: float | None = None,
    tile: tuple[int, int] | None = None,
    check: AnyPath | None = None,
    check_limit: int = 48,
    calibrate: AnyPath | None = None,
    calibration_tiles: int = 64,
    say: Callable[[str], None] = log.info,
) -> Exported:
    """Write a detector as ONNX, OpenVINO or LiteRT, if it finds the same boxes there on real images.

    The file holds pixel normalisation, decoding and suppression: image in, boxes in pixels, scores and labels out.

    Args:
        run: A run folder or a weights file.
        out: The file to write, ending in `.onnx`, `.xml` or `.tflite`; its folder must be there.
        format: `onnx`, `openvino` or `litert`; None: by the ending of `out`.
        int8: Compute in integers, calibrated on tiles; what that loses by size is part of the result.
        bits: Of a band of an image: 8, or 16, which takes both; None: those of the training's images.
        hard_nms: IoU of plain suppression, in place of soft-NMS.
        suppression: `tiny` lets one box of each tiny object keep its score, `nms` all that overlap little; None: as in training,
            and `tiny` for a model of version 0.1, which says nothing.
        factor: Of a detector with factors: this one alone; None: the choice of each image.
        tile: Of a LiteRT file: (height, width) of its one window, in pixels that the model sees; None: the training's.
        check: Images or annotations to compare on; None: the run's validation set.
        check_limit: Compare on at most so many images, evenly spread.
        calibrate: Images for INT8; None: the run's training set.
        calibration_tiles: Tiles that INT8 is calibrated on.
        say: Called with each line on what is done; the logger `flyspeck` where it is not given.

    Returns:
        The file, how its boxes differ (pixels, scores), and AP50 by size before and after.

    Raises:
        UserError: Where the boxes differ beyond rounding, in which case nothing is written; for a detector that cannot be
            exported, a missing extra (`export`, `litert`), or images that are not there.
    """
    path = local_output(out)
    options = ExportOptions(
        format=format or format_by_ending(path),
        int8=int8,
        bits=bits,
        hard_nms=hard_nms,
        suppression=suppression,
        factor=factor,
        tile=tile,
        check=None if check is None else Path(check),
        check_limit=check_limit,
        calibrate=None if calibrate is None else Path(calibrate),
        calibration_tiles=calibration_tiles,
    )
    write = export_litert if options.format == "litert" else export_model
    return write(Path(run), path, options, say=say)
