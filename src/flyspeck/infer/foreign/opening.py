"""A model that flyspeck did not make, or perhaps did: by its file or its function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flyspeck.errors import UserError
from flyspeck.infer.engines import exported_in, open_session
from flyspeck.infer.exported import ExportedModel
from flyspeck.infer.foreign.engines import SessionGraph
from flyspeck.infer.foreign.graph_model import GraphModel
from flyspeck.infer.litert_model import LiteRTSession


def open_graph(
    path: Path | str,
    *,
    device: str = "auto",
    precision: str = "fp32",
    layout: str | None = None,
    classes: Sequence[str] | None = None,
) -> ExportedModel | GraphModel:
    """The model in an `.onnx`, OpenVINO `.xml` or LiteRT `.tflite` file: one of flyspeck's, or of another program.

    `layout` and `classes` are said for the latter where the file does not. Raises UserError where it is neither, or in doubt.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such exported model", where=path, fix="check the path")
    session = open_session(path, device=device, precision=precision)
    if session.text is None and isinstance(session, LiteRTSession):
        raise UserError(
            "a LiteRT file of another program", where=path, fix="give its ONNX form, or one of flyspeck export"
        )
    if session.text is None:
        return GraphModel(SessionGraph(session), layout=layout, classes=classes)
    if layout is not None or classes is not None:
        what = "a layout" if layout is not None else "classes"
        raise UserError(f"{what} for a file of flyspeck, which says them itself", where=path, fix="leave it out")
    return exported_in(session, device=device, precision=precision)
