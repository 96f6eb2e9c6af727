"""An exported OpenVINO model (`.xml` with its `.bin`), run by OpenVINO. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.errors import UserError, missing_extra
from flyspeck.infer.exported import KEY, Arrays, ExportedModel, described, num_threads

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoModel(ExportedModel):
    """The model on `device` (cpu, or another that OpenVINO names, such as GPU), computed in `precision`.

    It is compiled for each shape of batch once: an engine that knows its sizes is faster than one that does not.
    """

    def __init__(self, path: Path | str, *, device: str = "cpu", precision: str = "fp32") -> None:
        try:
            import openvino
        except ImportError:
            raise missing_extra("openvino", "export") from None
        path = Path(path)
        if precision not in PRECISIONS:
            raise UserError(f"unknown precision '{precision}'", where="--precision", fix="fp32 or bf16")
        self._core: Any = openvino.Core()
        if device.upper().split(".")[0] not in {name.split(".")[0] for name in self._core.available_devices}:
            known = ", ".join(name.lower() for name in self._core.available_devices)
            raise UserError(f"OpenVINO has no '{device}' here", where="device", fix=f"choose from {known}")
        self._device = device.upper()
        self._hints = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
        if self._device == "CPU":
            self._hints["INFERENCE_NUM_THREADS"] = str(num_threads())
        try:
            self._model: Any = self._core.read_model(path)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-160:]
            raise UserError(f"not a model that OpenVINO opens ({reason})", where=path, fix="export again") from None
        text = self._model.get_rt_info([KEY]).astype(str) if self._model.has_rt_info([KEY]) else None
        super().__init__(path, described(text, path))
        self._compiled: dict[tuple[int, ...], Any] = {}

    def run(self, batch: np.ndarray) -> Arrays:
        """See `ExportedModel.run`."""
        request = self._compiled.get(batch.shape)
        if request is None:
            if len(self._compiled) > 8:  # pictures of ever new sizes must not fill the memory
                self._compiled.clear()
            model = self._model.clone()
            model.reshape(list(batch.shape))
            request = self._core.compile_model(model, self._device, self._hints).create_infer_request()
            self._compiled[batch.shape] = request
        found = request.infer({0: batch}, share_inputs=True)
        boxes, scores, labels, counts = (found[i].copy() for i in range(4))
        return boxes, scores, labels, counts
