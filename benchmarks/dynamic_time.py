"""Whether a detector that chooses its factors saves time, not only GFLOPs: `python benchmarks/dynamic_time.py RUN/dpnet`.

RUN/dpnet is what `flyspeck dpnet fit RUN` left. The images of its validation set are detected on by the largest factor
alone (`static`: a plain detector with folded norms) and by the detector that chooses (`dynamic`, folded too), one after the
other on the same batch, by turns first; the median of the rounds counts for each batch, the mean over batches for the set.
Images are in memory, enlarged as the network sees them: reading files is the same for both and is left out.

The threshold is the cheapest whose metric (the recipe's best) lies within the 95 % interval, over images, of the largest
factor's, or the one given; it is found on the images that are timed, as the trade-off curve is. The paired difference of the
two is told beside it: it is the stricter judge of "equal".
The predictor's share is the time inside the dynamic detections from the map before the resize to the choice, over their mean.

Times are wall times; `cpu` has processor times of one process, which other work on the machine disturbs less. GFLOPs leave
out what is done after the head (decoding, suppression), which is why the ratio of times is allowed 0.10 more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from verdict import RESULTS, Claim, at_most, conclude

from flyspeck.data.loading import DetectionDataset, in_order, make_loader
from flyspeck.evaluate import protocol_named
from flyspeck.evaluate.bootstrap import compare, interval_rows
from flyspeck.evaluate.protocols import APProtocol
from flyspeck.models.dynamic.norms import at_factor
from flyspeck.models.dynamic.predictor import Decision
from flyspeck.models.dynamic.router import FactorRouter, FoldedFactors
from flyspeck.train.dynamic_fit import DynamicRun, open_candidates, open_run
from flyspeck.types import ImageBatch
from flyspeck_lab.dynamic_curve import Candidates, thresholds

Clocks = tuple[float, float]


def batches_of(run: DynamicRun, num_images: int, batch: int) -> tuple[list[ImageBatch], list[int]]:
    """An even spread of `num_images` of the validation set in batches, and their rows in it."""
    table = run.sets()[1]
    rows = np.linspace(0, len(table) - 1, min(num_images, len(table))).round().astype(np.int64)
    loader = make_loader(
        DetectionDataset(table.select_images(rows), channels=run.channels, enlarge=run.enlarge),  # type: ignore[arg-type]
        batch_size=batch,
        sampler=in_order(len(rows)),
        workers=0,
        divisor=run.detector.divisor,
        drop_last=False,
    )
    return [images for images, _, _ in loader.epoch(0)], rows.tolist()


def clocked(function: Callable[[], object], device: torch.device) -> Clocks:
    """Wall and processor seconds of one call."""
    start, cpu = time.perf_counter(), time.process_time()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, time.process_time() - cpu


class Watch:
    """Stands before the router's choice and says what the last one took."""

    def __init__(self, router: FactorRouter, device: torch.device) -> None:
        self.choose, self.device, self.last = router.places, device, (0.0, 0.0)
        router.places = self  # type: ignore[method-assign, assignment]

    def __call__(self, shared: torch.Tensor, images: ImageBatch) -> list[int]:
        """As the router, and notes the time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found: list[int] = []
        self.last = clocked(lambda: found.extend(self.choose(shared, images)), self.device)
        return found


def measure_batches(
    static: FoldedFactors, dynamic: FoldedFactors, batches: Sequence[ImageBatch], *, rounds: int, device: torch.device
) -> np.ndarray:
    """`(3, 2, N)` median wall and processor seconds of each batch: static, dynamic, the predictor's part of it."""
    router = dynamic.router
    assert router is not None
    watch = Watch(router, device)
    found: list[list[list[Clocks]]] = [[[] for _ in batches] for _ in range(3)]
    for turn in range(rounds + 1):
        router.taken[:] = 0
        for place, images in enumerate(batches if turn else batches[:3]):  # the first turn warms up
            images = images.to(device)
            for kind in (0, 1) if (turn + place) % 2 else (1, 0):
                model = (static, dynamic)[kind]
                spent = clocked(lambda model=model, images=images: model.detect(images), device)
                if turn:
                    found[kind][place].append(spent)
            if turn:
                found[2][place].append(watch.last)
    router.places = watch.choose  # type: ignore[method-assign]
    medians = [[[statistics.median(s[clock] for s in own) for own in kind] for clock in (0, 1)] for kind in found]
    return np.array(medians)


