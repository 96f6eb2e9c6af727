"""Swin's windows in a graph: what torchvision does at each size, without an `if` that tracing would decide once and for all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flyspeck.models.backbones.swin import WindowAttention, window_attention


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 9), (7, 7), (7, 8), (8, 7), (14, 7), (15, 30), (28, 1)])
def test_windows_are_torchvisions_at_every_size(shift, size):
    # Sides of up to 7 cells are one window and are not shifted; 8 are padded to two, which are.
    torch.manual_seed(0)
    layer = WindowAttention(8, [7, 7], [shift, shift], 2).eval()
    nn.init.normal_(layer.relative_position_bias_table)
    nn.init.normal_(layer.qkv.weight)
    x = torch.randn(2, *size, 8)
    with torch.no_grad():
        assert_close(window_attention(layer, x), layer(x))


def test_a_graph_that_was_traced_at_one_size_shifts_at_each_as_it_should():
    torch.manual_seed(0)
    layer = WindowAttention(8, [7, 7], [3, 3], 2).eval()
    nn.init.normal_(layer.qkv.weight)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    graph = torch.export.export(layer, (torch.randn(2, 16, 24, 8),), dynamic_shapes=(free,), strict=False)
    run = graph.module(check_guards=False)
    with torch.no_grad():
        for size in ((16, 24), (4, 6), (4, 9), (7, 22)):
            x = torch.randn(3, *size, 8)
            assert_close(run(x), layer(x))
