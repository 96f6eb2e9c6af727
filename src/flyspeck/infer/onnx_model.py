"""An exported `.onnx` file, run by ONNX Runtime. No torch here."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.devices import processors
from flyspeck.errors import UserError, missing_extra
from flyspeck.infer.enlarging import without_enlarging
from flyspeck.infer.exported import KEY, Session, cannot_run

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


class OnnxSession(Session):
    """The graph on `device`: cpu, cuda or tensorrt, as far as the installed ONNX Runtime has it; auto is cuda, else cpu."""

    def __init__(self, path: Path | str, *, device: str = "auto", precision: str = "fp32") -> None:
        try:
            import onnxruntime
        except ImportError:
            raise missing_extra("onnxruntime", "export") from None
        path = Path(path)
        if precision != "fp32":
            raise UserError(
                f"an ONNX file has the precision that it was exported with, not {precision}",
                where="--precision",
                fix="leave it out, or export to OpenVINO, which computes in bf16 where asked",
            )
        if device == "auto":
            device = "cuda" if PROVIDERS["cuda"] in onnxruntime.get_available_providers() else "cpu"
        provider = PROVIDERS.get(device)
        if provider is None or provider not in onnxruntime.get_available_providers():
            known = [name for name, p in PROVIDERS.items() if p in onnxruntime.get_available_providers()]
            raise UserError(f"ONNX Runtime has no '{device}' here", where="device", fix=f"choose {' or '.join(known)}")
        self._runtime: Any = onnxruntime
        self._content, self._provider, self.path = without_enlarging(path), provider, path
        self.threads = processors() if device == "cpu" else 1
        self._passes, self._lock = 1, threading.Lock()
        self.engine: Any = self._open(processors())
        self._engines: dict[int, Any] = {1: self.engine}
        try:
            self.text = self.engine.get_modelmeta().custom_metadata_map.get(KEY)
        except UnicodeDecodeError:
            raise UserError("its description cannot be read", where=path, fix="export it again") from None
        self._inputs = [value.name for value in self.engine.get_inputs()]

    def _open(self, threads: int) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # what it says of shapes at level 2 is about itself
        try:
            return self._runtime.InferenceSession(self._content, options, providers=[self._provider])
        except Exception as error:  # the runtime has no common base of its errors
            reason = " ".join(str(error).split())[:160]
            fix = "export again"
            raise UserError(f"not a model that ONNX Runtime opens ({reason})", where=self.path, fix=fix) from None

    def split(self, passes: int) -> None:
        """See `Session.split`: a session whose calls have so many threads each, beside that which has all."""
        self._passes = passes

    def _engine(self) -> Any:
        with self._lock:
            if self._passes not in self._engines:
                self._engines[self._passes] = self._open(max(1, self.threads // self._passes))
            return self._engines[self._passes]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Session.run`."""
        try:
            return self._engine().run(None, dict(zip(self._inputs, inputs, strict=True)))
        except Exception as error:  # the runtime has no common base of its errors
            raise cannot_run(self.path, inputs, error) from error
