"""Windows whose sides are no multiple of 32 are seen as in training, and answered in their own frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from flyspeck.infer.padding import padded, within
from flyspeck.infer.torch_model import TorchModel, to_batch
from flyspeck.models.build import build
from flyspeck.models.detector import Detector, PixelNorm, to_detections
from flyspeck.types import Detections, ImageBatch
from same_detections import assert_same_detections


def test_the_mean_below_and_to_the_right_up_to_the_next_multiple() -> None:
    window = np.full((33, 64, 1), 7, np.uint8)
    found = padded(window, divisor=32)
    assert found.shape == (64, 64, 1)
    assert_array_equal(found[:33], window)
    assert not found[33:].any()
    assert (padded(window, divisor=32, fill=[90.4])[33:] == 90).all()
    bands = np.repeat(window, 2, axis=2).astype(np.uint16)
    assert (padded(bands, divisor=32, fill=[90, 20])[33:] == [90 * 257, 20 * 257]).all()
    whole = np.zeros((32, 96, 3), np.uint8)
    assert padded(whole, divisor=32) is whole
    assert padded(window, divisor=1) is window
    assert padded(window, divisor=1, smallest=40).shape == (40, 64, 1)


def test_boxes_are_clipped_to_the_window_and_those_of_the_padding_go() -> None:
    boxes = [[1, 1, 3, 3], [30, 38, 36, 44], [41, 2, 44, 6], [4, 40, 8, 44]]  # the window is 40 high, 41 wide
    found = Detections(np.array(boxes), np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 1, 0, 1]), (64, 64), ("a", "b"))
    own = within(found, (40, 41))
    assert_allclose(own.boxes, [[1, 1, 3, 3], [30, 38, 36, 40]])
    assert_allclose(own.scores, [0.9, 0.8], rtol=1e-6)
    assert_array_equal(own.labels, [0, 1])
    assert own.image_size == (40, 41)
    assert within(own, (40, 41)) is own


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("mean", [[0.0] * 3, [100 / 255, 60 / 255, 20 / 255], [1.0] * 3])
def test_an_odd_window_is_padded_with_the_mean_as_in_training(mean: list[float], depth: type) -> None:
    torch.manual_seed(0)
    norm = PixelNorm(mean, [0.2] * 3)
    detector = build("fcos:resnet18", width=0.25, channels=16, levels="2-5", classes=("a",), pixel_norm=norm).eval()
    assert isinstance(detector, Detector)
    window = np.random.default_rng(0).integers(0, np.iinfo(depth).max, (50, 75, 3)).astype(depth)
    model, seen = TorchModel(detector), []
    model.detector.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    (ours,) = model([window])
    pixels = to_batch([np.pad(window, ((0, 14), (0, 21), (0, 0)))])
    with torch.inference_mode():
        trained = norm(ImageBatch(pixels, ((50, 75),)))
        whole = detector.detect_from(detector.neck(detector.backbone(trained)), (64, 96), ((64, 96),))
    assert_allclose(seen[0].numpy(), trained.numpy(), atol=1e-5)
    expected = within(to_detections(whole[0], (64, 96), ("a",)), (50, 75))
    assert ours.image_size == (50, 75)
    assert_same_detections([ours], [expected], box_px=1e-2, score=1e-4, rule=detector.head.suppression)
