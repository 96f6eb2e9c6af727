"""Square crops: their sides and sizes, what they hold, and where an image is empty."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from flyspeck.data.square_crop import TINAFACE_SHARES, RandomSquareCrop
from flyspeck.types import Sample, Targets


def sample(boxes: list[list[float]], size: tuple[int, int] = (60, 100)) -> Sample:
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    pixels = torch.zeros(3, *size, dtype=torch.uint8)
    for x1, y1, x2, y2 in rows.long().tolist():
        pixels[:, y1:y2, x1:x2] = 255
    ignore = torch.zeros(len(rows), dtype=torch.bool)
    return Sample(pixels, Targets(rows, torch.zeros(len(rows), dtype=torch.int64), ignore), 0)


@given(st.integers(0, 10_000))
def test_every_square_holds_an_object_at_one_of_the_five_scales(seed: int) -> None:
    rng = np.random.default_rng(seed)
    result = RandomSquareCrop(64)(sample([[10, 10, 16, 16], [80, 40, 88, 50]]), rng)
    assert tuple(result.pixels.shape) == (3, 64, 64)
    assert result.pixels.max() == 255
    # The side was a share of the shorter side, 60 px: a whole box is enlarged by 64 over it.
    factors = [64 / round(60 * share) for share in TINAFACE_SHARES]
    for x1, y1, x2, y2 in result.targets.objects.tolist():
        inside = x1 > 0 and y1 > 0 and x2 < 64 and y2 < 64
        if inside:
            assert any(abs((x2 - x1) - side * f) < 1e-3 for side in (6, 8) for f in factors)


def test_all_shares_occur_and_an_empty_image_gives_a_square_too() -> None:
    rng = np.random.default_rng(0)
    widths = set()
    for _ in range(60):
        result = RandomSquareCrop(64)(sample([[45, 25, 49, 29]]), rng)
        widths |= {round(float(b[2] - b[0]), 2) for b in result.targets.objects if b[0] > 0 and b[2] < 64}
    assert widths == {round(4 * 64 / round(60 * share), 2) for share in TINAFACE_SHARES}
    empty = RandomSquareCrop(32)(sample([]), rng)
    assert tuple(empty.pixels.shape) == (3, 32, 32)
    assert len(empty.targets.boxes) == 0


def test_images_smaller_than_the_square_are_enlarged() -> None:
    result = RandomSquareCrop(64, shares=(0.3,))(sample([[1, 1, 3, 3]], size=(4, 5)), np.random.default_rng(0))
    assert tuple(result.pixels.shape) == (3, 64, 64)
