"""Evaluation against faster-coco-eval, paired in one run; growth with the number of detections; the whole command.

    python benchmarks/evaluate_speed.py --out benchmarks/results/evaluate_speed.json

`tinyperson` has TinyPerson's size: 816 images, 32k boxes, 163k detections, 7 bins, 3 IoUs. `coco_val` has COCO val's: 5000
images, 80 classes, 36k boxes, 500k detections. Contenders take turns in one process; times are CPU seconds, so
that what else runs on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from evaluate_data import generate

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import DetectionTable, evaluate

SIZES = {
    "tinyperson": {"images": 816, "boxes": 32_000, "detections": 163_000, "classes": 1},
    "coco_val": {"images": 5000, "boxes": 36_000, "detections": 500_000, "classes": 80},
}


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds (user and system) of this process, so that a busy machine does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def by_faster_coco_eval(truth: Any, results: Any) -> None:
    """faster-coco-eval the way its README does it, from objects in memory or from files."""
    from faster_coco_eval import COCO, COCOeval_faster

    ground = COCO(truth)
    evaluator = COCOeval_faster(ground, ground.loadRes(results), iouType="bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()


def from_files(gt: Path, dt: Path, protocol: str) -> None:
    """Our whole way from files to numbers."""
    annotations = read_annotations(gt, for_evaluation=True)
    evaluate(annotations, DetectionTable.from_coco(dt, annotations), protocol)


def as_coco(annotations: Annotations) -> dict[str, Any]:
    """A COCO ground-truth object."""
    columns = zip(
        annotations.box_ids.tolist(),
        annotations.image_ids[annotations.image_index].tolist(),
        annotations.extra["category"].tolist(),
        annotations.extra["xywh"].tolist(),
        annotations.area.tolist(),
        annotations.crowd.tolist(),
        annotations.extra["ignore_flag"].tolist(),
        strict=True,
    )
    return {
        "images": [
            {"id": number, "width": 1920, "height": 1080, "file_name": name}
            for number, name in zip(annotations.image_ids.tolist(), annotations.file_names, strict=True)
        ],
        "categories": [
            {"id": number, "name": name}
            for number, name in zip(annotations.category_ids, annotations.classes, strict=True)
        ],
        "annotations": [
            {"id": i, "image_id": p, "category_id": c + 1, "bbox": b, "area": a, "iscrowd": int(w), "ignore": bool(g)}
            for i, p, c, b, a, w, g in columns
        ],
    }


def paired(size: str, repeats: int, scale: float) -> dict[str, Any]:
    """Seconds of our protocols and of faster-coco-eval on the same boxes."""
    counts = {name: max(1, round(value * scale)) if name != "classes" else value for name, value in SIZES[size].items()}
    annotations, detections = generate(**counts)
    truth, results = as_coco(annotations), detections.to_coco(annotations)
    names = ("tinybenchmark_ap", "flyspeck", "coco_bbox") if size == "tinyperson" else ("coco_bbox", "flyspeck")
    with tempfile.TemporaryDirectory() as folder:
        gt, dt = Path(folder, "gt.json"), Path(folder, "dt.json")
        gt.write_text(json.dumps(truth))
        dt.write_text(json.dumps(results))
        memory: dict[str, Callable[[], Any]] = {n: partial(evaluate, annotations, detections, n) for n in names}
        files: dict[str, Callable[[], Any]] = {n: partial(from_files, gt, dt, n) for n in names}
        seconds: dict[str, dict[str, list[float]]] = {"memory": {}, "files": {}}
        for _ in range(repeats):
            # It writes into the objects it is given, so each turn gets copies, made outside the timed part.
            copies = {key: [dict(entry) for entry in value] for key, value in truth.items()}
            memory["faster-coco-eval"] = partial(by_faster_coco_eval, copies, [dict(entry) for entry in results])
            files["faster-coco-eval"] = partial(by_faster_coco_eval, str(gt), str(dt))
            for kind, work in (("memory", memory), ("files", files)):
                for name, run in work.items():
                    seconds[kind].setdefault(name, []).append(timed(run))
    report: dict[str, Any] = dict(counts)
    for kind, columns in seconds.items():
        median = {name: statistics.median(values) for name, values in columns.items()}
        ratio = {name: value / median["faster-coco-eval"] for name, value in median.items()}
        report[kind] = {"seconds": columns, "median": median, "ratio_to_faster_coco_eval": ratio}
    return report


def growth(repeats: int, scale: float, factors: tuple[int, ...] = (1, 2, 4)) -> list[dict[str, Any]]:
    """Time and peak memory of `tinybenchmark_ap` at TinyPerson's size with 1x, 2x, 4x the detections."""
    rows = []
    for factor in factors:
        counts = {n: max(1, round(v * scale)) if n != "classes" else v for n, v in SIZES["tinyperson"].items()}
        counts["detections"] *= factor
        annotations, detections = generate(**counts)
        # maxDets 200 would cut most of the additional ones, so the protocol with 1000 is taken.
        seconds = [timed(lambda a=annotations, d=detections: evaluate(a, d, "tov_ap")) for _ in range(repeats)]
        tracemalloc.start()
        evaluate(annotations, detections, "tov_ap")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows.append({"factor": factor, **counts, "median": statistics.median(seconds), "peak_mib": peak / 2**20})
    return rows


def command(scale: float) -> dict[str, Any]:
    """Seconds of the whole command at TinyPerson's size, files and start of Python included."""
    counts = {n: max(1, round(v * scale)) if n != "classes" else v for n, v in SIZES["tinyperson"].items()}
    annotations, detections = generate(**counts)
    with tempfile.TemporaryDirectory() as folder:
        gt, dt = Path(folder, "gt.json"), Path(folder, "dt.json")
        gt.write_text(json.dumps(as_coco(annotations)))
        detections.write_coco(dt, annotations)
        line = [sys.executable, "-m", "flyspeck.cli.main", "eval", "--protocol", "tinybenchmark_ap"]
        line += ["--gt", str(gt), "--dt", str(dt), "--out", str(Path(folder, "f.json"))]
        start = time.perf_counter()
        subprocess.run(line, check=True, capture_output=True)
        wall = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    return {**counts, "wall_seconds": wall, "cpu_seconds": cpu, "peak_mib": usage.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full sizes, for a quick look")
    options = parser.parse_args()
    import faster_coco_eval

    report = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "faster_coco_eval": faster_coco_eval.__version__,
        },
        # First, because a child's peak memory is at least what its parent had when it was started.
        "command": command(options.scale),
        "tinyperson": paired("tinyperson", options.repeats, options.scale),
        "coco_val": paired("coco_val", max(1, options.repeats // 2 + 1), options.scale),
        "growth_tov_ap": growth(options.repeats, options.scale),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
