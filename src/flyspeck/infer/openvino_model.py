"""An exported OpenVINO model (`.xml` with its `.bin`), run by OpenVINO. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.errors import UserError, missing_extra
from flyspeck.infer.enlarging import bypass_enlarging
from flyspeck.infer.exported import KEY, Session, cannot_run, num_threads

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoSession(Session):
    """The graph on `device` (cpu, or another that OpenVINO names, such as GPU; auto is cpu), computed in `precision`.

    It is compiled for each shape of its inputs once: an engine that knows its sizes is faster than one that does not.
    """

    def __init__(self, path: Path | str, *, device: str = "auto", precision: str = "fp32") -> None:
        try:
            import openvino
        except ImportError:
            raise missing_extra("openvino", "export") from None
        path = Path(path)
        if precision not in PRECISIONS:
            raise UserError(f"unknown precision '{precision}'", where="--precision", fix="fp32 or bf16")
        self._core: Any = openvino.Core()
        device = "cpu" if device == "auto" else device
        if device.upper().split(".")[0] not in {name.split(".")[0] for name in self._core.available_devices}:
            known = ", ".join(name.lower() for name in self._core.available_devices)
            raise UserError(f"OpenVINO has no '{device}' here", where="device", fix=f"choose from {known}")
        self._device = device.upper()
        self._hints = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
        if self._device == "CPU":
            self._hints["INFERENCE_NUM_THREADS"] = str(num_threads())
        try:
            self.model: Any = self._core.read_model(path)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-160:]
            raise UserError(f"not a model that OpenVINO opens ({reason})", where=path, fix="export again") from None
        self.path = path
        self.text = self.model.get_rt_info([KEY]).astype(str) if self.model.has_rt_info([KEY]) else None
        bypass_enlarging(self.model)
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Session.run`."""
        shapes = tuple(array.shape for array in inputs)
        request = self._compiled.get(shapes)
        if request is None:
            if len(self._compiled) > 8:  # images of ever new sizes must not fill the memory
                self._compiled.clear()
            try:
                request = self._compile(shapes)
            except RuntimeError as error:
                raise cannot_run(self.path, inputs, error) from error
            self._compiled[shapes] = request
        try:
            found = request.infer(dict(enumerate(inputs)), share_inputs=True)
        except RuntimeError as error:
            raise cannot_run(self.path, inputs, error) from error
        return [found[place].copy() for place in range(len(found))]

    def _compile(self, shapes: Sequence[tuple[int, ...]]) -> Any:
        model = self.model.clone()
        model.reshape({place: list(shape) for place, shape in enumerate(shapes)})
        return self._core.compile_model(model, self._device, self._hints).create_infer_request()
