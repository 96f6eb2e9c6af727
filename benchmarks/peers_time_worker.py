"""Exported detectors of one tool, opened once and run as asked: what `peers_time.py` starts in each tool's own Python.

    python benchmarks/peers_time_worker.py TOOL THREADS FILE FILE ...

TOOL is `flyspeck` or `libreyolo`; nothing of the other is imported. Each line of stdin is a JSON object, answered by one:
`{"file": k, "image": path, "score": s, "calls": n, "pause": seconds}` decodes the image and hands its pixels to the k-th detector
n times; the answer holds the milliseconds of the last call and of the runtime's part in it, and what was found, in pixels of the
image. Both tools get the same runtime in the same form: so many threads, float32, and OpenVINO's hint for one image at a time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

IOU, MOST = 0.6, 300
"""Of the other tool's suppression, as `peers_scratch.py` has it."""
Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""boxes (N, 4) xyxy, scores (N), labels (N)."""
Finder = Callable[[np.ndarray, float], Found]


class Clock:
    """Adds up the seconds that the runtime itself takes."""

    seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its seconds added."""

        def run(*words: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*words, **named)
            finally:
                self.seconds += time.perf_counter() - start

        return run


def hold_runtimes(threads: int, clock: Clock) -> None:
    """From now on, whoever opens a model gets so many threads, and its runs are timed."""
    import onnxruntime
    import openvino

    class Session(onnxruntime.InferenceSession):
        def __init__(self, model: Any, sess_options: Any = None, **more: Any) -> None:
            options = sess_options or onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            super().__init__(model, options, **more)
            self.run = clock.timed(self.run)

    class Core(openvino.Core):
        def compile_model(self, model: Any, device: str = "CPU", config: Any = None, **more: Any) -> Any:
            hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
            hints["INFERENCE_NUM_THREADS"] = str(threads)
            return super().compile_model(model, device, (config or {}) | hints, **more)

    onnxruntime.InferenceSession = Session
    openvino.Core = Core
    openvino.InferRequest.infer = clock.timed(openvino.InferRequest.infer)


def flyspeck_finder(path: str) -> tuple[Finder, list[str]]:
    """As a user's program calls it; and the names of its classes."""
    from flyspeck.infer.load import load_predictor

    predictor: Any = load_predictor(path, device="cpu")

    def find(pixels: np.ndarray, score: float) -> Found:
        predictor.score_threshold = score
        (found,) = predictor.predict([pixels])
        return found.boxes, found.scores, found.labels

    return find, list(predictor.model.classes)


def libreyolo_finder(path: str) -> tuple[Finder, list[str]]:
    """As a user's program calls it; and the names of its classes."""
    from libreyolo import LibreYOLO

    model = LibreYOLO(path, device="cpu")

    def find(pixels: np.ndarray, score: float) -> Found:
        found = model(pixels, conf=score, iou=IOU, max_det=MOST, color_format="rgb")
        boxes = found.boxes
        return boxes.xyxy, boxes.conf, boxes.cls

    return find, [model.names[key] for key in sorted(model.names)]


def answer(asked: dict[str, Any], finders: list[Finder], clock: Clock) -> dict[str, Any]:
    """One image by one detector."""
    with Image.open(asked["image"]) as image:
        pixels = np.array(image.convert("RGB"))
    find = finders[asked["file"]]
    time.sleep(asked["pause"])
    for _ in range(asked["calls"]):
        clock.seconds, start = 0.0, time.perf_counter()
        found = find(pixels, asked["score"])
        seconds = time.perf_counter() - start
    boxes, scores, labels = (np.asarray(values) for values in found)
    return {
        "whole": 1000 * seconds,
        "graph": 1000 * clock.seconds,
        "boxes": boxes.reshape(-1, 4).tolist(),
        "scores": scores.tolist(),
        "labels": labels.astype(int).tolist(),
    }


def main() -> None:
    """See the head of this file."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tools print must not come between the answers
    tool, threads, files = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    if "sched_setaffinity" in vars(os):
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < threads:
            sys.exit(f"{threads} threads on {len(allowed)} processors: ask for fewer with --threads")
        os.sched_setaffinity(0, allowed[:threads])
    clock = Clock()
    hold_runtimes(threads, clock)
    if tool == "libreyolo":
        import cv2
        import torch

        cv2.setNumThreads(threads)
        torch.set_num_threads(threads)
    opened = [(libreyolo_finder if tool == "libreyolo" else flyspeck_finder)(file) for file in files]
    import onnxruntime
    import openvino

    versions = {"onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__}
    print(json.dumps({"classes": [names for _, names in opened], "versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), [find for find, _ in opened], clock)), file=answers, flush=True)


if __name__ == "__main__":
    main()
