"""The guidance loss and the labels, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.guidance import (
    MIN_SCORE,
    factor_labels,
    factor_losses,
    guidance_loss,
    total_labels,
    unsuppressed,
)
from flyspeck.models.dynamic.pooling import pool_dynamically
from flyspeck.models.postprocess import RawDetections
from flyspeck.types import ImageBatch, Targets


def focal(score: float, wanted: int) -> float:
    """Lin et al., eq. 5, with gamma 2 and alpha 0.25."""
    right = score if wanted else 1 - score
    return -(0.25 if wanted else 0.75) * (1 - right) ** 2 * math.log(right)


def predictions(*rows: tuple[list[float], float, int]) -> RawDetections:
    return RawDetections(
        torch.tensor([r[0] for r in rows]).reshape(-1, 4),
        torch.tensor([r[1] for r in rows]),
        torch.tensor([r[2] for r in rows], dtype=torch.int64),
    )


def objects(*rows: tuple[list[float], int]) -> Targets:
    return Targets(
        torch.tensor([r[0] for r in rows]).reshape(-1, 4),
        torch.tensor([r[1] for r in rows], dtype=torch.int64),
        torch.tensor([r[1] < 0 for r in rows], dtype=torch.bool),
    )


HIT = [10.0, 10, 18, 18]


def test_an_exact_hit_costs_its_score_alone() -> None:
    assert guidance_loss(predictions((HIT, 0.9, 0)), objects((HIT, 0))) == pytest.approx(focal(0.9, 1), rel=1e-4)


def test_the_best_fitting_prediction_counts_not_the_most_confident() -> None:
    """The other one overlaps by 56/72 = 0.78: no negative either."""
    found = predictions(([11.0, 10, 19, 18], 0.95, 0), (HIT, 0.3, 0))
    assert guidance_loss(found, objects((HIT, 0))) == pytest.approx(focal(0.3, 1), rel=1e-4)


def test_a_box_of_one_pixel_off_costs_by_the_objects_size() -> None:
    """Both x off by 1 of 8 px: 0.125 > beta 0.11, so |e| - beta / 2 = 0.07 for each of the two."""
    found = predictions(([11.0, 10, 19, 18], 0.9, 0))
    assert guidance_loss(found, objects((HIT, 0))) == pytest.approx(focal(0.9, 1) + 2 * 0.07, rel=1e-4)


def test_a_matched_positive_survives_suppression() -> None:
    """The other one overlaps the hit by 56/72 = 0.78 and is surer: suppression leaves it alone, off by 1 of 8 px twice."""
    found = predictions(([11.0, 10, 19, 18], 0.95, 0), (HIT, 0.3, 0))
    expected = focal(0.95, 1) + 2 * 0.07
    assert guidance_loss(found, objects((HIT, 0)), positives="matched") == pytest.approx(expected, rel=1e-4)


def test_a_matched_positive_overlaps_by_half() -> None:
    """By 32/96 = 0.33 it is no positive but a false alarm: the object is missed. `best` takes it, 4 of 8 px off twice."""
    found, target = predictions(([14.0, 10, 22, 18], 0.9, 0)), objects((HIT, 0))
    missed = focal(MIN_SCORE, 1) + 1.0 + focal(0.9, 0)
    assert guidance_loss(found, target, positives="matched") == pytest.approx(missed, rel=1e-4)
    # Its box loss is 2 x (0.5 - 0.055), and it is a false alarm besides (below 0.4).
    assert guidance_loss(found, target) == pytest.approx(focal(0.9, 1) + 0.89 + focal(0.9, 0), rel=1e-4)
    exact_half = predictions(
        ([10.0, 10, 18, 14], 0.9, 0)
    )  # 4 rows of the 8: an overlap of 0.5 is enough, 4 of 8 px off once
    assert guidance_loss(exact_half, target, positives="matched") == pytest.approx(focal(0.9, 1) + 0.445, rel=1e-4)


@pytest.mark.parametrize("side", [1.0, 2.0, 4.0, 8.0])
def test_tiny_hits_are_matched(side: float) -> None:
    box = [20.0, 20.0, 20 + side, 20 + side]
    found, target = predictions((box, 0.8, 0)), objects((box, 0))
    for kind in ("best", "matched"):
        assert guidance_loss(found, target, positives=kind) == pytest.approx(focal(0.8, 1), rel=1e-4)


def test_a_matched_prediction_of_another_class_suppresses_nothing() -> None:
    found = predictions((HIT, 0.9, 1), (HIT, 0.4, 0))
    expected = focal(0.4, 1) + focal(0.9, 0)
    assert guidance_loss(found, objects((HIT, 0)), positives="matched") == pytest.approx(expected, rel=1e-4)


def test_positives_reach_the_losses_of_a_detector(
    small: Callable[..., Detector], batch: tuple[ImageBatch, list[Targets]]
) -> None:
    detector = small("retinanet")
    pool_dynamically(detector, (0.5, 0.25))
    best, matched = (factor_losses(detector, *batch, positives=kind) for kind in ("best", "matched"))
    assert (matched >= best - 1e-6).all()  # fewer may be positives
    assert (matched > best).any()


def test_as_many_false_alarms_as_objects_the_most_confident_after_nms() -> None:
    """Two alarms on one place are one after NMS; of the two places the more confident counts, k = 1."""
    found = predictions(
        (HIT, 0.9, 0), ([40.0, 40, 48, 48], 0.6, 0), ([41.0, 40, 49, 48], 0.8, 0), ([60.0, 60, 64, 64], 0.5, 0)
    )
    assert guidance_loss(found, objects((HIT, 0))) == pytest.approx(focal(0.9, 1) + focal(0.8, 0), rel=1e-4)


def test_a_prediction_of_another_class_is_a_false_alarm_and_the_object_missed() -> None:
    expected = focal(MIN_SCORE, 1) + 1.0 + focal(0.9, 0)
    assert guidance_loss(predictions((HIT, 0.9, 1)), objects((HIT, 0))) == pytest.approx(expected, rel=1e-4)


def test_nothing_found_is_the_worst_not_the_best() -> None:
    nothing = guidance_loss(predictions(), objects((HIT, 0)))
    assert nothing == pytest.approx(focal(MIN_SCORE, 1) + 1.0, rel=1e-4)
    assert nothing > guidance_loss(predictions((HIT, 0.05, 0)), objects((HIT, 0)))


def test_two_objects_cannot_share_a_prediction() -> None:
    """The box lies on the first; the second, of which it covers a part, counts as missed."""
    found = predictions((HIT, 0.9, 0))
    loss = guidance_loss(found, objects((HIT, 0), ([14.0, 10, 22, 18], 0)))
    assert loss == pytest.approx((focal(0.9, 1) + focal(MIN_SCORE, 1) + 1.0) / 2, rel=1e-4)


def test_alarms_under_an_ignore_region_are_free() -> None:
    found = predictions((HIT, 0.9, 0), ([42.0, 42, 46, 46], 0.9, 0))
    assert guidance_loss(found, objects((HIT, 0), ([40.0, 40, 50, 50], -1))) == pytest.approx(focal(0.9, 1), rel=1e-4)


def test_a_image_without_objects_costs_nothing_so_that_the_cheapest_is_taken() -> None:
    assert guidance_loss(predictions((HIT, 0.9, 0)), objects()) == 0
    assert_array_equal(factor_labels(np.zeros((1, 3))), [[True, True, True]])


def test_labels_by_hand() -> None:
    """Eq. 10: up to 1.1 times the least, the bound included."""
    losses = np.array([[1.0, 1.1, 1.1001], [2.0, 1.0, 1.05], [0.0, 0.0, 1e-9]])
    assert_array_equal(factor_labels(losses), [[1, 1, 0], [0, 1, 1], [1, 1, 0]])
    assert_array_equal(factor_labels(losses, ratio=1), [[1, 0, 0], [0, 1, 0], [1, 1, 0]])


def test_labels_of_the_sum_by_hand() -> None:
    """(L - min L) x objects: 0.2 x 2 = 0.4 and 0.6 x 2 = 1.2; alone 0.6; no objects: nothing to lose; 0.06 x 30 = 1.8."""
    losses = np.array([[1.0, 1.2, 1.6], [1.0, 1.2, 1.6], [0.0, 0.0, 0.0], [1.0, 1.05, 0.99]])
    objects = np.array([2, 1, 0, 30])
    wanted = [[True, True, False], [True, True, True], [True, True, True], [True, False, True]]
    assert_array_equal(total_labels(losses, objects), wanted)
    assert_array_equal(total_labels(losses, objects, slack=0), losses == losses.min(1, keepdims=True))


@pytest.mark.parametrize("kind", ["retinanet", "reppoints", "fcos", "faster_rcnn"])
@pytest.mark.parametrize("guidance", [True, False])
def test_every_head_gives_losses_at_every_factor(
    small: Callable[..., Detector], batch: tuple[ImageBatch, list[Targets]], kind: str, guidance: bool
) -> None:
    detector = small(kind)
    pool_dynamically(detector, (0.5, 0.25))
    before = detector.head.suppression  # type: ignore[attr-defined]
    torch.manual_seed(0)
    found = factor_losses(detector, *batch, guidance=guidance)
    assert found.shape == (2, 2)
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert detector.head.suppression == before  # type: ignore[attr-defined]
    if guidance:  # one image after the other gives the same
        for i in (0, 1):
            one = ImageBatch(batch[0].pixels[i : i + 1], batch[0].sizes[i : i + 1])
            assert_allclose(factor_losses(detector, one, [batch[1][i]])[0], found[i], rtol=1e-3)


def test_unsuppressed_keeps_overlapping_boxes(
    small: Callable[..., Detector], batch: tuple[ImageBatch, list[Targets]]
) -> None:
    detector = small("retinanet")
    with torch.no_grad():
        maps = detector.pyramid(batch[0])
        few = detector.head.detect(maps, (96, 128), batch[0].sizes)
        with unsuppressed(detector.head):
            many = detector.head.detect(maps, (96, 128), batch[0].sizes)
    assert len(many[0].scores) > len(few[0].scores)
