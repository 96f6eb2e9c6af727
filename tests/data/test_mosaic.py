"""Mosaics: four images in one, with every box on its pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from painted_samples import found, painted
from torch.testing import assert_close

from flyspeck.data.policy import CutPolicy
from flyspeck.data.transforms import (
    Mosaic,
    no_other,
)
from flyspeck.errors import UserError

KEEP_ALL = CutPolicy(keep=0.0, ignore=0.0)


@given(st.integers(0, 2**32), st.integers(6, 60), st.integers(6, 60))
def test_mosaic_boxes_lie_on_their_pixels(seed, height, width):
    tall, wide = min(height, 8), min(width, 5)
    sample = painted(height, width, [(width - wide, height - tall, width, height)])
    result = Mosaic((40, 48), 1.0, policy=KEEP_ALL)(sample, np.random.default_rng(seed), lambda rng, index=None: sample)
    assert result.pixels.shape == (1, 40, 48)
    assert len(result.targets.boxes) <= 4
    shown = torch.zeros(40, 48, dtype=torch.bool)
    for x1, y1, x2, y2 in result.targets.boxes.int().tolist():
        assert (result.pixels[0, y1:y2, x1:x2] == 255).all()
        shown[y1:y2, x1:x2] = True
    # Nothing white is left over outside the boxes, unless the object is as big as its piece, whose mean is white then.
    if height * width > 4 * tall * wide:
        assert (result.pixels[0] == 255).logical_and(~shown).sum() == 0


def test_the_point_where_four_images_meet_lies_in_the_middle():
    """Between 0.3 and 0.7 of each side, everywhere alike; and as many images become mosaics as asked."""
    white = painted(100, 200, [(0, 0, 200, 100)])
    black = painted(100, 200, [])
    step, rng = Mosaic((100, 200), 0.4, policy=KEEP_ALL), np.random.default_rng(0)
    points = []
    for _ in range(1500):
        result = step(white, rng, lambda rng, index=None: black)
        if result is not white:
            points.append(found(result.pixels)[2:])
    assert len(points) / 1500 == pytest.approx(0.4, abs=0.064)  # five standard errors
    shares = torch.stack(points) / torch.tensor([200.0, 100.0])
    assert shares.min() >= 0.295
    assert shares.max() <= 0.705
    assert float(shares.min()) < 0.31
    assert float(shares.max()) > 0.69
    assert_close(shares.mean(0), torch.tensor([0.5, 0.5]), atol=0.024, rtol=0)


def test_images_of_different_kinds_are_not_mixed():
    one, other = painted(8, 8, [], channels=1), painted(8, 8, [], channels=3)
    with pytest.raises(UserError, match="cannot be mixed"):
        Mosaic((8, 8), 1.0)(one, np.random.default_rng(0), lambda rng, index=None: other)


def test_mixing_without_a_data_set_says_so():
    with pytest.raises(RuntimeError, match="needs a data set"):
        Mosaic((8, 8), 1.0)(painted(8, 8, []), np.random.default_rng(0))
    with pytest.raises(RuntimeError):
        no_other(np.random.default_rng(0))
