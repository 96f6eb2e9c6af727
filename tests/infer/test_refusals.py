"""One bad image costs no other, whatever the model refuses it for."""

from __future__ import annotations

import numpy as np
import pytest

from flyspeck.errors import UserError
from flyspeck.infer.predictor import Predictor
from flyspeck.types import Detections


class Picky:
    """Finds one box in each window; refuses a batch that holds a window with a pixel of 13, and answers NaN to one of 14."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        self.batches.append(len(windows))
        if any((window == 13).any() for window in windows):
            raise UserError("a 16-bit image for a model of 8-bit ones", where="model.onnx", fix="export with --bits 16")
        return [self._one(window) for window in windows]

    @staticmethod
    def _one(window: np.ndarray) -> Detections:
        first = np.nan if (window == 14).any() else 1.0
        boxes = np.array([[first, 1, 4, 4]], np.float32)
        return Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64), window.shape[:2], ("a",))


def image(value: int = 0, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    pixels = np.zeros((*size, 1), np.uint8)
    pixels[0, 0] = value
    return pixels


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize(("bad", "reason"), [(13, "16-bit image.*--bits 16"), (14, "not finite")])
def test_one_bad_image_costs_no_other(batch_size: int, bad: int, reason: str) -> None:
    images = [image(), image(bad), image(), image(bad), image()]
    results = list(Predictor(Picky(), batch_size=batch_size).stream(images))
    assert [len(result.detections) for result in results] == [1, 0, 1, 0, 1]
    assert [result.problem is None for result in results] == [True, False, True, False, True]
    with pytest.raises(UserError, match=rf"array 2: .*{reason}"):
        Predictor(Picky(), batch_size=batch_size).predict(images)


def test_a_tile_that_is_refused_is_a_hole_of_its_image() -> None:
    (result,) = Predictor(Picky(), tile=16, overlap=0, batch_size=4).stream([image(13, (16, 48))])
    assert result.problem is None
    assert [hole for hole, _ in result.holes] == [(0, 0, 16, 16)]
    assert len(result.detections) == 2


def test_sound_batches_are_run_once() -> None:
    model = Picky()
    list(Predictor(model, batch_size=4).stream([image() for _ in range(8)]))
    assert model.batches == [4, 4]


def test_an_error_that_is_no_users_still_ends_the_job() -> None:
    def broken(windows: list[np.ndarray]) -> list[Detections]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(Predictor(broken).stream([image()]))
