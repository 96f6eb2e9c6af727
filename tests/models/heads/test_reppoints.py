"""RepPoints: moments and assigners by hand and against a slow twin, where the points look, counts, boxes of a few pixels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.ops import deform_conv2d

from flyspeck.models.assign import BACKGROUND, IGNORED
from flyspeck.models.backbones.freezing import freeze_stages
from flyspeck.models.build import build_backbone
from flyspeck.models.detector import PixelNorm
from flyspeck.models.heads.fcos import grid_points
from flyspeck.models.heads.reppoints import (
    PointConv,
    RepPointsHead,
    assign_nearest_points,
    moment_boxes,
    object_levels,
    reppoints,
)
from flyspeck.models.levels import choose_maps
from flyspeck.models.profile import profile
from flyspeck.types import FeatureSpec, Targets

STRIDES = (4, 8, 16, 32, 64)
PADDED = (64, 96)
# Nine points on the 3x3 grid, as (y, x) pairs.
GRID = torch.tensor([(y, x) for y in (-1.0, 0.0, 1.0) for x in (-1.0, 0.0, 1.0)])


def map_sizes(padded=PADDED) -> list[tuple[int, int]]:
    return [(math.ceil(padded[0] / s), math.ceil(padded[1] / s)) for s in STRIDES]


def head(num_classes: int = 2, **options) -> RepPointsHead:
    torch.manual_seed(0)
    return RepPointsHead([FeatureSpec(16, s) for s in STRIDES], num_classes=num_classes, depth=1, **options)


def maps(padded=PADDED, *, batch: int = 1) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, 16, h, w) for h, w in map_sizes(padded)]


def target(boxes: list, labels: list[int] | None = None, ignore: list[bool] | None = None) -> Targets:
    n = len(boxes)
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([0] * n if labels is None else labels, dtype=torch.int64),
        torch.tensor([False] * n if ignore is None else ignore, dtype=torch.bool),
    )


# --- moments


def test_moments_of_the_grid():
    # Per axis three points each at -1, 0, 1: squares sum to 6, over n - 1 = 8 that is 3/4, the root 0.8660.
    side = math.sqrt(0.75)
    points = GRID.flip(-1) + torch.tensor([10.0, 20.0])
    assert_close(
        moment_boxes(points, torch.zeros(2)),
        torch.tensor([10 - side, 20 - side, 10 + side, 20 + side]),
        atol=1e-5,
        rtol=0,
    )
    # exp(ln 2) = 2 doubles the width alone.
    wide = moment_boxes(points, torch.tensor([math.log(2), 0.0]))
    assert_close(wide, torch.tensor([10 - 2 * side, 20 - side, 10 + 2 * side, 20 + side]), atol=1e-5, rtol=0)


def test_moments_of_an_uneven_set():
    # x: eight zeros and a nine: mean 1, deviations (8 x 1 + 64) / 8 = 9, the root 3. y: constant 5.
    points = torch.tensor([[0.0, 5.0]] * 8 + [[9.0, 5.0]])
    assert_close(moment_boxes(points, torch.zeros(2)), torch.tensor([-2.0, 5, 4, 5]), atol=1e-5, rtol=0)


def test_points_that_coincide_have_a_finite_gradient():
    points = torch.ones(3, 9, 2, requires_grad=True)
    moment_boxes(points, torch.zeros(2)).sum().backward()
    assert points.grad is not None
    assert bool(torch.isfinite(points.grad).all())


def test_only_a_share_of_the_spreads_gradient_arrives():
    points = GRID.reshape(1, 18)
    grads = []
    for share in (1.0, 0.01):
        h = head(moment_share=share)
        h.boxes(points, torch.zeros(1, 2), torch.ones(1, 2))[0, 2:].sum().backward()
        grads.append(h.log_spread.grad)
    # d/dm of std * exp(m) at 0 is std.
    assert_close(grads[0], torch.full((2,), math.sqrt(0.75)))
    assert_close(grads[1], grads[0] * 0.01)


# --- assigners


def test_levels_by_hand():
    """Scale 2 on strides 4-64: bounds at 8, 16, 32, 64, 128 px of sqrt(wh); 4 x 16 px counts as 8."""
    sides = torch.tensor([4.0, 8, 16, 32, 64])
    shapes = [(1, 1), (7, 8), (8, 8), (4, 16), (15, 16), (16, 16), (31, 33), (32, 32), (64, 64), (128, 128), (500, 500)]
    objects = torch.tensor([[0.0, 0, w, h] for w, h in shapes])
    #                1x1 7x8 8x8 4x16 15x16 16x16 31x33 (sqrt 31.98) 32x32 64x64 128x128 500x500
    assert object_levels(objects, sides, scale=2).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 4]


@given(st.floats(0.5, 600), st.floats(0.5, 600))
def test_levels_are_the_papers_where_strides_are_powers_of_two(w, h):
    mean_log = (math.log2(w / 4) + math.log2(h / 4)) / 2
    if abs(mean_log - round(mean_log)) < 1e-4:
        return  # on a bound, the logarithm rounds either way
    lowest, highest = 3, 7  # log2 of the strides 8-128
    expected = min(max(int(mean_log), lowest), highest) - lowest
    found = object_levels(torch.tensor([[0, 0, w, h]]), torch.tensor([8.0, 16, 32, 64, 128]), scale=4)
    assert found.tolist() == [expected]


def grid(rows: int = 8, columns: int = 16, cell: float = 4) -> Tensor:
    """Points in the middle of cells: (2, 2), (6, 2), …"""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * cell


def nearest(objects: list, **options) -> dict[int, int]:
    """Point to object on one level of 8 x 16 cells of 4 px."""
    boxes = torch.tensor(objects, dtype=torch.float32)
    points = grid()
    found = assign_nearest_points(
        points,
        torch.zeros(len(points), dtype=torch.int64),
        boxes,
        torch.zeros(len(boxes), dtype=torch.int64),
        **options,
    )
    return {i: int(v) for i, v in enumerate(found) if v != BACKGROUND}


def test_nearest_point_by_hand():
    # Centre (10, 10): cell (2, 2), point 2 * 16 + 2.
    assert nearest([[8, 8, 12, 12]]) == {34: 0}
    # Centre (8, 8) lies between four points: the first of them, cell (1, 1).
    assert nearest([[6, 6, 10, 10]]) == {17: 0}


def test_a_contested_point_goes_to_the_nearer_object_then_to_the_first():
    # Both nearest to (10, 10): (7, 8, 12, 12) is centred on (9.5, 10), 0.5 / 5 of its width away; the other is on it.
    assert nearest([[7, 8, 12, 12], [8, 8, 12, 12]]) == {34: 1}
    assert nearest([[8, 8, 12, 12], [7, 8, 12, 12]]) == {34: 0}
    assert nearest([[8, 8, 12, 12], [8, 8, 12, 12]]) == {34: 0}


def test_distance_is_in_units_of_the_object():
    # 40 x 4 px around (20, 10): x = 18, 22 are 2/40 away, 14 and 26 6/40, but y = 6 is 4/4: four points of one row.
    assert nearest([[0, 8, 40, 12]], num_points=4) == {35: 0, 36: 0, 37: 0, 38: 0}


def slow_nearest(points, levels, objects, wanted, count):
    best = [math.inf] * len(points)
    found = [BACKGROUND] * len(points)
    for row, (x1, y1, x2, y2) in enumerate(objects):
        here = [i for i in range(len(points)) if levels[i] == wanted[row]]
        far = {
            i: math.hypot((points[i][0] - (x1 + x2) / 2) / (x2 - x1), (points[i][1] - (y1 + y2) / 2) / (y2 - y1))
            for i in here
        }
        for i in sorted(here, key=lambda i: far[i])[:count]:
            if far[i] < best[i]:
                best[i], found[i] = far[i], row
    return found


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 3))
def test_assigner_against_a_slow_twin(seed, n, count):
    generator = torch.Generator().manual_seed(seed)
    points = torch.cat([grid(6, 8, 8), grid(3, 4, 16)]).double()
    levels = torch.tensor([0] * 48 + [1] * 12)
    low = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 50
    objects = torch.cat([low, low + 1 + torch.rand(n, 2, generator=generator, dtype=torch.float64) * 30], 1)
    wanted = torch.randint(0, 2, (n,), generator=generator)
    expected = slow_nearest(points.tolist(), levels.tolist(), objects.tolist(), wanted.tolist(), count)
    # Random doubles do not tie, so that only the rule is compared.
    found = assign_nearest_points(points, levels, objects, wanted, num_points=count)
    assert found.tolist() == expected


def test_no_objects_no_points():
    points = grid()
    none = assign_nearest_points(
        points, torch.zeros(len(points), dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    )
    assert none.tolist() == [BACKGROUND] * len(points)


def test_refine_by_overlap_and_ignore_regions():
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],  # the object itself
            [0, 0, 10, 20],  # IoU 100/200 = 0.5: positive
            [0, 0, 9, 5],  # 45/100: between the thresholds
            [0, 0, 13, 3],  # 30/(39 + 100 - 30) = 0.28: background
            [40, 0, 42, 2],  # best of the second object, 4/16 = 0.25: rescued
            [60, 0, 70, 10],  # under the ignore region
        ]
    )
    truth = target([[0, 0, 10, 10], [40, 0, 44, 4], [55, 0, 80, 20]], [0, 1, -1], [False, False, True])
    assert head().assign_refine(boxes, truth).tolist() == [0, 0, IGNORED, BACKGROUND, 1, IGNORED]


# --- where the points look


def plant(h: RepPointsHead, init: Tensor, shift: Tensor) -> RepPointsHead:
    """The same points (9, 2) in every cell, whatever the maps say."""
    with torch.no_grad():
        for conv, value in ((h.init_out, init), (h.refine_out, shift)):
            conv.weight.zero_()
            assert conv.bias is not None
            conv.bias.copy_(value.reshape(-1))
    return h


@pytest.mark.parametrize("size", [(5, 9), (1, 4), (1, 1)])
def test_the_point_convolution_is_torchvisions(size):
    torch.manual_seed(0)
    conv = PointConv(6, 4)
    ours, theirs = (
        [torch.randn(2, c, *size, generator=torch.Generator().manual_seed(1)).requires_grad_() for c in (6, 18)]
        for _ in range(2)
    )
    outputs = [conv(ours[0], 2 * ours[1]), deform_conv2d(theirs[0], 2 * theirs[1], conv.weight, padding=1)]
    assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
    for out in outputs:
        out.square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3)


def test_points_on_the_kernels_grid_make_plain_convolutions():
    h, x = plant(head(), GRID, torch.zeros(9, 2)), maps()
    logits = h(x)[0][0]
    features = h.class_tower(x[0], 0)
    expected = h.class_out(F.relu(F.conv2d(features, h.class_conv.weight, padding=1)))
    assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_the_first_points_start_on_the_kernels_grid():
    for start, expected in ((True, GRID.reshape(-1)), (False, torch.zeros(18))):
        bias = head(grid_start=start).init_out.bias
        assert bias is not None
        assert_close(bias.detach(), expected)


def test_points_moved_by_a_cell_look_a_cell_further():
    # y first: every point one row down.
    x = maps()
    still = plant(head(), GRID, torch.zeros(9, 2))(x)[0][0]
    moved = plant(head(), GRID + torch.tensor([1.0, 0.0]), torch.zeros(9, 2))(x)[0][0]
    assert_close(moved[:, :, 1:-2], still[:, :, 2:-1], atol=1e-5, rtol=1e-5)


def test_a_share_of_the_gradient_reaches_the_first_points_and_none_through_the_sum():
    grads = []
    for share in (1.0, 0.1):
        h = head(gradient_share=share)
        logits, _, refined = h(maps())
        (logits[0].square().sum() + refined[0].sum()).backward()
        assert h.init_out.bias is not None
        grads.append(h.init_out.bias.grad)
    assert grads[0] is not None
    assert_close(grads[1], grads[0] * 0.1)
    h = head(gradient_share=0.0)
    h(maps())[2][0].sum().backward()
    assert h.init_out.bias is not None
    assert float(h.init_out.bias.grad.abs().sum()) == 0  # type: ignore[union-attr]


def test_boxes_follow_the_true_ratio_of_image_to_map():
    """A 100 x 60 map row of 9 x 5 cells has cells of 100/9 x 60/5 px, whatever the stride is called."""
    h = plant(head(1), GRID, GRID * 0)
    with torch.no_grad():
        h.class_out.bias.fill_(2.0)  # type: ignore[union-attr]
        h.class_out.weight.zero_()
    h.suppression = type(h.suppression)(iou=1.0, max_detections=1000)
    found = h.detect([torch.zeros(1, 16, 5, 9)], (60, 100), [(60, 100)])[0]
    side = math.sqrt(0.75)
    middle = torch.tensor([4.5 * 100 / 9, 2.5 * 12])
    expected = torch.cat([middle - side * torch.tensor([100 / 9, 12]), middle + side * torch.tensor([100 / 9, 12])])
    assert float((found.boxes.detach() - expected).abs().amax(1).min()) < 1e-3
    assert len(found.boxes) == 45


# --- losses


@pytest.mark.parametrize("side", range(1, 9))
def test_boxes_of_a_few_pixels_are_learnt(side):
    h = head()
    truth = target([[20, 20, 20 + side, 20 + side], [50, 30, 50 + side, 30 + 1]], [0, 1])
    losses = h.losses(maps(), [truth], PADDED, [PADDED])
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert float(losses["box_init"].detach()) > 0
    for name, parameter in h.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
    centers, cells = grid_points(map_sizes(), PADDED, torch.device("cpu"))
    assigned = h.assign_init(map_sizes(), centers, cells, truth.objects)
    assert sorted(assigned[assigned >= 0].tolist()) == [0, 1]


def test_the_box_loss_by_hand():
    """One cell learns: its first box is +-0.866 cells (4 px) around (22, 22), the object 20-24 px; base scale 2 cells = 8 px."""
    h = plant(head(1), GRID, GRID * 0)
    losses = h.losses(maps(), [target([[20, 20, 24, 24]])], PADDED, [PADDED])
    gap = (4 * math.sqrt(0.75) - 2) / 8  # 0.183 > beta 0.11: linear
    once = 4 * (gap - 0.055)
    assert_close(losses["box_init"].detach(), torch.tensor(0.5 * once), atol=1e-5, rtol=0)
    # The refine stage: the same cell alone overlaps best (16/48 = 0.33: rescued), and its shift is zero.
    assert_close(losses["box"].detach(), torch.tensor(once), atol=1e-5, rtol=0)


def test_ignore_regions_silence_the_boxes_under_them():
    h, x = plant(head(), GRID, GRID * 0), maps()
    # First boxes of the finest level are 6.9 px wide: those around points 10-60 px lie inside the region.
    region = target([[0, 0, 64, 64]], [-1], [True])
    for truth, silent in ((region, True), (target([]), False)):
        logits = []
        handle = h.class_out.register_forward_hook(lambda *a, logits=logits: logits.append(a[2]) or a[2].retain_grad())
        h.losses(x, [truth], PADDED, [PADDED])["classification"].backward()
        handle.remove()
        inside, outside = logits[0].grad[0, :, 3:14, 3:14], logits[0].grad[0, :, :, 18:]
        assert (float(inside.abs().sum()) == 0) == silent
        assert float(outside.abs().sum()) > 0


def test_a_image_without_objects():
    losses = head().losses(maps(batch=2), [target([]), target([[5, 5, 9, 9]])], PADDED, [PADDED] * 2)
    assert all(bool(torch.isfinite(v)) for v in losses.values())
    empty = head().losses(maps(), [target([])], PADDED, [PADDED])
    assert float(empty["box"].detach()) == 0
    assert float(empty["box_init"].detach()) == 0
    assert float(empty["classification"].detach()) > 0


# --- counts


@pytest.mark.parametrize(
    ("first", "extra", "classes", "size", "gflops", "trainable"),
    [
        (3, 2, 80, (796, 1124), 168.25, 36.62e6),
        (3, 2, 80, (400, 558), 41.99, 36.62e6),
        (2, 1, 1, (512, 640), 158.92, None),
        (2, 1, 1, (1024, 1280), 635.66, None),
    ],
)
def test_published_counts(first, extra, classes, size, gflops, trainable):
    with torch.device("meta"):
        backbone = build_backbone("resnet50")
        choose_maps(backbone, first, name="resnet50")
        model = reppoints(
            backbone,
            classes=[f"class{i}" for i in range(classes)],
            pixel_norm=PixelNorm((0.5,) * 3, (0.25,) * 3),
            num_extra=extra,
        )
    freeze_stages(model.backbone, 1)  # type: ignore[arg-type]
    found = profile(model, size)
    assert found.gflops == pytest.approx(gflops, rel=1e-3)
    if trainable is not None:
        assert found.params_trainable == pytest.approx(trainable, rel=1e-3)
        assert found.params == 36_849_078
