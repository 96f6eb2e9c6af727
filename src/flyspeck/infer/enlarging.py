"""Turning off what an exported file enlarges by itself: `predict` enlarges before it cuts tiles. No torch here.

The graph of a detector that was trained on enlarged or squeezed images begins with that step (`flyspeck.export.frame`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flyspeck.errors import UserError

RESAMPLE = "frame/resample"
"""In an ONNX file, the constant that says whether windows are enlarged: one byte, true as written."""
RESAMPLED = "frame/resampled"
"""In an OpenVINO model, the operation that gives the enlarged windows."""
_BEFORE = b"\x42" + bytes([len(RESAMPLE)]) + RESAMPLE.encode() + b"\x4a\x01"
"""As protobuf writes the constant: field 8 is its name, field 9 its bytes, of which there is one."""


def without_enlarging(path: Path) -> bytes:
    """The bytes of an ONNX file, its windows taken as they come. Raises UserError for a file that cannot be read.

    The file is left alone; in the bytes one of them is another, for which no reader of ONNX is needed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path, fix="check the path") from None
    return content.replace(_BEFORE + b"\x01", _BEFORE + b"\x00")


def bypass_enlarging(model: Any) -> None:
    """The same of an `openvino.Model`, in place."""
    for operation in model.get_ops():
        if operation.get_friendly_name() == RESAMPLED:
            operation.output(0).replace(model.input(0).get_node().output(0))
            model.validate_nodes_and_infer_types()
            return
