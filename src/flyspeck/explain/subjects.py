"""The models that are explained, and images as each of them takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flyspeck.data.bands import PixelRule, rule_of
from flyspeck.data.enlarge import Enlarge, described_enlargement, resample
from flyspeck.devices import torch_device
from flyspeck.explain.cases import Window
from flyspeck.explain.similarity import View
from flyspeck.files import read_records, without_ending
from flyspeck.infer.padding import padded
from flyspeck.infer.torch_model import to_batch
from flyspeck.models.detector import Detector
from flyspeck.report.similarity import History, similarity_history
from flyspeck.train.build import load_described
from flyspeck.types import ImageBatch


@dataclass(frozen=True)
class Subject:
    """A trained detector under a name."""

    name: str
    detector: Detector
    enlarge: Enlarge
    """As its training saw images."""
    rule: PixelRule
    """Which bands and values it reads."""
    history: History
    """Level to (epoch, similarity to its teacher), where its training logged that."""

    def view(self, path: Path, boxes: np.ndarray, region: Window) -> View:
        """`region` of the image in a file with its `boxes (N, 4)`, as this model takes it."""
        x1, y1, x2, y2 = region
        cut = self.rule.read(path)[y1:y2, x1:x2]
        size = self.enlarge.size((cut.shape[0], cut.shape[1]))
        ready = resample(cut, size)
        ratio = np.array([size[1] / cut.shape[1], size[0] / cut.shape[0]] * 2)
        device = self.detector.pixel_norm.mean.device
        whole = padded(ready, divisor=self.detector.divisor, smallest=self.detector.smallest_side)
        images = ImageBatch(to_batch([np.ascontiguousarray(whole)]).to(device), (size,))
        inside = box_rows(boxes, region)
        return View(images, (boxes[inside] - np.array([x1, y1, x1, y1])) * ratio)


def load_subjects(paths: Sequence[Path], *, device: str = "auto") -> list[Subject]:
    """The models of run folders or weights files, named after their folders, with more of the path where names are equal."""
    target = torch_device(device)
    subjects = []
    for path, name in zip(paths, _names(paths), strict=True):
        detector, description = load_described(path)
        enlarge = described_enlargement(description)
        moved = detector.to(target, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        subjects.append(Subject(name, moved, enlarge, rule_of(description), read_similarities(path)))
    return subjects


def read_similarities(path: Path) -> History:
    """`P2` to (epoch, value) from the metrics `similarity_P2` in a run folder's `metrics.jsonl`; empty where it has none."""
    records = read_records(path / "metrics.jsonl")
    return similarity_history(record for record in records if record.get("kind") == "epoch")


def region_around(window: Window, size: tuple[int, int], most: int) -> Window:
    """The part of an image of `size` (H, W) that is shown to the models: all of it, or `most` px a side about `window`."""
    spans = []
    for low, high, length in ((window[0], window[2], size[1]), (window[1], window[3], size[0])):
        side = min(length, max(most, high - low))
        start = int(np.clip((low + high - side) // 2, 0, length - side))
        spans.append((start, start + side))
    (x1, x2), (y1, y2) = spans
    return x1, y1, x2, y2


def box_rows(boxes: np.ndarray, region: Window) -> np.ndarray:
    """Rows of `boxes (N, 4)` whose centres lie in `region`."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.flatnonzero(((centre >= region[:2]) & (centre < region[2:])).all(1))


def _names(paths: Sequence[Path]) -> list[str]:
    """Folder names, or file names without endings; with the folder above where that is not enough, else numbered."""
    whole = [path.resolve() for path in paths]
    for depth in (1, 2, 3):
        names = ["/".join(without_ending(p).parts[-depth:] if p.is_file() else p.parts[-depth:]) for p in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]
