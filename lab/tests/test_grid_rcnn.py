"""Grid points to boxes and back, to a fraction of a pixel, down to boxes of one pixel; the head on hard batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.profile import profile
from flyspeck.types import ImageBatch, Targets
from flyspeck_lab.comparators import grid_rcnn as module
from flyspeck_lab.comparators.grid_rcnn import (
    HALF,
    NEIGHBOURS,
    POINTS,
    STARTS,
    WHOLE,
    GridBranch,
    grid_boxes,
    grid_targets,
    jittered,
)


def test_neighbours_of_the_grid():
    # Columns from the left, rows from the top: point 3 x column + row.
    assert NEIGHBOURS[0] == (1, 3)
    assert NEIGHBOURS[4] == (1, 3, 5, 7)
    assert NEIGHBOURS[5] == (2, 4, 8)
    assert sum(map(len, NEIGHBOURS)) == 24


def test_targets_by_hand():
    # A region of 28 px: its map has cells of 1 px from -14 on. The object is the region itself: its left side lies at cell
    # 14, its middle at 28, its right side at 42; less the starts 0, 14, 28 always cell 14.
    region = torch.tensor([[0.0, 0, 28, 28]])
    goal = grid_targets(region, region)
    assert goal.shape == (1, POINTS, HALF, HALF)
    assert goal.sum((2, 3)).tolist() == [[5.0] * 9]
    for y, x in ((14, 14), (13, 14), (15, 14), (14, 13), (14, 15)):
        assert (goal[0, :, y, x] == 1).all()
    # Moved by 3 px to the right and 2 down, every point moves by as many cells.
    moved = grid_targets(region, region + torch.tensor([3.0, 2, 3, 2]))
    assert (moved[0, :, 16, 17] == 1).all()
    # Wider by 20 px to the right: the left column stays, the middle moves by 10, the right by 20, out of its map.
    wide = grid_targets(region, torch.tensor([[0.0, 0, 48, 28]]))[0].view(3, 3, HALF, HALF)
    assert wide[0, 0, 14, 14] == wide[1, 0, 14, 24] == 1
    assert wide[2].sum() == 0


boxes = st.tuples(st.floats(0, 90), st.floats(0, 90), st.floats(1, 32), st.floats(1, 32))


@given(boxes, st.tuples(*[st.floats(-0.15, 0.15)] * 2), st.tuples(*[st.floats(0.85, 1.15)] * 2))
def test_boxes_come_back_to_a_cell(box, shift, scale):
    x, y, w, h = box
    truth = torch.tensor([[x, y, x + w, y + h]])
    cx, cy = x + w / 2 + shift[0] * w, y + h / 2 + shift[1] * h
    half = (w * scale[0] / 2, h * scale[1] / 2)
    region = torch.tensor([[cx - half[0], cy - half[1], cx + half[0], cy + half[1]]])
    # The middle cell of each disc a little hotter than the rest, as a trained branch has it.
    goal = grid_targets(region, truth)
    heat = 0.1 + 0.5 * goal + 0.2 * torch.nn.functional.avg_pool2d(goal, 3, 1, 1) * goal
    found = grid_boxes(heat.logit(), region)
    cell = 2 * torch.cat([region[:, 2:] - region[:, :2]] * 2, 1) / WHOLE
    assert ((found - truth).abs() <= 0.51 * cell + 1e-3).all()


def test_a_side_is_the_mean_of_its_points_weighed_by_heat():
    region = torch.tensor([[0.0, 0, 28, 28]])
    heat = torch.full((1, 9, HALF, HALF), 1e-6)
    heat[0, :, 14, 14] = 0.5
    heat[0, 1, 14, 14], heat[0, 1, 14, 20] = (
        0,
        1.0,
    )  # the middle of the left side says 6 px further right, twice as sure
    (found,) = grid_boxes(heat.logit(), region)
    # Sides lie in the middles of cells: 0.5, 28.5. Left: (0.5 x 0.5 + 1 x 6.5 + 0.5 x 0.5) / 2.
    assert_close(found, torch.tensor([3.5, 0.5, 28.5, 28.5]))
    assert STARTS == (0, 14, 28)


def test_of_cells_that_are_all_sure_the_largest_logit_is_the_point():
    # In float32 sigmoid(17) and sigmoid(20) are both 1: the first of them would be taken.
    logits = torch.full((1, 9, HALF, HALF), -5.0)
    logits[0, :, 5, 5], logits[0, :, 14, 14] = 17.0, 20.0
    (found,) = grid_boxes(logits, torch.tensor([[0.0, 0, 28, 28]]))
    assert_close(found, torch.tensor([0.5, 0.5, 28.5, 28.5]))


@given(boxes)
def test_jitter_stays_near_and_in_the_image(box):
    x, y, w, h = box
    region = torch.tensor([[x, y, min(x + w, 100), min(y + h, 100)]])
    moved = jittered(region.expand(20, 4), (100, 100))
    assert (moved >= 0).all()
    assert (moved <= 100).all()
    assert (moved[:, 2:] > moved[:, :2]).all()
    limit = torch.tensor([w, h, w, h]) * (0.15 + 0.075) + 1e-3
    assert ((moved - region).abs() <= limit).all()


def test_the_branch_gives_both_maps_and_starts_cold():
    torch.manual_seed(0)
    branch = GridBranch(8, point_channels=4, depth=2)
    with torch.no_grad():
        informed, plain = branch.both(torch.randn(3, 8, 14, 14))
        assert informed.shape == plain.shape == (3, 9, 28, 28)
        x = torch.randn(2, 8, 14, 14)
        assert_close(branch(x), branch.both(x)[0])
    assert_close(informed.sigmoid().mean(), torch.tensor(0.01), rtol=0.2, atol=0)


def small() -> Detector:
    torch.manual_seed(0)
    options = {
        "hidden": 16,
        "point_channels": 4,
        "grid_depth": 2,
        "samples": 32,
        "proposals": 30,
        "train_proposals": 30,
    }
    detector = build("grid_rcnn:mobilenet_v2", width=0.25, channels=16, classes=("a", "b"), **options)
    assert isinstance(detector, Detector)
    return detector


def truth(rows, ignore=None) -> Targets:
    box = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    flags = torch.zeros(len(box), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    return Targets(box, torch.where(flags, -1, torch.arange(len(box)) % 2), flags)


def images(count=1) -> ImageBatch:
    pixels = torch.randint(0, 256, (count, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageBatch(pixels, ((96, 128),) * count)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_boxes_of_a_few_pixels_are_drawn(side):
    detector = small()
    box = [40.5, 30.25, 40.5 + side, 30.25 + side]
    losses = detector.losses(images(), [truth([box, box])])  # equal centres
    assert losses["grid"] > 0
    torch.stack(list(losses.values())).sum().backward()
    grads = [p.grad for p in detector.head.grid.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
    # The object itself is a region; its grid points lie in their maps, jitter or not.
    assert grid_targets(truth([box]).boxes, truth([box]).boxes).sum() == 45


def test_a_batch_without_objects_has_a_gradient_of_zero_for_the_branch():
    detector = small()
    losses = detector.losses(images(2), [truth([]), truth([[10.0, 10, 60, 60]], [True])])
    assert float(losses["grid"].detach()) == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in detector.head.grid.parameters())


def test_detections_lie_in_the_image_and_nothing_found_is_an_empty_list():
    detector = small().eval()
    detector.head.suppression = type(detector.head.suppression)(score=0.0)
    (found,) = detector.detect(images())
    assert len(found) > 0
    assert found.boxes.min() >= 0
    assert found.boxes[:, 2].max() <= 128
    assert found.boxes[:, 3].max() <= 96
    detector.head.suppression = type(detector.head.suppression)(score=1.0)
    (none,) = detector.detect(images())
    assert len(none) == 0


def test_the_branch_is_counted_with_a_hundred_grids():
    detector, branch = small(), small().head.grid
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        branch(torch.zeros(100, 16, 14, 14))
    whole = profile(detector, (64, 96), convention="macs").gflops * 1e9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NUM_GRIDS", 0)
        without = profile(detector, (64, 96), convention="macs").gflops * 1e9
    assert whole - without == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)
