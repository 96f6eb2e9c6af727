"""A trained face detector beside two published ones, on the same images.

    python benchmarks/faces/side_by_side.py VAL.json --run RUN --yunet yunet_n_dynamic.onnx \
        --retinaface biubug6_mobilenet0.25_Final.pth --out benchmarks/results/faces

Every class of the annotations counts as a face. Prints AP50 by size (protocol `flyspeck`) and the time of an image on one
thread, with the images as they are and enlarged; draws the fullest images, truth and detectors in columns. The published
detectors were trained on WIDER FACE and never saw these images; the run was trained on the same set's training images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from detectors import RetinaFace, YuNet
from PIL import Image, ImageDraw

from flyspeck.data.annotations import Annotations
from flyspeck.data.enlarge import resample
from flyspeck.data.images import read_image
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import evaluate
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.infer.multiscale import MultiScale
from flyspeck.infer.torch_model import TorchModel
from flyspeck.train.build import load_detector
from flyspeck.train.measure import metrics_of
from flyspeck.types import Detections

METRICS = ("ap50_all", "ap50_tiny1", "ap50_tiny2", "ap50_tiny3", "ap50_small", "ar50_all")


def as_faces(table: Annotations) -> Annotations:
    """The same boxes, all of one class."""
    one = {name: np.where(column >= 0, 0, -1) for name, column in table.extra.items() if name == "category"}
    labels = np.where(table.labels >= 0, 0, -1)
    return replace(table, labels=labels, extra=table.extra | one, classes=("face",), category_ids=(1,))


def as_face(found: Detections) -> Detections:
    """One class, and of boxes of several classes in one place the best."""
    one = replace(found, labels=np.zeros(len(found), np.int64), classes=("face",))
    from flyspeck.infer.merge import MergeRule, merge

    return merge(one, rule=MergeRule(threshold=0.45))


def measure(model: Callable, table: Annotations, scale: float) -> tuple[dict[str, float], list[Detections]]:
    """Metrics, and the detections of every image."""
    seen = model if scale == 1 else MultiScale(model, [scale])
    found, seconds = [], 0.0
    for row in range(len(table)):
        image = read_image(table.path(row), channels=3)
        start = time.perf_counter()
        (one,) = seen([image])
        seconds += time.perf_counter() - start
        found.append(replace(as_face(one), image_id=table.image_ids[row].item()))
    metrics = metrics_of(evaluate(table, DetectionTable.from_list(found, table), "flyspeck"))
    return {name: metrics[name] for name in METRICS} | {"ms": 1000 * seconds / max(1, len(table))}, found


def draw(table: Annotations, columns: dict[str, list[Detections]], rows: list[int], path: Path, score: float) -> None:
    """Truth and detections of `score` or more, one image a row, one detector a column."""
    strips = []
    for row in rows:
        pixels = read_image(table.path(row), channels=3)
        factor = 420 / pixels.shape[1]
        small = resample(pixels, (round(pixels.shape[0] * factor), 420))
        truth = table.boxes[table.of_image(row)]
        cells = [("truth", truth)] + [(name, f[row].boxes[f[row].scores >= score]) for name, f in columns.items()]
        strip = Image.new("RGB", (424 * len(cells), small.shape[0] + 18), "white")
        for number, (name, boxes) in enumerate(cells):
            cell = Image.fromarray(small)
            pen = ImageDraw.Draw(cell)
            for box in np.asarray(boxes) * factor:
                pen.rectangle(box.tolist(), outline=(0, 220, 0) if number == 0 else (230, 40, 40))
            strip.paste(cell, (424 * number, 18))
            ImageDraw.Draw(strip).text((424 * number + 4, 3), f"{name}: {len(boxes)}", fill="black")
        strips.append(strip)
    sheet = Image.new("RGB", (strips[0].width, sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(path)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--run", type=Path, help="a run folder or weights file of flyspeck")
    parser.add_argument("--yunet", type=Path)
    parser.add_argument("--retinaface", type=Path)
    parser.add_argument("--scales", default="1,2")
    parser.add_argument("--images", type=int, default=5, help="fullest images to draw")
    parser.add_argument("--limit", type=int, default=None, help="look at so many images only, evenly spread")
    parser.add_argument("--score", type=float, default=0.4, help="draw boxes from this score on")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = as_faces(read_annotations(given.annotations))
    if given.limit is not None:
        table = table.select_images(np.unique(np.linspace(0, len(table) - 1, given.limit).round().astype(int)))
    models: dict[str, Callable] = {}
    if given.run is not None:
        models["flyspeck"] = TorchModel(load_detector(given.run), device="cpu")
    if given.yunet is not None:
        models["YuNet-n"] = YuNet(given.yunet)
    if given.retinaface is not None:
        models["RetinaFace-0.25"] = RetinaFace(given.retinaface)
    report, columns = {}, {}
    print(f"{'':>24}" + "".join(f"{name:>12}" for name in (*METRICS, "ms")))
    for scale in (float(part) for part in given.scales.split(",")):
        for name, model in models.items():
            metrics, found = measure(model, table, scale)
            report[f"{name} x{scale:g}"] = metrics
            print(f"{name + f' x{scale:g}':>24}" + "".join(f"{value:>12.3f}" for value in metrics.values()))
            if scale == 1:
                columns[name] = found
    given.out.mkdir(parents=True, exist_ok=True)
    content = {"images": len(table), "faces": int((~table.ignore).sum()), "metrics": report}
    (given.out / "side_by_side.json").write_text(json.dumps(content, indent=1))
    counts = np.bincount(table.image_index, minlength=len(table))
    draw(table, columns, np.argsort(-counts)[: given.images].tolist(), given.out / "side_by_side.png", given.score)


if __name__ == "__main__":
    main()
