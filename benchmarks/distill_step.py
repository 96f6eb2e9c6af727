"""What a distilled training step costs: beside the teacher's forward pass and the student's own step, and with a cache.

    python benchmarks/distill_step.py [--runs 15] [--batch 8] [--precision bf16] [--method hierarchical] [--out FILE]

The student and the teacher of recipes/distill/hituav_half.yaml on random images of 320x256 with ten objects each, one
thread, random weights. In turn in one process: the teacher's forward pass (its pyramid, as it is, and with folded norms as
the distillation runs it), the student's step, the distilled step, the step with outputs that were read from a cache on disk.
Times are CPU times of the process, which other processes disturb less than wall time; ratios are medians of the ratios of
rounds. The aims: at most 1.05 x (teacher + student), and at most 1.15 x student with a cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image
from torch import nn

from flyspeck.data.loading import DetectionDataset, collate
from flyspeck.data.readers import read_annotations
from flyspeck.models.detector import Detector
from flyspeck.train.build import build_detector
from flyspeck.train.config import AugmentConfig, ModelConfig, load_recipe
from flyspeck.train.distill.cache import open_cache
from flyspeck.train.distill.config import DistillConfig
from flyspeck.train.distill.method_names import MethodName
from flyspeck.train.distill.objective import OutputSource, build_objective
from flyspeck.train.distill.teacher import Observe, Teacher, TeacherSource
from flyspeck.train.loop import OBSERVED, DetectionObjective
from flyspeck.types import ImageBatch, Targets

METHODS = [name for name in get_args(MethodName) if name != "none"]
RECIPES = Path(__file__).parents[1] / "recipes" / "distill"
CLASSES = ["Person", "Car", "Bicycle"]


def noise_set(folder: Path, count: int) -> DetectionDataset:
    """`count` images of noise, 320x256, with ten boxes of 4-14 px each."""
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for i in range(1, count + 1):
        Image.fromarray(rng.integers(0, 256, (256, 320), dtype=np.uint8)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 320, "height": 256})
        for _ in range(10):
            side = [float(s) for s in rng.integers(4, 15, 2)]
            box = [float(rng.integers(0, 300)), float(rng.integers(0, 240)), *side]
            boxes.append({"id": len(boxes) + 1, "image_id": i, "bbox": box, "area": side[0] * side[1], "iscrowd": 0,
                          "category_id": int(rng.integers(1, 4))})  # fmt: skip
    names = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    content = {"images": images, "annotations": boxes, "categories": names}
    (folder / "set.json").write_text(json.dumps(content))
    return DetectionDataset(read_annotations(folder / "set.json"), channels=1)


def build(model: ModelConfig) -> Detector:
    """The detector with random weights."""
    detector = build_detector(model, classes=CLASSES, mean=[0.5], std=[0.25], load=False)
    return detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def stepper(objective: nn.Module, images: ImageBatch, targets: list[Targets], bf16: bool) -> Callable[[], None]:
    """Forward and backward pass; the optimiser's share is the same for all."""
    objective.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = objective(images, targets)
        torch.stack([value for name, value in losses.items() if not name.startswith(OBSERVED)]).sum().backward()
        for parameter in objective.parameters():
            parameter.grad = None

    return step


def rounds(functions: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """CPU seconds of each, all in turn in every round, after two rounds of warm-up."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(runs + 2):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if i >= 2:
                found[name].append(time.process_time() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--method", choices=METHODS, default="hierarchical")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bf16 = options.precision == "bf16"
    student_model = load_recipe(RECIPES / "hituav_half.yaml").model
    master = build(load_recipe(RECIPES / "hituav_half_teacher.yaml").model).eval()
    teacher = Teacher(master)
    config = DistillConfig(teacher="given", method=options.method)
    with tempfile.TemporaryDirectory() as name:
        dataset = noise_set(Path(name), options.batch)
        images, targets, _ = collate([dataset.raw(i) for i in range(options.batch)], divisor=32)

        def cached(observe: Observe) -> OutputSource:
            still = AugmentConfig(flip=0)
            return open_cache(
                Path(name) / "cache",
                dataset,
                teacher,
                observe,
                augment=still,
                limit_bytes=4e9,
                divisor=32,
                precision=options.precision,
            )

        live = build_objective(config, build(student_model), teacher, lambda observe: TeacherSource(teacher, observe))
        stored = build_objective(config, build(student_model), teacher, cached)

        @torch.no_grad()
        def forward() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                master.detect(images) if options.method == "response" else master.pyramid(images)

        def folded() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                teacher.outputs(images, lambda detector, batch: {"P2": detector.pyramid(batch)[0]})

        times = rounds(
            {
                "teacher": forward,
                "teacher_folded": folded,
                "student": stepper(DetectionObjective(build(student_model)), images, targets, bf16),
                "distilled": stepper(live, images, targets, bf16),
                "cached": stepper(stored, images, targets, bf16),
            },
            options.runs,
        )
    rows = list(zip(*times.values(), strict=True))
    result = {
        "method": options.method,
        "batch": options.batch,
        "precision": options.precision,
        "runs": options.runs,
        "cpu_seconds": {name: round(statistics.median(values), 4) for name, values in times.items()},
        "distilled_over_teacher_plus_student": round(statistics.median(d / (t + s) for t, _, s, d, _ in rows), 4),
        "distilled_over_folded_teacher_plus_student": round(
            statistics.median(d / (f + s) for _, f, s, d, _ in rows), 4
        ),
        "cached_over_student": round(statistics.median(c / s for _, _, s, _, c in rows), 4),
    }
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
