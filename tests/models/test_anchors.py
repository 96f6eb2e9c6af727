"""Anchors: hand-derived corners, torchvision's grid, and no drift at odd ratios of image to map."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from flyspeck.models.anchors import AnchorGrid, anchor_shapes, strided_anchors
from flyspeck.types import FeatureSpec

CPU = torch.device("cpu")


def test_first_anchors_of_the_hand_checked_grid() -> None:
    # 128x128, strides 4, 8: cell centres at 2 and 4 px, sizes 8 and 16.
    grid = strided_anchors([FeatureSpec(8, 4), FeatureSpec(8, 8)], ratios=[1.0])
    anchors = grid([(32, 32), (16, 16)], (128, 128), CPU)
    assert anchors.shape == (1024 + 256, 4)
    assert_close(anchors[0], torch.tensor([-2.0, -2.0, 6.0, 6.0]))
    assert_close(anchors[1], torch.tensor([2.0, -2.0, 10.0, 6.0]))  # the next column
    assert_close(anchors[1024], torch.tensor([-4.0, -4.0, 12.0, 12.0]))


def test_ratio_is_height_over_width_at_equal_area() -> None:
    ((tall,),) = anchor_shapes([8.0], ratios=[4.0])
    assert tall == (4.0, 16.0)


def test_octaves_divide_a_doubling() -> None:
    ((a, b, c),) = anchor_shapes([8.0], ratios=[1.0], octaves=3)
    assert_close(torch.tensor([a[0], b[0], c[0]]), torch.tensor([8.0, 8 * 2 ** (1 / 3), 8 * 2 ** (2 / 3)]))


def test_equals_torchvision_where_the_conventions_coincide() -> None:
    shapes = anchor_shapes([16.0, 32.0], ratios=[0.5, 1.0, 2.0], octaves=2, rounded=True)
    mine = AnchorGrid(shapes, offset=0)([(16, 20), (8, 10)], (64, 80), CPU)
    sizes = tuple((int(s), int(s * 2**0.5)) for s in (16, 32))  # whole ones, as its RetinaNet has them
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 2)
    maps = [torch.zeros(1, 1, 16, 20), torch.zeros(1, 1, 8, 10)]
    (theirs,) = generator(ImageList(torch.zeros(1, 3, 64, 80), [(64, 80)]), maps)
    assert_close(mine, theirs)


def test_anchors_do_not_drift_on_a_map_of_an_odd_ratio() -> None:
    # A map of 21 columns over 64 px (a factor of 0.33): the last anchor's centre is half a true cell from the border.
    grid = AnchorGrid([[(4.0, 4.0)]])
    anchors = grid([(21, 21)], (64, 64), CPU)
    center = (anchors[-1, 0] + anchors[-1, 2]) / 2
    assert_close(center, torch.tensor(64 - 64 / 21 / 2))


def test_levels_must_agree() -> None:
    with pytest.raises(ValueError, match="same number"):
        AnchorGrid([[(4.0, 4.0)], [(4.0, 4.0), (8.0, 8.0)]])
    with pytest.raises(ValueError, match="2 levels"):
        AnchorGrid([[(4.0, 4.0)]] * 2)([(4, 4)], (16, 16), CPU)
