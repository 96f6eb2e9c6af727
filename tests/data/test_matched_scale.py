"""Scale Match at every load: MSM as on disk, SM from the target's histogram, limits, and images without objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from flyspeck.data.annotations import Annotations
from flyspeck.data.matched_scale import matched_scale
from flyspeck.data.scale_match import SizeMatchRule, matched_table, plan_match
from flyspeck.errors import UserError
from flyspeck.types import Sample, Targets


def table(sides: list[list[float]], size: tuple[int, int] = (200, 300)) -> Annotations:
    """One image a list, one square a number."""
    boxes = [[5 + 7 * i, 9, 5 + 7 * i + s, 9 + s] for row in sides for i, s in enumerate(row)]
    count = len(boxes)
    return Annotations(
        image_ids=np.arange(len(sides)),
        file_names=tuple(f"{i}.png" for i in range(len(sides))),
        sizes=np.tile(np.array(size), (len(sides), 1)),
        image_index=np.repeat(np.arange(len(sides)), [len(row) for row in sides]),
        boxes=np.array(boxes, dtype=float).reshape(-1, 4),
        labels=np.zeros(count, np.int64),
        area=np.array([s * s for row in sides for s in row], dtype=float),
        ignore=np.zeros(count, bool),
        crowd=np.zeros(count, bool),
        box_ids=np.arange(count),
        classes=("thing",),
        category_ids=(1,),
    )


def samples(annotations: Annotations) -> list[Sample]:
    found = []
    for row in range(len(annotations)):
        boxes = torch.from_numpy(annotations.boxes[annotations.of_image(row)]).float()
        height, width = annotations.sizes[row]
        labels = torch.zeros(len(boxes), dtype=torch.int64)
        targets = Targets(boxes, labels, torch.zeros(len(boxes), dtype=torch.bool))
        found.append(Sample(pixels=torch.zeros((1, height, width), dtype=torch.uint8), targets=targets, image_id=row))
    return found


SOURCE = table([[10, 20], [30], [8, 8, 16], [60, 90]])
TARGET = table([[2, 3, 4, 5], [6, 7, 8], [9, 10, 12, 14, 18]])


def test_msm_is_what_the_files_would_be() -> None:
    rule = SizeMatchRule(method="msm", bins=10)
    step, plan = matched_scale(SOURCE, TARGET, rule), plan_match(SOURCE, TARGET, rule)
    written = matched_table(SOURCE, plan)
    for row, sample in enumerate(samples(SOURCE)):
        found = step(sample, np.random.default_rng(row))
        assert_array_equal(found.pixels.shape[1:], plan.new_sizes[row])
        assert_allclose(found.targets.boxes.numpy(), written.boxes[written.of_image(row)], atol=1e-3)


def test_sm_draws_another_size_at_every_load() -> None:
    step = matched_scale(SOURCE, TARGET, SizeMatchRule(method="sm", bins=10, max_scale=100))
    sample, rng, sizes = samples(SOURCE)[0], np.random.default_rng(0), []
    for _ in range(800):
        boxes = step(sample, rng).targets.boxes
        sizes.append(float(((boxes[:, 2:] - boxes[:, :2]).prod(1).log() / 2).mean().exp()))
    assert len({round(size, 3) for size in sizes}) > 50
    wanted = step.histogram.sample(np.random.default_rng(1), 20_000)
    assert_allclose(np.quantile(sizes, [0.1, 0.5, 0.9]), np.quantile(wanted, [0.1, 0.5, 0.9]), rtol=0.12)
    again = [step(sample, np.random.default_rng(5)).pixels.shape for _ in range(2)]
    assert again[0] == again[1]


def test_limits_hold_and_slivers_go() -> None:
    tiny = table([[1, 2]])
    step = matched_scale(tiny, TARGET, SizeMatchRule(method="sm", max_scale=1.5, max_side=310))
    for seed in range(20):
        found = step(samples(tiny)[0], np.random.default_rng(seed))
        assert max(found.pixels.shape[1:]) <= 310
    step = matched_scale(SOURCE, TARGET, SizeMatchRule(method="sm", min_side=3))
    for seed in range(20):
        boxes = step(samples(SOURCE)[0], np.random.default_rng(seed)).targets.boxes
        assert len(boxes) == 0 or float((boxes[:, 2:] - boxes[:, :2]).min()) >= 3


def test_images_without_objects_take_the_median_scale() -> None:
    # Image means 14.14, 30, 10.08 and 73.48: median 22.07; the target's median 7.5.
    step = matched_scale(table([[10, 20], [30], [8, 8, 16], [60, 90], []]), TARGET, SizeMatchRule(method="sm"))
    median = np.median([200**0.5, 30, (8 * 8 * 16) ** (1 / 3), 5400**0.5])
    empty = Sample(
        pixels=torch.zeros((1, 200, 300), dtype=torch.uint8),
        targets=Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)),
        image_id=1,
    )
    found = step(empty, np.random.default_rng(0))
    assert found.pixels.shape[1:] == (int(200 * 7.5 / median + 0.5), int(300 * 7.5 / median + 0.5))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="made on disk"):
        matched_scale(SOURCE, TARGET, SizeMatchRule(method="sm+"))
    for pair in ((table([[]]), TARGET), (SOURCE, table([[]]))):
        with pytest.raises(UserError, match="no boxes to take sizes from"):
            matched_scale(*pair, SizeMatchRule(method="sm"))