def ratio(times: np.ndarray, counts: np.ndarray, *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Milliseconds an image and their ratio with its 95 % interval over batches; `times (3, N)`, `counts (N,)` images."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(counts), (samples, len(counts)))
    ratios = times[1][drawn].sum(1) / times[0][drawn].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975]).tolist()
    static, dynamic, predictor = (1000 * times.sum(1) / counts.sum()).tolist()
    return {
        "static_ms": round(static, 3), "dynamic_ms": round(dynamic, 3), "predictor_ms": round(predictor, 3),
        "ratio": round(dynamic / static, 4), "ratio_low": round(low, 4), "ratio_high": round(high, 4),
        "predictor_share": round(predictor / dynamic, 4),
    }  # fmt: skip


def operating_point(candidates: Candidates, probabilities: np.ndarray, threshold: float | None) -> dict[str, Any]:
    """The point at `threshold`, or the cheapest within the largest factor's interval; with that interval and `paired`."""
    protocol = protocol_named(candidates.protocol)
    assert isinstance(protocol, APProtocol)
    area = candidates.metric.partition("_")[2]
    largest = candidates.tables[0]
    rows = interval_rows(candidates.annotations, largest, protocol, samples=500)
    static = next(row for row in rows if row["area"] == area)
    curve = []
    for value in [threshold] if threshold is not None else thresholds(probabilities, 40):
        places = Decision("cheapest", value).choose(probabilities)
        curve.append({"threshold": value, "places": places, **candidates.point(places, predictor=True)})
    alike = [point for point in curve if point["metric"] >= static["low"]]
    point = min(alike or curve, key=lambda p: p["gflops"])
    pairs = compare(candidates.annotations, candidates.chosen(point.pop("places")), largest, protocol, samples=500)
    paired = next(row for row in pairs if row["area"] == area)
    return {**point, "within": bool(alike), "static": static, "paired": paired}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=304)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threshold", type=float, help="of the decision; default: see above")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--out", type=Path, default=RESULTS / "dynamic_time.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    run = open_run(asked.run)
    candidates, probabilities, _ = open_candidates(run)
    point = operating_point(candidates, probabilities, asked.threshold)
    router = run.detector.router
    assert isinstance(router, FactorRouter)
    router.decision = Decision("cheapest", point["threshold"])
    dynamic = FoldedFactors(run.detector).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    static = FoldedFactors(at_factor(run.detector, candidates.factors[0])).eval()
    static = static.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows, claims = [], []
    for batch in asked.batch:
        batches, _ = batches_of(run, asked.images, batch)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=asked.precision == "bf16"):
            times = measure_batches(static, dynamic, batches, rounds=asked.rounds, device=device)
        counts = np.array([len(images.sizes) for images in batches])
        assert dynamic.router is not None
        shares = dynamic.router.taken / dynamic.router.taken.sum()
        gflops = float(shares @ np.array(candidates.gflops)) + candidates.predictor_gflops
        row = {
            "batch": batch, "images": int(counts.sum()), "rounds": asked.rounds,
            "shares": {f"{f:g}": round(float(s), 4) for f, s in zip(candidates.factors, shares, strict=True)},
            "gflops_ratio": round(gflops / candidates.gflops[0], 4),
            "wall": ratio(times[:, 0], counts), "cpu": ratio(times[:, 1], counts),
        }  # fmt: skip
        print(row)
        rows.append(row)
        what = f"batch {batch}: mean time of dynamic over static is at most the ratio of GFLOPs + 0.10"
        claims.append(at_most(what, row["wall"]["ratio"], row["gflops_ratio"] + 0.10))
        claims.append(
            at_most(
                f"batch {batch}: the predictor takes under 3 % of the mean",
                100 * row["wall"]["predictor_share"],
                3,
                " %",
            )
        )
    static_row, paired = point["static"], point["paired"]
    told = (
        f"{100 * point['metric']:.2f} in [{100 * static_row['low']:.2f}, {100 * static_row['high']:.2f}] around "
        f"{100 * static_row['value']:.2f}; paired difference [{100 * paired['low']:+.2f}, {100 * paired['high']:+.2f}]"
    )
    claims.append(Claim(f"{candidates.metric} is within the interval of the largest factor's", told, point["within"]))
    metrics = {
        "threads": asked.threads, "device": asked.device, "precision": asked.precision, "metric": candidates.metric,
        "threshold": point["threshold"], "dynamic": point["metric"], "static": static_row, "paired": paired, "rows": rows,
    }  # fmt: skip
    conclude(metrics, claims, asked.out)


if __name__ == "__main__":
    main()
