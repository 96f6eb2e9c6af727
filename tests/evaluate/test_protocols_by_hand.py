"""Protocols without golden values: cases whose numbers are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tables_by_hand import found, random_tables, truth

from flyspeck.errors import UserError
from flyspeck.evaluate import PROTOCOLS, customised, evaluate, protocol_named
from flyspeck.evaluate.affinity import centre_affinity, nwd
from flyspeck.evaluate.ap import precision_at_recall

BOX = [100.0, 100.0, 10.0, 10.0]


def test_one_hit_is_a_perfect_score() -> None:
    annotations = truth([(0, 0, BOX)])
    result = evaluate(annotations, found([(0, 0, BOX, 0.9)]), "flyspeck")
    assert result.value(metric="AP", iou=0.5, area="tiny2") == pytest.approx(1.0)
    assert result.value(metric="AP", iou="0.50:0.95", area="all") == pytest.approx(1.0)
    # No object of 12 to 20 px: nothing to find, which is -1 and a dash, never 0.
    assert result.value(metric="AP", iou=0.5, area="tiny3") == -1.0
    assert "—" in result.table()


@pytest.mark.parametrize("side", [2.0, 8.0, 12.0, 20.0, 32.0])
def test_bins_are_closed(side: float) -> None:
    """An object on a bound is in the bins on both sides of it."""
    box = [50.0, 50.0, side, side]
    result = evaluate(truth([(0, 0, box)]), found([(0, 0, box, 0.5)]), "flyspeck")
    ranges = {
        "tiny": (2, 20),
        "tiny1": (2, 8),
        "tiny2": (8, 12),
        "tiny3": (12, 20),
        "small": (20, 32),
        "above32": (32, 1e5),
    }
    for name, (low, high) in ranges.items():
        expected = 1.0 if low <= side <= high else -1.0
        assert result.value(metric="AP", iou=0.5, area=name) == pytest.approx(expected), name


def test_a_false_alarm_before_the_hit_halves_the_precision() -> None:
    annotations = truth([(0, 0, BOX)])
    detections = found([(0, 0, [300, 300, 10, 10], 0.9), (0, 0, BOX, 0.8)])
    assert_allclose(evaluate(annotations, detections, "flyspeck").value(metric="AP", iou=0.5, area="all"), 0.5)


def test_region_of_no_class_hides_detections_of_every_class() -> None:
    """Both classes' detections in the region vanish, measured by IoD: they are far smaller than the region."""
    annotations = truth([(0, 0, BOX), (0, 1, BOX), (0, -1, [300, 300, 100, 100])], classes=2)
    detections = found(
        [(0, 0, [310, 310, 10, 10], 0.9), (0, 1, [330, 330, 8, 8], 0.9), (0, 0, BOX, 0.5), (0, 1, BOX, 0.5)]
    )
    for name in ("flyspeck", "aitod", "tinycoco", "visdrone"):
        value = evaluate(annotations, detections, name).value(metric="AP", area="all", iou="0.50:0.95")
        assert_allclose(value, 1.0, err_msg=name)
    # Plain COCO knows no such region: the false alarm comes first in both classes.
    assert_allclose(evaluate(annotations, detections, "coco_bbox").value(metric="AP"), 0.5)


def test_half_under_a_region_is_enough_for_flyspeck() -> None:
    """IoD exactly 1/2 counts as under the region at IoU 0.5; a hair less does not."""
    annotations = truth([(0, 0, BOX), (0, -1, [300, 300, 100, 100])])
    for shift, expected in ((5.0, 1.0), (5.1, 0.5)):
        detections = found([(0, 0, [300 - shift, 310, 10, 10], 0.9), (0, 0, BOX, 0.5)])
        value = evaluate(annotations, detections, "flyspeck").value(metric="AP", iou=0.5, area="all")
        assert_allclose(value, expected)


