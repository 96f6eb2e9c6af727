"""Table 4 of the stride paper (BMVC 2019): milliseconds of SSD on one image, without suppression: `stride_runtimes.py`.

The networks are the printed ones with random weights, folded as for prediction; one image of 300x300 (`Size512`: 512x512), in
turn, so that a warm or busy machine is the same for all. The paper's GTX 1080 Ti gives other milliseconds, so the ratio to
`base` stands beside. On a GPU each time ends when its work is done, and fp32 products are full ones (no TF32).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from verdict import RESULTS

from flyspeck.devices import torch_device
from flyspeck.files import write_json
from flyspeck.models.build import build
from flyspeck.models.fold import fold_norms
from flyspeck.publish.score import environment
from flyspeck.types import ImageBatch

PRINTED: dict[str, float] = {
    "mobilenet_v1:base": 6.9,
    "mobilenet_v1:Size512": 6.9,
    "mobilenet_v1:S1L6": 6.9,
    "mobilenet_v1:S1L4": 7.8,
    "mobilenet_v1:S1L0": 10.4,
    "mobilenet_v1:S1L0-DualPath19-10-S": 12.1,
    "vgg16:base": 12.1,
    "vgg16:S1L2": 31.5,
}
"""Milliseconds on a GTX 1080 Ti, by backbone and configuration."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--width", type=float, default=1.0, help="for a try on a slow machine; the paper's is 1")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--out", type=Path, default=RESULTS / "stride_runtimes.json")
    options = parser.parse_args()
    place = torch_device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    calls = {}
    for name in PRINTED:
        detector = build(f"ssd:{name}", width=options.width, classes=[str(i) for i in range(80)]).eval()
        side = 512 if name.endswith("Size512") else 300
        batch = ImageBatch(torch.rand(1, 3, side, side), ((side, side),))
        fold_norms(detector, lambda detector=detector, batch=batch: detector.pyramid(batch))
        batch = batch.to(place)
        calls[name] = (detector.to(place, memory_format=torch.channels_last), batch)

    def timed(name: str) -> float:
        detector, batch = calls[name]
        start = time.perf_counter()
        with torch.inference_mode(), torch.autocast(place.type, torch.bfloat16, enabled=options.precision == "bf16"):
            detector.head(detector.pyramid(batch))
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return 1000 * (time.perf_counter() - start)

    for name in calls:
        for _ in range(min(20, options.runs)):
            timed(name)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.runs):
        for name, found in times.items():
            found.append(timed(name))
    medians = {name: statistics.median(found) for name, found in times.items()}
    rows = []
    for name, ms in medians.items():
        base = name.partition(":")[0] + ":base"
        row = {"name": name, "ms": round(ms, 3), "to_base": round(ms / medians[base], 3), "printed_ms": PRINTED[name]}
        rows.append(row | {"printed_to_base": round(PRINTED[name] / PRINTED[base], 3)})
        told = "{name:<36} {ms:8.2f} ms  {to_base:.2f} of base   printed {printed_ms} ms, {printed_to_base:.2f}"
        print(told.format(**rows[-1]))
    content = {"device": options.device, "runs": options.runs, "width": options.width, "precision": options.precision}
    if place.type == "cuda":
        content["gpu"] = torch.cuda.get_device_name(place)
    write_json(options.out, {**content, **environment(), "rows": rows})


if __name__ == "__main__":
    main()
