"""flyspeck's inference against torchvision's own detectors: same weights, same boxes, in turn in one process.

    python benchmarks/torchvision_speed.py [--size 512x640] [--runs 12] [--threads 2] [--precision bf16]

Both sides get decoded images and return boxes; torchvision runs in fp32, flyspeck in `--precision`. Pairs alternate, the
ratio is the median of pair ratios. The weights are random: the time does not depend on them, as both see as many proposals.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))

import test_torchvision_parity as parity

from flyspeck.cli.values import parse_size
from flyspeck.infer.torch_model import TorchModel


def pairs(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> tuple[list[float], list[float]]:
    """Seconds of each, A B A B …, after one warm-up of both."""
    a, b = [], []
    for i in range(runs + 1):
        for function, times in ((ours, a), (theirs, b)):
            start = time.perf_counter()
            function()
            if i:
                times.append(time.perf_counter() - start)
    return a, b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="512x640")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    height, width = parse_size(options.size)
    parity.HEIGHT, parity.WIDTH = height, width
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    rows = []
    for name, build in (
        ("retinanet", parity.build_retinanet),
        ("faster_rcnn", parity.build_faster_rcnn),
        ("fcos", parity.build_fcos),
    ):
        theirs, mine = build(channels=256)
        theirs.eval()
        model = TorchModel(mine, device="cpu", precision=options.precision)

        def run_theirs(theirs=theirs) -> None:
            with torch.inference_mode():
                theirs([tensor])

        a, b = pairs(lambda model=model: model([pixels]), run_theirs, options.runs)
        row = {
            "detector": f"{name}:resnet18",
            "size": options.size,
            "threads": options.threads,
            "precision": options.precision,
            "flyspeck_ms": round(1000 * statistics.median(a), 1),
            "torchvision_ms": round(1000 * statistics.median(b), 1),
            "times_faster": round(statistics.median(y / x for x, y in zip(a, b, strict=True)), 2),
        }
        print(json.dumps(row))
        rows.append(row)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