def test_detections_of_a_crowd_only_image_do_not_count() -> None:
    annotations = truth([(0, 0, BOX), (1, 0, [0, 0, 200, 200])], images=2, crowd=[1])
    detections = found([(0, 0, BOX, 0.5), *[(1, 0, [10.0 * k, 50.0, 9.0, 9.0], 0.9) for k in range(15)]])
    for name in ("flyspeck", "tinybenchmark_ap"):
        assert evaluate(annotations, detections, name).value(metric="AP", iou=0.5, area="all") == pytest.approx(1.0)
    assert evaluate(annotations, detections, "coco_bbox").value(metric="AP") == pytest.approx(1.0)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_no_detections_and_no_truth(name: str) -> None:
    """No detections: AP 0 and miss rate 1; no ground truth: -1 (or an undefined mean); never a crash."""
    annotations, nothing = truth([(0, 0, BOX)]), found([])
    for row in evaluate(annotations, nothing, name).rows:
        value = row["value"]
        assert value is None or math.isnan(value) or value in (0.0, 1.0, -1.0), row
        if row["metric"] in ("AP", "AP50"):
            assert value in (0.0, -1.0)
    empty = truth([], classes=1)
    for row in evaluate(empty, found([(0, 0, BOX, 0.5)]), name).rows:
        assert row["value"] is None or not row["value"] > 0, row


def test_aitod_bins_and_max_dets() -> None:
    """Sizes 7, 12, 30, 40 px fall in verytiny, tiny, small, medium; 1500 detections are kept, 100 of them give AR100."""
    sides = {"verytiny": 7.0, "tiny": 12.0, "small": 30.0, "medium": 40.0}
    annotations = truth([(0, 0, [60.0 * k, 10.0, side, side]) for k, side in enumerate(sides.values())])
    noise = [(0, 0, [2.0 * k, 300.0, 7.0, 7.0], 0.9) for k in range(100)]
    hits = [(0, 0, [60.0 * k, 10.0, side, side], 0.5) for k, side in enumerate(sides.values())]
    result = evaluate(annotations, found([*noise, *hits]), "aitod")
    assert result.value(metric="AR1500") == 1.0
    assert result.value(metric="AR100") == 0.0
    # 100 false alarms of 7 px come before everything: precision 1/101 in verytiny; elsewhere their size keeps them out.
    assert_allclose(result.value(metric="AP_verytiny"), 1 / 101)
    for name in ("tiny", "small", "medium"):
        assert_allclose(result.value(metric=f"AP_{name}"), 1.0)


def test_visdrone_max_dets_are_per_image_over_all_classes() -> None:
    """One image, two classes: the best single detection is of class 0, so AR1 of class 1 is 0 and the mean 1/2."""
    other = [200.0, 100.0, 10.0, 10.0]
    annotations = truth([(0, 0, BOX), (0, 1, other)], classes=2)
    result = evaluate(annotations, found([(0, 0, BOX, 0.9), (0, 1, other, 0.8)]), "visdrone")
    assert result.value(metric="AR1") == 0.5
    assert result.value(metric="AR10") == 1.0


def test_visdrone_classes_weigh_as_often_as_images_have_them() -> None:
    """Class 0 is in two images and always found, class 1 in one and never: (2 * 1 + 1 * 0) / 3."""
    annotations = truth([(0, 0, BOX), (0, 1, [300, 300, 9, 9]), (1, 0, BOX)], images=2, classes=2)
    result = evaluate(annotations, found([(0, 0, BOX, 0.9), (1, 0, BOX, 0.8)]), "visdrone")
    assert_allclose(result.value(metric="AP50"), 2 / 3)


def test_visdrone_drops_what_lies_half_under_regions() -> None:
    """Ground truth and detections go, at a share of 1/2 of the union of two overlapping regions."""
    regions = [(0, -1, [0.0, 0.0, 50.0, 50.0]), (0, -1, [25.0, 0.0, 50.0, 50.0])]
    hidden = [70.0, 0.0, 10.0, 10.0]  # 5 of its 10 columns are under the second region
    free = [71.0, 20.0, 10.0, 10.0]  # 4 of 10
    annotations = truth([(0, 0, hidden), (0, 0, free), *regions])
    result = evaluate(annotations, found([(0, 0, free, 0.9), (0, 0, [30.0, 5.0, 10.0, 10.0], 0.95)]), "visdrone")
    assert result.value(metric="AP50") == pytest.approx(1.0)


def test_tinycoco_means_over_ious_and_bins() -> None:
    """A 10x10 box found 1 px off along x has IoU 9/11 = .818: right at .50 to .80, 7 of 10 thresholds."""
    annotations = truth([(0, 0, BOX)])
    result = evaluate(annotations, found([(0, 0, [101.0, 100.0, 10.0, 10.0], 0.9)]), "tinycoco")
    for area in ("all", "tiny", "tiny2"):
        assert_allclose(result.value(metric="AP", iou="0.50:0.95", area=area), 0.7)
    assert result.value(metric="AP", iou="0.50:0.95", area="reasonable") == -1.0


