from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flyspeck.infer.multiscale import MultiScale
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.counts import counts_for, grown, grown_rule
from flyspeck.models.detector import Detector
from flyspeck.models.heads.rpn import ProposalRule
from flyspeck.models.postprocess import Suppression
from flyspeck.train.build import build_detector, describe_model, load_detector, set_counts_area
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig
from flyspeck.types import Detections, ImageBatch

STATISTICS = {"classes": ("a",), "mean": (0.5,) * 3, "std": (0.25,) * 3}


def detector(name: str, **options: object) -> tuple[Detector, ModelConfig]:
    torch.manual_seed(0)
    config = ModelConfig(name=name, width=0.25, channels=8, min_score=0.0, max_detections=10, **options)  # type: ignore[arg-type]
    return build_detector(config, **STATISTICS).eval(), config  # type: ignore[arg-type]


@given(st.integers(1, 5000), st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 10**7))
def test_counts_grow_with_the_area_and_never_shrink(count: int, height: int, width: int, area: int) -> None:
    found = grown(count, (height, width), area)
    assert found >= count
    assert found >= count * height * width / area > found - 1 or found == count


def test_rules_by_hand() -> None:
    rule = Suppression(score=0.1, iou=0.4, pre_nms=1000, max_detections=500)
    assert grown_rule(rule, (300, 300), 100 * 100) == replace(rule, pre_nms=9000, max_detections=4500)
    assert grown_rule(rule, (50, 50), 100 * 100) == rule, "small inputs keep their counts"
    rpn = ProposalRule(pre_nms=200, keep=100, iou=0.7, min_size=1e-3)
    assert grown_rule(rpn, (10, 25), 100) == replace(rpn, pre_nms=500, keep=250)


@pytest.mark.parametrize("name", ["faster_rcnn", "cascade_rcnn", "retinanet", "fcos", "reppoints"])
def test_a_larger_image_keeps_more_and_the_head_its_rules(name: str) -> None:
    model, config = detector(f"{name}:mobilenet_v2")
    rules = [getattr(owner, attribute) for owner, attribute in model.head.counted_rules()]
    images = ImageBatch(torch.randint(0, 255, (1, 3, 128, 192), dtype=torch.uint8), ((128, 192),))
    assert len(model.detect(images)[0]) == 10, "fixed, as it is built"
    set_counts_area(model, config, (64, 64))
    assert model.detection_limit((128, 192)) == 60
    assert len(model.detect(images)[0]) == 60
    small = ImageBatch(images.pixels[:, :, :64, :64], ((64, 64),))
    assert len(model.detect(small)[0]) == 10
    assert [getattr(owner, attribute) for owner, attribute in model.head.counted_rules()] == rules


def test_two_stages_grow_their_proposals() -> None:
    model, _ = detector("faster_rcnn:mobilenet_v2", head={"proposals": 20})
    with counts_for(model.head, (100, 100), 1000):
        assert model.head.rpn.test_rule.keep == 200  # type: ignore[union-attr]
    assert model.head.rpn.test_rule.keep == 20  # type: ignore[union-attr]
    with pytest.raises(RuntimeError), counts_for(model.head, (100, 100), 1000):
        raise RuntimeError
    assert model.head.rpn.test_rule.keep == 20, "after an error too"  # type: ignore[union-attr]


def test_threads_that_share_a_head_get_the_counts_of_their_own_size() -> None:
    """Two at a time, of the same size and of others: nobody sees rules grown twice, and the head's own come back."""
    model, _ = detector("faster_rcnn:mobilenet_v2", head={"proposals": 20})
    rpn: Any = model.head.rpn  # type: ignore[union-attr]
    both, seen = Barrier(2), []

    def look(side: int) -> None:
        for _ in range(50):
            with counts_for(model.head, (side, side), 1000):
                seen.append((side, rpn.test_rule.keep))
                sleep(0)
                seen.append((side, rpn.test_rule.keep))

    def together(side: int) -> None:
        with counts_for(model.head, (side, side), 1000):
            both.wait(20)  # passes only where both are within at the same time
            seen.append((side, rpn.test_rule.keep))
            both.wait(20)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(together, (100, 100)))
        list(pool.map(look, (100, 200, 100, 200)))
    assert {side: kept for side, kept in seen} == {100: 200, 200: 800}
    assert set(seen) == {(100, 200), (200, 800)}
    assert rpn.test_rule.keep == 20


