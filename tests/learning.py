"""Images with small squares, a small backbone and a short training: what every detector must learn."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flyspeck import boxes as box_algebra
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.detector import Detector
from flyspeck.types import Detections, FeatureSpec, ImageBatch, Targets

CLASSES = ("bright", "dark")
HEIGHT, WIDTH = 128, 160


@dataclass(frozen=True)
class Squares:
    """Images of 128x160 with two to five squares each, of 6-14 px if not said, brighter (class 0) or darker (1) than noise."""

    images: ImageBatch
    targets: list[Targets]
    classes: tuple[str, ...] = CLASSES


def make_squares(images: int = 4, *, seed: int = 0, sides: tuple[int, int] = (6, 14)) -> Squares:
    """The same images for the same seed; squares of `sides` (shortest, longest) px do not touch."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(96, 160, (images, 3, HEIGHT, WIDTH)).astype(np.uint8)
    targets = []
    for image in pixels:
        boxes: list[list[int]] = []
        labels: list[int] = []
        wanted = int(rng.integers(2, 6))
        while len(boxes) < wanted:
            side = int(rng.integers(sides[0], sides[1] + 1))
            x, y = int(rng.integers(0, WIDTH - side)), int(rng.integers(0, HEIGHT - side))
            box = [x, y, x + side, y + side]
            if any(x < b[2] + 4 and b[0] < box[2] + 4 and y < b[3] + 4 and b[1] < box[3] + 4 for b in boxes):
                continue
            label = int(rng.integers(0, 2))
            image[:, y : y + side, x : x + side] = 250 if label == 0 else 5
            boxes.append(box)
            labels.append(label)
        objects = torch.tensor(boxes, dtype=torch.float32)
        targets.append(Targets(objects, torch.tensor(labels), torch.zeros(len(boxes), dtype=torch.bool)))
    return Squares(ImageBatch(torch.from_numpy(pixels), ((HEIGHT, WIDTH),) * images), targets)


def build_small_backbone(width: int = 8) -> StagedBackbone:
    """Four stages of strides 4, 8, 16, 32 with `width`, 2, 4, 4 x `width` channels; group norms, so no mode matters."""
    widths = (width, 2 * width, 4 * width, 4 * width)

    def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(conv, nn.GroupNorm(max(1, outputs // 4), outputs), nn.ReLU(inplace=True))

    stages: dict[str, nn.Module] = {"stem": block(3, width, 2)}
    inputs = width
    for i, outputs in enumerate(widths):
        stages[f"stage{i + 1}"] = nn.Sequential(block(inputs, outputs, 2), block(outputs, outputs, 1))
        inputs = outputs
    specs = {f"stage{i + 1}": FeatureSpec(w, 4 * 2**i) for i, w in enumerate(widths)}
    return StagedBackbone(stages, specs, outputs=tuple(specs))


def ap50(found: list[Detections], targets: list[Targets], num_classes: int = 2) -> float:
    """Mean over classes of the area under the precision envelope at IoU 0.5; enough for a bar, not for a report."""
    values = []
    for label in range(num_classes):
        hits, total = [], 0
        for detections, target in zip(found, targets, strict=True):
            truth = target.objects[target.object_labels == label].cpu().numpy()
            total += len(truth)
            taken = np.zeros(len(truth), dtype=bool)
            mine = detections[detections.labels == label]
            overlap = box_algebra.iou(mine.boxes, truth)
            for row, score in enumerate(mine.scores):
                free = np.where(taken, 0, overlap[row]) if len(truth) else np.zeros(1)
                hit = bool(free.max() >= 0.5)
                if hit:
                    taken[free.argmax()] = True
                hits.append((float(score), hit))
        if total == 0:
            continue
        ordered = np.array([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])], dtype=float)
        right = np.cumsum(ordered)
        precision = right / np.arange(1, len(ordered) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        values.append(float((envelope * ordered).sum() / total))
    return float(np.mean(values))


def learn_on(on: Squares, detector: Detector, *, steps: int = 80, lr: float = 3e-3, clip: float = 10.0) -> float:
    """Trains with AdamW and one cycle of the learning rate; returns the AP at IoU 0.5 on the same images."""
    torch.manual_seed(0)
    random.seed(0)
    detector.train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    for step in range(steps):
        losses = detector.losses(on.images, on.targets)
        total: Tensor = torch.stack(list(losses.values())).sum()
        assert torch.isfinite(total), f"step {step}: {losses}"
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), clip)
        optimizer.step()
        schedule.step()
    detector.eval()
    return ap50(detector.detect(on.images), on.targets)
