"""On real images: errors planted in frames that the packaged model was not trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import flyspeck
from flyspeck import boxes as box_algebra
from flyspeck.data.shrink import shrink


@pytest.mark.slow
def test_planted_classes_and_shifts_come_first(shared: Path, tmp_path: Path) -> None:
    """80 frames of HIT-UAV's held-out blocks: a tenth of the boxes changed; half of the first suspects must be among them."""
    source = shared / "data" / "hituav" / "val_blk.json"
    if not source.is_file():
        pytest.skip("needs HIT-UAV beside the project")
    table = flyspeck.read_annotations(source, classes=["Person", "Car", "Bicycle"])
    small = shrink(table.select_images(np.arange(0, 320, 4)), tmp_path, name="half.json", factor=2)
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.flatnonzero(~small.ignore & (small.labels >= 0)))
    number = len(rows) // 20
    changed, moved = rows[:number], rows[number : 2 * number]
    labels, boxes = small.labels.copy(), small.boxes.copy()
    labels[changed] = (labels[changed] + 1) % 3
    angle = rng.uniform(0, 2 * np.pi, number)
    step = np.stack([np.cos(angle), np.sin(angle)], 1) * box_algebra.size(boxes[moved])[:, None] / 2
    boxes[moved] += np.tile(step, (1, 2))
    model = Path(__file__).parents[2] / "models" / "hituav_half"
    found = flyspeck.find_label_errors(
        model, annotations=replace(small, labels=labels, boxes=boxes), least_chance=0, device="cpu"
    )
    for kind, planted in (("class", changed), ("placement", moved)):
        first = [one.row for one in found.suspects if one.kind == kind][:number]
        assert np.isin(np.array(first), planted).mean() > 0.5, kind
