"""Which levels belong together, and what is said where none do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.train.distill.levels import build_adapters, match_levels, resized
from flyspeck.types import FeatureSpec


def pyramid(channels: int, first: int = 2, last: int = 6) -> list[FeatureSpec]:
    return [FeatureSpec(channels, 2.0**level) for level in range(first, last + 1)]


def test_common_levels_are_p2_to_p5() -> None:
    pairs = match_levels(pyramid(16), pyramid(64))
    assert [(p.name, p.student, p.teacher) for p in pairs] == [("P2", 0, 0), ("P3", 1, 1), ("P4", 2, 2), ("P5", 3, 3)]
    assert pairs[0].channels == (16, 64)
    assert [p.name for p in match_levels(pyramid(16), pyramid(64, 3, 7))] == ["P3", "P4", "P5"]
    assert [p.name for p in match_levels(pyramid(16), pyramid(64), single=True)] == ["P2"]
    assert [p.name for p in match_levels(pyramid(16), pyramid(64), wanted=[3, 6])] == ["P3", "P6"]


def test_a_teacher_of_enlarged_images_teaches_from_the_level_of_the_same_stride() -> None:
    # Twice enlarged, the teacher's stride 8 is 4 px of the student's image.
    pairs = match_levels(pyramid(16), pyramid(64), teacher_scale=2.0)
    assert [(p.name, p.teacher) for p in pairs] == [("P2", 1), ("P3", 2), ("P4", 3), ("P5", 4)]
    pairs = match_levels(pyramid(16), pyramid(64), teacher_scale=2.0, by="level")
    assert [(p.name, p.teacher) for p in pairs] == [("P2", 0), ("P3", 1), ("P4", 2), ("P5", 3)]


@pytest.mark.parametrize(("wanted", "scale"), [([2], 1.0), (None, 16.0), (None, 3.0)])
def test_no_common_level_names_both_pyramids(wanted: list[int] | None, scale: float) -> None:
    with pytest.raises(UserError, match=r"no common level.*P2, P3, P4, P5, P6.*teacher.*distill.match"):
        match_levels(pyramid(16), pyramid(64, 3, 5), wanted=wanted, teacher_scale=scale)


def test_adapters_only_where_channels_differ() -> None:
    adapters = build_adapters(match_levels(pyramid(16), pyramid(64)))
    assert isinstance(adapters["P2"], nn.Conv2d)
    assert adapters["P2"].weight.shape == (64, 16, 1, 1)
    assert isinstance(build_adapters(match_levels(pyramid(16), pyramid(16)))["P2"], nn.Identity)


def test_maps_are_resized_only_where_they_differ() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert resized(maps, (4, 4)) is maps
    # Averages of 2x2 cells: (0 + 1 + 4 + 5) / 4 = 2.5, …
    assert_close(resized(maps, (2, 2))[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    assert resized(maps, (7, 9)).shape == (1, 1, 7, 9)
