"""An exported file by its path, with the engine that runs it. No torch here."""

from __future__ import annotations

from pathlib import Path

from flyspeck.errors import UserError
from flyspeck.infer.exported import ExportedModel
from flyspeck.infer.onnx_model import OnnxModel
from flyspeck.infer.openvino_model import OpenVinoModel

SUFFIXES = (".onnx", ".xml")


def is_exported(path: Path | str) -> bool:
    """Whether a path names an exported model, by its ending."""
    return Path(path).suffix.lower() in SUFFIXES


def open_exported(path: Path | str, *, device: str = "cpu", precision: str = "fp32") -> ExportedModel:
    """The model in an `.onnx` or OpenVINO `.xml` file. Raises UserError for one that is cut off or of another program."""
    path = Path(path)
    if not path.is_file():
        raise UserError("no such exported model", where=path, fix="check the path")
    kind = OpenVinoModel if path.suffix.lower() == ".xml" else OnnxModel
    return kind(path, device=device, precision=precision)
