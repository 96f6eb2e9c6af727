from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from torch.testing import assert_close

from flyspeck.data.images import match_channels
from flyspeck.errors import UserError
from flyspeck.infer.torch_model import to_batch


def test_batches_are_channels_last_and_keep_every_value() -> None:
    windows = list(np.random.default_rng(0).integers(0, 255, (2, 5, 7, 3), np.uint8))
    batch = to_batch(windows)
    assert batch.shape == (2, 3, 5, 7)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert_array_equal(batch[1].permute(1, 2, 0).numpy(), windows[1])


def test_sixteen_bits_become_shares() -> None:
    batch = to_batch([np.array([[[0], [65535], [13107]]], np.uint16)])
    assert_close(batch.flatten(), torch.tensor([0.0, 1.0, 0.2]))


def test_channels_are_matched_as_pillow_does() -> None:
    colour = np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    assert_array_equal(match_channels(colour, 1)[:, :, 0], luma)
    assert_array_equal(match_channels(luma[:, :, None], 3), np.stack([luma] * 3, axis=2))
    assert match_channels(colour, 3) is colour
    for bands in (2, 4, 8):
        with pytest.raises(UserError, match=f"{bands} bands where 3 are wanted"):
            match_channels(np.zeros((9, 9, bands), np.uint8), 3)
    white = np.full((2, 2, 3), 65535, np.uint16)
    assert_array_equal(match_channels(white, 1), 65535)
    with pytest.raises(UserError, match="5 bands where 3 are wanted"):
        match_channels(np.zeros((2, 2, 5), np.uint8), 3)
