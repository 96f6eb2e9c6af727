"""Several views of a window: boxes come back to its own frame, views of one object become one box, neighbours stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from spots import spots_model, spotted

from flyspeck.errors import UserError
from flyspeck.infer.job import predict
from flyspeck.infer.merge import MergeRule
from flyspeck.infer.multiscale import MultiScale
from flyspeck.types import Detections


class SeesBright:
    """Reports the box of the bright pixels, or of each half of the image that has some; remembers what it saw."""

    def __init__(self, only: tuple[int, int] | None = None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.batches: list[int] = []
        self.only = only

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        self.batches.append(len(windows))
        return [self._see(window) for window in windows]

    def _see(self, window: np.ndarray) -> Detections:
        size = window.shape[:2]
        self.shapes.append(size)
        y, x = np.nonzero(window[..., 0] > 127)
        if len(x) == 0 or self.only not in (None, size):
            return Detections.empty(size, ("a",))
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        return Detections(np.array([box]), np.array([0.5 + size[0] / 1000]), np.zeros(1), size, ("a",))


def image(x1: int, y1: int, x2: int, y2: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    window = np.zeros((*size, 1), np.uint8)
    window[y1:y2, x1:x2] = 255
    return window


@pytest.mark.parametrize("flip", [False, True])
def test_every_view_comes_back_to_the_windows_frame(flip: bool) -> None:
    for scale in (0.5, 1.0, 2.0, 1.5):
        model = SeesBright()
        (found,) = MultiScale(model, [scale], flip=flip)([image(8, 4, 20, 16)])
        assert found.image_size == (40, 60)
        assert_allclose(found.boxes, [[8, 4, 20, 16]], atol=1.01 / scale)
        assert len(found) == 1
        assert set(model.shapes) == {(round(40 * scale), round(60 * scale))}


def test_mirror_images_are_mirrored_back_exactly() -> None:
    model = SeesBright()
    (found,) = MultiScale(model, [1.0], flip=True)([image(3, 4, 10, 9)])
    assert_allclose(found.boxes, [[3, 4, 10, 9]])
    assert len(model.shapes) == 2


def test_views_of_one_object_become_one_box_with_the_best_score() -> None:
    (found,) = MultiScale(SeesBright(), [1.0, 2.0])([image(8, 4, 20, 16)])
    assert len(found) == 1
    assert_allclose(found.scores, [0.58], rtol=1e-6)  # seen best at 80 px of height
    assert found.classes == ("a",)


def test_what_only_one_scale_sees_stays() -> None:
    (found,) = MultiScale(SeesBright(only=(80, 120)), [1.0, 2.0])([image(8, 4, 20, 16)])
    assert len(found) == 1
    (nothing,) = MultiScale(SeesBright(), [1.0, 2.0])([np.zeros((40, 60, 1), np.uint8)])
    assert len(nothing) == 0


def test_neighbours_of_one_view_are_never_merged_with_each_other() -> None:
    class TwoOverlapping:
        def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
            boxes = np.array([[0.0, 0, 10, 10], [2, 0, 12, 10]])  # IoU 8/12
            return [Detections(boxes, np.array([0.9, 0.8]), np.zeros(2), w.shape[:2]) for w in windows]

    (found,) = MultiScale(TwoOverlapping(), [1.0], rule=MergeRule(threshold=0.3))([image(0, 0, 1, 1)])
    assert len(found) == 2


def test_larger_views_go_in_smaller_batches() -> None:
    model = SeesBright()
    MultiScale(model, [1.0, 2.0])([image(8, 4, 20, 16)] * 8)
    assert model.batches == [8, 2, 2, 2, 2]


@pytest.mark.parametrize("scales", [[], [0.0], [1.0, -1.0], [1.0, 1.0], [float("inf")]])
def test_nonsense_is_refused(scales: list[float]) -> None:
    with pytest.raises(UserError, match="scale"):
        MultiScale(SeesBright(), scales)


def test_tiles_whose_views_were_merged_otherwise_are_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, model = spots_model(monkeypatch, tmp_path)
    Image.fromarray(spotted((64, 64), [(20, 30)])).save(tmp_path / "a.png")
    views = {"model": model, "out": tmp_path / "found", "scales": (1.0, 0.5), "draw": 0}
    predict(tmp_path / "a.png", **views, merge=MergeRule(threshold=0.4))
    for other in (MergeRule(threshold=0.9), MergeRule(threshold=0.4, metric="ios")):
        with pytest.raises(UserError, match="was made with merge of views"):
            predict(tmp_path / "a.png", **views, merge=other, resume=True)
    before = seen.windows
    predict(tmp_path / "a.png", **views, merge=MergeRule(threshold=0.4), resume=True)
    assert seen.windows == before
