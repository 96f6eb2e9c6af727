"""What skipping empty tiles saves and costs: `python benchmarks/skip.py RUN [--kind sea] [--size 3000x4000]`.

RUN is a run folder trained on generated scenes, with the look.safetensors of `flyspeck tune look RUN`. A sparse image is
a generated scene in which only the objects inside one tile in ten are painted, clear of the other tiles; the dense one has
objects everywhere. Each is predicted with and without skipping, in turn, from a PNG file to merged boxes; recall is of
the annotated objects at IoU 0.5 and score 0.3. Times are medians of the
repeats; on a machine with other work, `cpu_ratio` (processor time with skipping over that without) says more.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from verdict import RESULTS, at_least, at_most, conclude

from flyspeck.boxes import iou
from flyspeck.data.scenes import KINDS, plan
from flyspeck.data.scenes.render import render
from flyspeck.infer.predictor import Predictor, Result
from flyspeck.infer.presence import PresenceLook
from flyspeck.infer.skip import DetectorLook, SkipReport, SkipRule
from flyspeck.infer.tiles import grid
from flyspeck.infer.torch_model import TorchModel
from flyspeck.train.build import load_detector

TILE, OVERLAP, SCORE = (512, 640), 64, 0.3


def scene(seed: int, kind: str, size: tuple[int, int], share: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Pixels, objects (N, 4), and the share of tiles that hold one; objects are left in `share` of the tiles."""
    sketch, rng = plan((seed, 77), height=size[0], width=size[1], kind=kind)
    tiles = grid(size, TILE, OVERLAP)
    if share < 1:
        chosen = tiles[np.random.default_rng(seed).choice(len(tiles), max(1, round(share * len(tiles))), replace=False)]
        inside = [_alone(box, chosen, tiles) for box in sketch.boxes]
        keep = np.array(inside, bool).reshape(-1)
        drawings = tuple(d for d in sketch.drawings if _alone(d.box, chosen, tiles))
        sketch = replace(
            sketch,
            drawings=drawings,
            wakes=(),
            smears=(),
            boxes=sketch.boxes[keep],
            labels=sketch.labels[keep],
            ignore=sketch.ignore[keep],
        )
    objects = sketch.boxes[~sketch.ignore]
    occupied = sum(bool(_touching(objects, tile).any()) for tile in tiles) / len(tiles)
    return render(sketch, rng), objects, occupied


def _alone(box: np.ndarray, chosen: np.ndarray, tiles: np.ndarray) -> bool:
    """Whether a box lies in one of the chosen tiles and touches no tile that is not chosen."""
    touched = {tuple(t) for t in tiles[_touching(tiles, box)].tolist()}
    return bool(touched) and touched <= {tuple(t) for t in chosen.tolist()}


def _touching(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] > box[0]) & (boxes[:, 0] < box[2]) & (boxes[:, 3] > box[1]) & (boxes[:, 1] < box[3])


def recall(objects: np.ndarray, result: Result) -> float:
    boxes = result.detections.boxes[result.detections.scores >= SCORE]
    if not len(objects):
        return float("nan")
    return float((iou(objects, boxes).max(axis=1, initial=0) >= 0.5).mean())


def predict(model: TorchModel, path: Path, rule: SkipRule | None) -> tuple[float, float, Result]:
    """Seconds on the clock, seconds of the processor, the result."""
    predictor = Predictor(model, tile=TILE, overlap=OVERLAP, batch_size=2, skip=rule)
    start, worked = time.perf_counter(), time.process_time()
    (result,) = predictor.stream([path])
    return time.perf_counter() - start, time.process_time() - worked, result


def measure(model: TorchModel, path: Path, objects: np.ndarray, rule: SkipRule, repeats: int) -> dict:
    """Both ways in turn; the order changes with every repeat."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    worked: dict[bool, list[float]] = {False: [], True: []}
    results = {}
    for repeat in range(repeats):
        for skips in (False, True) if repeat % 2 == 0 else (True, False):
            took, cpu, results[skips] = predict(model, path, rule if skips else None)
            seconds[skips].append(took)
            worked[skips].append(cpu)
    plain, skipping = statistics.median(seconds[False]), statistics.median(seconds[True])
    report = results[True].skip or SkipReport()
    return {
        "tiles": results[False].num_tiles,
        "skipped": report.skipped,
        "audited": report.audited,
        "after all": report.fell_back,
        "plain_s": round(plain, 2),
        "skip_s": round(skipping, 2),
        "speedup": round(plain / skipping, 2),
        "cpu_ratio": round(statistics.median(worked[True]) / statistics.median(worked[False]), 4),
        "recall": round(recall(objects, results[False]), 4),
        "recall_skip": round(recall(objects, results[True]), 4),
        "objects": len(objects),
        "estimated_loss": round(report.loss, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="sea")
    parser.add_argument("--size", default="3000x4000")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--look", choices=("trained", "detector"), default="trained")
    parser.add_argument("--threshold", type=float, default=None, help="of the look; the trained one's own by default")
    parser.add_argument("--audit", type=float, default=0.05)
    parser.add_argument("--dense-only", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "skip.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    height, width = (int(v) for v in asked.size.split("x"))
    model = TorchModel(load_detector(asked.run), device="cpu")
    if asked.look == "trained":
        look = PresenceLook(asked.run / "look.safetensors")
        threshold = look.threshold
    else:
        look = DetectorLook(model)
        threshold = 0.1 if asked.look == "detector" else 0.5
    threshold = asked.threshold if asked.threshold is not None else threshold
    rule = SkipRule(look=look, threshold=threshold, audit=asked.audit, score=SCORE)
    print(
        f"{platform.processor() or platform.machine()}, {asked.threads} threads; {asked.look} look, threshold {threshold:.3f}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, share in (("dense", 1.0),) if asked.dense_only else (("sparse", 0.1), ("dense", 1.0)):
            for seed in range(asked.images if share < 1 else 1):
                pixels, objects, occupied = scene(seed, asked.kind, (height, width), share)
                path = Path(folder) / f"{name}-{seed}.png"
                Image.fromarray(pixels).save(path, compress_level=1)
                row = {"image": f"{name} {asked.kind} {seed}", "occupied": round(occupied, 2)}
                row.update(measure(model, path, objects, rule, asked.repeats))
                rows.append(row)
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    sparse = [row for row in rows if row["image"].startswith("sparse")]
    claims = []
    if sparse:
        objects = sum(row["objects"] for row in sparse)
        lost = sum((row["recall"] - row["recall_skip"]) * row["objects"] for row in sparse if row["objects"])
        total = sum(row["plain_s"] for row in sparse) / sum(row["skip_s"] for row in sparse)
        claims.append(at_least("on sparse images skipping is at least 3 times as fast, merge included", total, 3, "x"))
        what = f"it costs under 1 point of the recall of {objects} objects"
        claims.append(at_most(what, 100 * lost / max(1, objects), 1, " points"))
    for row in rows:
        if row["image"].startswith("dense"):
            more = 100 * (row["skip_s"] / row["plain_s"] - 1)
            claims.append(at_most("on a dense image it costs under 3 % of the time", more, 3, " %"))
    metrics = {"threads": asked.threads, "look": asked.look, "threshold": threshold, "audit": asked.audit, "rows": rows}
    conclude(metrics, claims, asked.out)


if __name__ == "__main__":
    main()