def test_counts_within_counts_are_an_error_where_they_would_wait_for_themselves() -> None:
    model, _ = detector("faster_rcnn:mobilenet_v2", head={"proposals": 20})
    rpn: Any = model.head.rpn  # type: ignore[union-attr]
    with counts_for(model.head, (100, 100), 1000):
        with counts_for(model.head, (100, 100), 1000):
            assert rpn.test_rule.keep == 200, "of the same size: grown once"
        with pytest.raises(RuntimeError, match="within itself"), counts_for(model.head, (200, 200), 1000):
            pass
        assert rpn.test_rule.keep == 200
    assert rpn.test_rule.keep == 20


def test_windows_larger_than_the_training_are_seen_alike_by_one_thread_and_by_two() -> None:
    """Passes that ran at the same time multiplied each other's counts: more proposals, other boxes, a hundred times the work."""
    model, config = detector("faster_rcnn:mobilenet_v2", head={"proposals": 20})
    set_counts_area(model, config, (32, 32))
    image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    before = torch.get_num_threads()
    found = []
    try:
        for threads, passes in ((1, 1), (2, 2)):
            torch.set_num_threads(threads)
            predictor = Predictor(
                TorchModel(model, device="cpu"), tile=(64, 64), overlap=16, batch_size=1, passes=passes
            )
            found += predictor.predict(image)
    finally:
        torch.set_num_threads(before)
    alone, beside = found
    assert len(alone) == len(beside)
    np.testing.assert_allclose(alone.boxes, beside.boxes, atol=1e-3)


@pytest.mark.parametrize(("counts", "area"), [("area", 64 * 96), ("fixed", None)])
def test_weights_carry_what_their_counts_are_for(tmp_path: Path, counts: str, area: int | None) -> None:
    model, config = detector("fcos:mobilenet_v2", counts=counts)
    description = {**describe_model(config, **STATISTICS), "training_size": [64, 96]}  # type: ignore[arg-type]
    save_weights(tmp_path / "best.safetensors", model.state_dict(), description)
    assert load_detector(tmp_path).counts_area == area


def test_a_limit_that_is_hit_is_told() -> None:
    model, config = detector("fcos:mobilenet_v2")
    set_counts_area(model, config, (64, 64))
    pixels = np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)
    (full,) = Predictor(TorchModel(model), tile=64, overlap=0, score_threshold=0.0).stream([pixels])
    assert full.num_full == full.num_tiles == 2
    (none,) = Predictor(TorchModel(model), tile=64, overlap=0, score_threshold=0.99).stream([pixels])
    assert none.num_full == 0, "what was cut off is below the threshold anyway"
    views = MultiScale(TorchModel(model), [1.0, 0.5], flip=True)
    (full,) = Predictor(views, tile=64, overlap=0, score_threshold=0.0).stream([pixels])
    assert full.num_full == full.num_tiles == 2
    assert set(full.detections.extra) == {"cut"}
    (none,) = Predictor(views, tile=64, overlap=0, score_threshold=0.99).stream([pixels])
    assert none.num_full == 0


def test_models_without_a_limit_are_never_full() -> None:
    def one(windows: list[np.ndarray]) -> list[Detections]:
        return [Detections([[0, 0, 1, 1]], [1.0], [0], w.shape[:2], ("a",)) for w in windows]

    (result,) = Predictor(one).stream([np.zeros((8, 8, 3), np.uint8)])
    assert result.num_full == 0
