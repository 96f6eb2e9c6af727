"""An exported file by its path, with the engine that runs it. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flyspeck.errors import UserError
from flyspeck.infer.exported import ExportedModel, PlainModel, Session, described
from flyspeck.infer.factor_model import FactorModel, factor_file
from flyspeck.infer.litert_model import LiteRTModel, LiteRTSession
from flyspeck.infer.onnx_model import OnnxSession
from flyspeck.infer.openvino_model import OpenVinoSession

SUFFIXES = (".onnx", ".xml", ".tflite")


def is_exported(path: Path | str) -> bool:
    """Whether a path names an exported model, by its ending."""
    return Path(path).suffix.lower() in SUFFIXES


def open_exported(path: Path | str, *, device: str = "auto", precision: str = "fp32") -> ExportedModel:
    """The model in an `.onnx`, OpenVINO `.xml` or LiteRT `.tflite` file.

    Raises UserError for one that is cut off or of another program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such exported model", where=path, fix="check the path")
    return exported_in(open_session(path, device=device, precision=precision), device=device, precision=precision)


def exported_in(session: Session, *, device: str = "auto", precision: str = "fp32") -> ExportedModel:
    """The model in a file that is open; of several files, the others are opened likewise. Errors as for `open_exported`."""
    path = session.path
    description = described(session.text, path)
    if isinstance(session, LiteRTSession):
        return LiteRTModel(session, description)
    if "factors" not in description:
        return PlainModel(session, description)
    files = [factor_file(path, float(factor)) for factor in description["factors"]["factors"]]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is not beside it", where=path, fix="keep the files of all factors together")
    sessions = [open_session(file, device=device, precision=precision) for file in files]
    return FactorModel(session, sessions, description)


def open_session(path: Path, *, device: str = "auto", precision: str = "fp32") -> Session:
    """One graph in the engine that its ending names."""
    kinds: dict[str, Callable[..., Session]] = {".xml": OpenVinoSession, ".tflite": LiteRTSession}
    return kinds.get(path.suffix.lower(), OnnxSession)(path, device=device, precision=precision)