def test_recall_points_are_those_of_linspace() -> None:
    """57 of 100 found: the point 57 * 0.01 = .5700000000000001 is not reached, so 57 of the 101 points count (0 to 56)."""
    hits = np.ones(57, bool)
    assert_allclose(precision_at_recall(hits, 100).sum(), 57)
    assert 57 / 100 < 57 * 0.01


def test_flyspeck_miss_rate_neither_wraps_nor_vanishes() -> None:
    """One image, the first detection a false alarm: below 1 per image the recall is 0 and the miss rate 1, at 1 it is
    the floor 1e-10: exp((8 ln 1 + ln 1e-10) / 9)."""
    annotations = truth([(0, 0, BOX)])
    detections = found([(0, 0, [300, 300, 10, 10], 0.9), (0, 0, BOX, 0.8)])
    value = evaluate(annotations, detections, "flyspeck_mr").value(iou=0.5, setup="tiny2")
    assert_allclose(value, math.exp(math.log(1e-10) / 9))
    # The reference wraps to the final recall of 1 at the eight points below, and has no floor.
    assert evaluate(annotations, detections, "tinybenchmark_mr_no_iod").value(iou=0.5, setup="tiny2") == 0.0


def test_id_zero_counts_in_our_own_protocol() -> None:
    from dataclasses import replace

    annotations = truth([(0, 0, BOX)])
    annotations = replace(annotations, box_ids=np.array([0]))
    detections = found([(0, 0, BOX, 0.9)])
    assert evaluate(annotations, detections, "flyspeck_tinyperson").value(
        metric="AP", iou=0.5, area="all"
    ) == pytest.approx(1.0)
    assert evaluate(annotations, detections, "tinybenchmark_ap").value(metric="AP", iou=0.5, area="all") == 0.0


def test_affinities_by_hand() -> None:
    """Centres 5 px apart (3, 4) at size 10: centre affinity 1/2. NWD: W^2 = 25 + (2^2 + 0) / 4 = 26."""
    truth_box = np.array([[0.0, 0.0, 10.0, 10.0]])
    box = np.array([[2.0, 4.0, 14.0, 14.0]])
    assert_allclose(centre_affinity(box, truth_box), 0.5)
    assert_allclose(nwd(box, truth_box), math.exp(-math.sqrt(26) / 12.7))


def test_centre_matching_forgives_what_iou_punishes() -> None:
    """A 6x6 box 2 px off both ways: IoU 16/56 = .286; centre distance 2.83 < 3."""
    annotations = truth([(0, 0, [100.0, 100.0, 6.0, 6.0])])
    detections = found([(0, 0, [102.0, 102.0, 6.0, 6.0], 0.9)])
    assert evaluate(annotations, detections, "flyspeck").value(metric="AP", iou=0.5, area="tiny1") == 0.0
    assert evaluate(annotations, detections, "flyspeck_centre").value(
        metric="AP", iou=0.5, area="tiny1"
    ) == pytest.approx(1.0)
    assert evaluate(annotations, detections, "flyspeck_nwd").value(metric="AP", iou=0.5, area="tiny1") == pytest.approx(
        1.0
    )


def test_a_protocol_of_ones_own() -> None:
    protocol = customised(protocol_named("flyspeck"), size_edges=(2, 8, 32), max_dets=50, ious=(0.3,))
    annotations, detections = random_tables(3)
    result = evaluate(annotations, detections, protocol)
    assert {row["area"] for row in result.rows} == {"all", "2-8", "8-32", "2-32", "32+"}
    assert {row["max_dets"] for row in result.rows} == {50}
    assert result.rows[0]["protocol"] == "flyspeck[iou=0.3; maxDets=50; bins=2,8,32]"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size_edges": (8.0, 2.0)}, "rising sizes"),
        ({"max_dets": 0}, "maxDets of 0"),
        ({"ious": (1.5,)}, "not in"),
    ],
)
def test_impossible_protocols(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        customised(protocol_named("flyspeck"), **change)


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UserError, match="tinybenchmark_ap"):
        protocol_named("tinybenchmark_app")
