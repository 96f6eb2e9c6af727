"""The one table at the end: what teacher and students find, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from flyspeck.data.loading import DetectionDataset, collate
from flyspeck.errors import UserError
from flyspeck.files import write_json, write_text
from flyspeck.models.detector import Detector
from flyspeck.models.profile import measure_latency, profile
from flyspeck.train.distill.features import FeatureTerms
from flyspeck.train.distill.levels import match_levels
from flyspeck.train.distill.teacher import Teacher
from flyspeck.train.viewing import WHOLE_PIXELS

COLUMNS = {
    "AP": "ap_all",
    "AP_small": "ap_small",
    "AP50_tiny": "ap50_tiny",
    "AP50_tiny1": "ap50_tiny1",
    "AP50_tiny2": "ap50_tiny2",
    "AP50_tiny3": "ap50_tiny3",
    "AP50": "ap50_all",
    "AP75": "ap75_all",
}
"""Heading to the metric's name; metrics that a protocol does not have are dashes."""


@dataclass(frozen=True)
class StudentRow:
    """One model."""

    name: str
    metrics: Mapping[str, float]
    params: int
    gflops: float
    """Multiply-adds of a forward pass on one image as the model sees it, in units of 1e9."""
    ms: float
    """Median wall time of one image, detection included."""
    similarity: Mapping[str, float] = field(default_factory=dict)
    """Linear CKA of each level with the teacher's, on validation images."""


@dataclass(frozen=True)
class StudentTable:
    """All models; the first row is the teacher."""

    size: tuple[int, int]
    """(H, W) of the images that the students see."""
    threads: int
    rows: Sequence[StudentRow]

    def text(self) -> str:
        """As Markdown: metrics in percent, costs, and how many times more the teacher costs."""
        levels = list(dict.fromkeys(level for row in self.rows for level in row.similarity))
        alike = [f"CKA {level}" for level in levels]
        head = ["model", *COLUMNS, "parameters (M)", "GFLOPs", "ms", "teacher / model", *alike]
        teacher = self.rows[0]
        body = []
        for row in self.rows:
            ratios = (teacher.params / row.params, teacher.gflops / row.gflops, teacher.ms / row.ms)
            body.append(
                [
                    row.name,
                    *(_percent(row.metrics.get(name)) for name in COLUMNS.values()),
                    f"{row.params / 1e6:.3f}",
                    f"{row.gflops:.3f}",
                    f"{row.ms:.1f}",
                    " / ".join(f"{ratio:.1f}x" for ratio in ratios),
                    *(f"{row.similarity[level]:.2f}" if level in row.similarity else "-" for level in levels),
                ]
            )
        lines = [head, ["---"] * len(head), *body]
        height, width = self.size
        note = (
            f"Metrics in percent. Students see {width}x{height}; multiply-adds count 1000 proposals in a two-stage head; ms:"
            f" one image, {self.threads} thread{'s' if self.threads > 1 else ''}. teacher / model: parameters, GFLOPs, ms."
        )
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{note}\n"


def _percent(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{100 * value:.1f}"


def cost_row(
    name: str,
    detector: Detector,
    size: tuple[int, int],
    metrics: Mapping[str, float],
    *,
    similarity: Mapping[str, float] | None = None,
) -> StudentRow:
    """The row of a trained detector that sees images of `size` (H, W); it is timed here and now."""
    counted = profile(detector, size, convention="macs")
    timed = measure_latency(detector, size, runs=10, device="cpu")
    return StudentRow(name, dict(metrics), counted.params, counted.gflops, timed.median_ms, dict(similarity or {}))


@torch.no_grad()
def level_similarities(
    student: Detector, teacher: Teacher, dataset: DetectionDataset, *, num_images: int = 16
) -> dict[str, float]:
    """Mean linear CKA of each common level over `num_images` of a set, evenly spread; empty without a common level.

    Whole images of at most `WHOLE_PIXELS` are compared; where there is none, the smallest.
    """
    try:
        pairs = match_levels(student.features, teacher.detector.features, teacher_scale=teacher.scale)
    except UserError:  # the table has room for a model that cannot be compared
        return {}
    terms = FeatureTerms(pairs, wanted=[])
    sums = dict.fromkeys((pair.name for pair in pairs), 0.0)
    chosen = _moderate(dataset.annotations.sizes)
    rows = chosen[np.unique(np.linspace(0, len(chosen) - 1, min(num_images, len(chosen))).round().astype(int))]
    for row in rows:
        images = collate([dataset.raw(int(row))], divisor=math.lcm(student.divisor, teacher.detector.divisor)).images
        found = terms.similarities(student.pyramid(images), teacher.outputs(images, terms.observe))
        for name, value in found.items():
            sums[name] += float(value) / len(rows)
    return sums


def _moderate(sizes: np.ndarray) -> np.ndarray:
    """Rows of the images, by `sizes` (I, 2), that both networks can see whole."""
    pixels = sizes.astype(np.int64).prod(axis=1)
    rows = np.flatnonzero(pixels <= WHOLE_PIXELS)
    return rows if len(rows) else np.array([int(pixels.argmin())])


def write_table(table: StudentTable, folder: Path) -> None:
    """`table.json` and `table.md` in `folder`."""
    write_json(folder / "table.json", asdict(table))
    write_text(folder / "table.md", table.text())
