"""A run's exported forms against eager PyTorch: `python benchmarks/exported.py RUN [--images SET] [--threads 2]`.

Every engine takes its turn on the same images (`flyspeck.export.benchmark`, what `flyspeck benchmark` runs): milliseconds of
the forward pass and of everything from file to result file. Boxes of the fp32 engines are compared with eager's window by
window, as `flyspeck export` does before it writes a file; for bf16 and INT8 the difference of AP50 is stated by size bin.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from verdict import RESULTS, Claim, at_least, conclude

from flyspeck.cli.benchmark import table
from flyspeck.export.benchmark import EngineResult, build_engines, check_engines, measure
from flyspeck.export.check_images import detect, named_set, run_sets
from flyspeck.export.parity import Difference, Rule, compare
from flyspeck.train.build import load_described

ENGINES = "eager,eager bf16,onnx,openvino,openvino bf16,onnx int8,openvino int8"


def claims_of(rows: dict[str, EngineResult], differences: dict[str, Difference]) -> list[Claim]:
    """The verdicts."""
    eager, claims = rows["eager"], []
    exported = [row for name, row in rows.items() if name in differences]
    if exported:
        best = min(exported, key=lambda row: row.parts["forward"])
        for what, ours, mine in (
            ("forward pass", eager.parts["forward"], best.parts["forward"]),
            ("all of it, from file to result file,", eager.total, best.total),
        ):
            claims.append(
                at_least(f"{best.name}, fp32: the {what} at least 3 times as fast as eager", ours / mine, 3, "x")
            )
    fastest = [row for name, row in rows.items() if name.startswith(("onnx", "openvino")) and not row.problem]
    if fastest:
        best = min(fastest, key=lambda row: row.parts["forward"])
        ratio = eager.parts["forward"] / best.parts["forward"]
        claims.append(at_least(f"the fastest, {best.name}: the forward pass at least 3 times as fast", ratio, 3, "x"))
    for name, difference in differences.items():
        claims.append(Claim(f"{name}: the same boxes as eager", difference.text, difference.same))
        gap = abs(rows[name].metrics["ap50_tiny"] - eager.metrics["ap50_tiny"])
        claims.append(Claim(f"{name}: AP50 of tiny objects within 0.001", f"{gap:.5f}", gap <= 1e-3))
    return claims


def by_size(rows: dict[str, EngineResult]) -> dict[str, dict[str, float]]:
    """Points of AP50 by size that each engine gains or loses against eager."""
    first = rows["eager"].metrics
    keys = [key for key in first if key.startswith("ap50_") and first[key] >= 0]
    return {
        name: {key.removeprefix("ap50_"): round(100 * (row.metrics[key] - first[key]), 3) for key in keys}
        for name, row in rows.items()
        if name != "eager" and row.metrics
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=Path, help="annotations; by default the run's validation set")
    parser.add_argument("--engines", default=ENGINES)
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibration-tiles", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "exported.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    names = [name.strip() for name in asked.engines.split(",")]
    check_engines(names)
    if names[0] != "eager":
        sys.exit("'eager' must come first: the others are held against it")
    detector, description = load_described(asked.run)
    if asked.images is None:
        calibration, chosen = run_sets(asked.run)
    else:
        calibration = chosen = named_set(asked.images, detector.classes)
    chosen = chosen.spread(asked.limit)

    def say(line: str) -> None:
        print(f"{line} ...", file=sys.stderr, flush=True)

    models = build_engines(detector, description, names, calibration, num_tiles=asked.calibration_tiles, say=say)
    measured = measure(
        models,
        chosen,
        description,
        score=0.05,
        rounds=asked.rounds,
        batch_size=asked.batch_size,
        scales=(),
        say=say,
    )
    rows = {row.name: row for row in measured}
    suppression = detector.head.suppression
    rule = Rule(suppression.score, suppression.iou, suppression.max_detections)
    windows: dict[str, Any] = {
        name: detect(models[name], chosen, description, score=rule.score)[1]  # type: ignore[arg-type]
        for name in ("eager", "onnx", "openvino")
        if name in models and not isinstance(models[name], str)
    }
    differences = {name: compare(windows["eager"], found, rule) for name, found in windows.items() if name != "eager"}
    print(f"{description['model']['name']}: {len(chosen.paths)} images of {chosen.name}, {asked.threads} threads")
    print(table(measured))
    metrics = {
        "detector": str(description["model"]["name"]),
        "images": len(chosen.paths),
        "threads": asked.threads,
        "torch": torch.__version__,
        "engines": [row.to_dict() for row in measured],
        "boxes": {name: difference.to_dict() for name, difference in differences.items()},
        "points_of_ap50_against_eager": by_size(rows),
    }
    conclude(metrics, claims_of(rows, differences), asked.out)


if __name__ == "__main__":
    main()
