"""An exported OpenVINO model (`.xml` with its `.bin`), run by OpenVINO. No torch here."""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.devices import processors
from flyspeck.errors import UserError, missing_extra
from flyspeck.infer.enlarging import bypass_enlarging
from flyspeck.infer.exported import KEY, Session, cannot_run

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def the_core() -> Any:
    """OpenVINO's core, one for the whole process and as long as it runs. Raises UserError where OpenVINO is not installed.

    Each core's engine gives the thread that makes it a stack for signals, and puts back the one before when it goes. Where
    cores do not go in the reverse order of their coming that one is freed memory, and the next signal, Ctrl-C too, ends the
    process.
    """
    return _core_of(os.getpid())  # a fork has none of the threads of its parent's


@functools.cache
def _core_of(_: int) -> Any:
    try:
        import openvino
    except ImportError:
        raise missing_extra("openvino", "export") from None
    return openvino.Core()


class OpenVinoSession(Session):
    """The graph on `device` (cpu, or another that OpenVINO names, such as GPU; auto is cpu), computed in `precision`.

    It is compiled for each shape of its inputs once: an engine that knows its sizes is faster than one that does not.
    """

    def __init__(self, path: Path | str, *, device: str = "auto", precision: str = "fp32") -> None:
        self._core = the_core()
        path = Path(path)
        if precision not in PRECISIONS:
            raise UserError(f"unknown precision '{precision}'", where="--precision", fix="fp32 or bf16")
        device = "cpu" if device == "auto" else device
        if device.upper().split(".")[0] not in {name.split(".")[0] for name in self._core.available_devices}:
            known = ", ".join(name.lower() for name in self._core.available_devices)
            raise UserError(f"OpenVINO has no '{device}' here", where="device", fix=f"choose from {known}")
        self._device = device.upper()
        self._hints = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
        self._passes, self._lock = 1, threading.Lock()
        if self._device == "CPU":
            self.threads = processors()
            self._hints["INFERENCE_NUM_THREADS"] = str(self.threads)
        try:
            self.model: Any = self._core.read_model(path)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-160:]
            raise UserError(f"not a model that OpenVINO opens ({reason})", where=path, fix="export again") from None
        self.path = path
        self.text = self.model.get_rt_info([KEY]).astype(str) if self.model.has_rt_info([KEY]) else None
        bypass_enlarging(self.model)
        self._compiled: dict[tuple[Any, ...], queue.LifoQueue[Any]] = {}

    def split(self, passes: int) -> None:
        """See `Session.split`: as many streams of the compiled model, which has one infer request for each."""
        self._passes = passes

    def take_bytes(
        self, place: int, *, channels_last: bool, scale: float, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Float images of input `place` come as (B, H, W, C) uint8 from now on; the graph does (value / scale - mean) / std."""
        from openvino import Layout, Type
        from openvino.preprocess import PrePostProcessor

        built = PrePostProcessor(self.model)
        image = built.input(place)
        image.tensor().set_element_type(Type.u8).set_layout(Layout("NHWC"))
        image.model().set_layout(Layout("NHWC" if channels_last else "NCHW"))
        steps = image.preprocess().convert_element_type(Type.f32).scale(scale)
        if any(mean):
            steps = steps.mean(list(mean))
        if any(value != 1 for value in std):
            steps.scale(list(std))
        self.model = built.build()
        self._compiled.clear()

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Session.run`."""
        free = self._requests(inputs)
        request = free.get()
        try:
            found = request.infer(dict(enumerate(inputs)), share_inputs=True)
            return [found[place].copy() for place in range(len(found))]
        except RuntimeError as error:
            raise cannot_run(self.path, inputs, error) from error
        finally:
            free.put(request)

    def _requests(self, inputs: Sequence[np.ndarray]) -> queue.LifoQueue[Any]:
        """Those that are free of the model compiled for such inputs."""
        shapes = tuple(array.shape for array in inputs)
        with self._lock:
            key = (self._passes, shapes)
            if key not in self._compiled:
                if len(self._compiled) > 8:  # images of ever new sizes must not fill the memory
                    self._compiled.clear()
                try:
                    self._compiled[key] = self._compile(shapes, self._passes)
                except RuntimeError as error:
                    raise cannot_run(self.path, inputs, error) from error
            return self._compiled[key]

    def _compile(self, shapes: Sequence[tuple[int, ...]], passes: int) -> queue.LifoQueue[Any]:
        model = self.model.clone()
        model.reshape({place: list(shape) for place, shape in enumerate(shapes)})
        hints = dict(self._hints)
        if passes > 1:
            hints |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(passes)}
        compiled = self._core.compile_model(model, self._device, hints)
        requests: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(passes):
            requests.put(compiled.create_infer_request())
        return requests
