"""Milliseconds of `speck` beside a light Faster R-CNN and FCOS, exported, one image of 320x256 at a time.

    python benchmarks/speck_speed.py --files FOLDER --export     # writes ONNX and OpenVINO files: minutes
    python benchmarks/speck_speed.py --files FOLDER              # runs them: seconds

From pixels to boxes, through the same calls that `flyspeck predict` makes. Weights are random, as time does not depend on them
but through the number of candidates: so the score threshold of each detector is the score of its 100th best candidate. The
engines and detectors take turns, round by round; metrics are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from verdict import RESULTS

from flyspeck.data.enlarge import described_enlargement
from flyspeck.export.frame import Frame
from flyspeck.export.onnx import describe
from flyspeck.export.package import traced, write_all
from flyspeck.files import write_json
from flyspeck.infer.engines import open_exported
from flyspeck.models.detector import Detector
from flyspeck.models.profile import profile
from flyspeck.train.build import build_detector
from flyspeck.train.model_config import ModelConfig
from flyspeck.types import ImageBatch

SIZE = (256, 320)
CANDIDATES = 100
RCNN = {"hidden": 256, "samples": 128, "train_proposals": 500, "proposals": 300}
MODELS: dict[str, dict[str, Any]] = {
    "speck_n": {"name": "speck_n"},
    "speck_s": {"name": "speck_s"},
    "speck_m": {"name": "speck_m"},
    "speck_s, separable": {"name": "speck_s", "backbone": {"blocks": "separable"}},
    "speck_s, stride 2": {"name": "speck_s", "levels": "1-4"},
    "speck_s, one to one": {"name": "speck_s", "head": {"one_to_one": True}},
    "faster_rcnn:mobilenet_v2": {"name": "faster_rcnn:mobilenet_v2", "channels": 64, "norm": "bn", "head": RCNN},
    "fcos:mobilenet_v2": {"name": "fcos:mobilenet_v2", "channels": 64, "norm": "bn", "head": {"depth": 2}},
}
ENGINES = {"ONNX Runtime": ".onnx", "OpenVINO": ".xml"}


def detector_of(model: dict[str, Any]) -> Detector:
    """With random weights, its score threshold as the head of this file says."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"suppression": "nms", "min_score": 0.0, "max_detections": 2000, **model})
    detector = build_detector(config, classes=["a", "b", "c"], mean=[0.4], std=[0.2], load=False).eval()
    pixels = torch.from_numpy(image()).permute(2, 0, 1)[None]
    detector.head.suppression = replace(detector.head.suppression, iou=1.0)
    (found,) = detector.detect(ImageBatch(pixels, (SIZE,)))
    least = float(found.scores[min(CANDIDATES, len(found)) - 1])
    rule = detector.head.suppression
    detector.head.suppression = replace(rule, iou=0.5, score=least, max_detections=500)
    return detector


def image() -> np.ndarray:
    """Noise, the same each time."""
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 1), np.uint8)


def file_of(folder: Path, name: str, suffix: str) -> Path:
    """Where a detector lies."""
    return folder / (name.replace(":", "_").replace(", ", "_").replace(" ", "_") + suffix)


def write(folder: Path) -> None:
    """The files that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in MODELS.items():
        files = [file_of(folder, name, suffix) for suffix in ENGINES.values()]
        if all(file.is_file() for file in files):
            continue
        detector = detector_of(model)
        graph, by_factor = traced(detector)
        for file in files:
            write_all(graph, by_factor, file, describe(detector, {}), Frame.of(detector, described_enlargement({})))
        print(f"{name} written", flush=True)


def run(folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Milliseconds of each detector in each engine."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    pixels = image()
    opened = {
        (name, engine): open_exported(file_of(folder, name, suffix), device="cpu")
        for name in MODELS
        for engine, suffix in ENGINES.items()
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in opened}
    for model in opened.values():
        for _ in range(3):
            model([pixels])
    for _ in range(rounds):
        for key, model in opened.items():
            for repeat in range(3):
                start = time.perf_counter()
                model([pixels])
                if repeat:  # the first of a turn finds another's data in the caches
                    times[key].append(1000 * (time.perf_counter() - start))
    rows: dict[str, Any] = {}
    for name, model in MODELS.items():
        with torch.device("meta"):
            config = ModelConfig.model_validate(model)
            detector = build_detector(config, classes=["a", "b", "c"], mean=[0.4], std=[0.2], load=False)
        found = profile(detector, SIZE, convention="macs", proposals=RCNN["proposals"])
        rows[name] = {
            "gmacs": round(found.gflops, 3),
            "params_m": round(found.params / 1e6, 3),
            **{engine: quantiles(times[name, engine]) for engine in ENGINES},
        }
    return rows


def quantiles(values: list[float]) -> dict[str, float]:
    """Median, and the tenth and ninetieth percentile, in ms."""
    tenths = statistics.quantiles(values, n=10)
    return {"ms": round(statistics.median(values), 2), "p10": round(tenths[0], 2), "p90": round(tenths[-1], 2)}


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "speck_speed.json")
    args = parser.parse_args()
    if args.export:
        write(args.files)
        return
    rows = run(args.files, args.rounds, args.threads)
    write_json(args.out, {"size": list(SIZE), "threads": args.threads, "rounds": args.rounds, "models": rows})
    for name, row in rows.items():
        print(name, row)


if __name__ == "__main__":
    main()
