"""What is published of a model: its metrics with intervals, what it costs, and where that was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.evaluate.bootstrap import drawn_aps
from flyspeck.evaluate.counts import Counts
from flyspeck.evaluate.protocols import APProtocol, Protocol
from flyspeck.evaluate.score_curve import ScoreCurve, score_curve
from flyspeck.models.detector import Detector
from flyspeck.models.profile import NUM_PROPOSALS, measure_latency, profile
from flyspeck.train.measure import metrics_of
from flyspeck.version import VERSION

SAMPLES = 500
"""Resamples of the images."""
LEVEL = 0.95
CONVENTION = "macs"
"""How GFLOPs are counted: one multiply-add is one."""


@dataclass(frozen=True)
class Score:
    """The numbers of one set of detections."""

    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    draws: dict[str, np.ndarray]
    counts: Counts | None = None
    """Doubles and errors of the count, from the score of the best F1 on."""
    scores: ScoreCurve | None = None
    """What each score threshold is worth."""


def score(annotations: Annotations, detections: Path, rule: Protocol) -> Score:
    """Scores a COCO results file; AP50 of every bin gets an interval where the protocol is an AP of COCO's kind."""
    table = DetectionTable.from_coco(detections, annotations)
    result = evaluate(annotations, table, rule)
    metrics = {name: value for name, value in metrics_of(result).items() if value >= 0}
    draws: dict[str, np.ndarray] = {}
    if isinstance(rule, APProtocol) and 0.5 in rule.ious and len(annotations) > 1:
        drawn = drawn_aps(annotations, table, rule, iou=0.5, samples=SAMPLES)
        draws = {f"ap50_{area}": values for area, values in drawn.items() if f"ap50_{area}" in metrics}
    intervals = {name: found for name, values in draws.items() if (found := interval(values)) is not None}
    curve = score_curve(annotations, table, rule)
    return Score({name: round(value, 5) for name, value in metrics.items()}, intervals, draws, result.counts, curve)


def interval(values: np.ndarray) -> list[float] | None:
    """Percentile interval (low, high) of resampled values; None where fewer than two are known."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return None
    return [round(float(v), 5) for v in np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def cost(detector: Detector, size: tuple[int, int], *, proposals: int | None, latency_runs: int) -> dict[str, Any]:
    """Parameters and GFLOPs at `size` (H, W), and the milliseconds of one image where `latency_runs` is not 0."""
    counted = profile(detector, size, convention=CONVENTION, proposals=proposals or NUM_PROPOSALS)
    facts: dict[str, Any] = {
        "parameters": counted.params,
        "gflops": round(counted.gflops, 4),
        "size": f"{size[0]}x{size[1]}",
    }
    if latency_runs:
        timed = measure_latency(detector, size, runs=latency_runs, device="cpu")
        facts |= {"ms": round(timed.median_ms, 2), "ms_p90": round(timed.p90_ms, 2), "ms_runs": timed.runs}
    return facts


def environment() -> dict[str, Any]:
    """Versions, hardware and threads of this process."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "version": VERSION,
        "commit": _commit(),
        "torch": torch.__version__.partition("+")[0],
        "hardware": gpu or _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """The processor's name, with how many cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the short name must do
    return f"{name}, {os.cpu_count()} cores"


def _commit() -> str:
    """The last commit of the package's own files, or "" where they are not in a git work tree."""
    package = Path(__file__).parents[1]
    command = ["git", "-C", str(package), "log", "-1", "--format=%h", "--", "."]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
