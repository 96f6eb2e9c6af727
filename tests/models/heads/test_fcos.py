"""FCOS: targets against a slow twin and by hand, parity with torchvision, boxes of a few pixels."""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from flyspeck.errors import UserError
from flyspeck.models.assign import BACKGROUND, IGNORED
from flyspeck.models.heads.fcos import FCOSHead, assign_points, boxes_around, centerness, grid_points, size_ranges
from flyspeck.models.layers import group_norm
from flyspeck.models.postprocess import Suppression
from flyspeck.types import FeatureSpec, Targets
from same_detections import assert_same_detections

STRIDES = (4, 8, 16, 32, 64)
PADDED = (128, 192)
NOTHING = torch.zeros(0, 4)


def map_sizes(padded=PADDED, strides=STRIDES) -> list[tuple[int, int]]:
    return [(math.ceil(padded[0] / s), math.ceil(padded[1] / s)) for s in strides]


def assign(objects: list, ignored: Tensor = NOTHING, *, padded=PADDED, reach: float = 0.0) -> tuple[Tensor, Tensor]:
    sizes = map_sizes(padded)
    points, cells = grid_points(sizes, padded, torch.device("cpu"))
    counts = torch.tensor([h * w for h, w in sizes])
    ranges = torch.tensor(size_ranges(STRIDES)).repeat_interleave(counts, 0)
    boxes = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
    return points, assign_points(points, cells, ranges, boxes, ignored, reach=reach)


def head(num_classes: int = 2, **options) -> FCOSHead:
    torch.manual_seed(0)
    return FCOSHead([FeatureSpec(16, s) for s in STRIDES], num_classes=num_classes, depth=1, **options)


def maps(padded=PADDED, *, batch: int = 1, channels: int = 16, strides=STRIDES) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, channels, h, w) for h, w in map_sizes(padded, strides)]


def target(boxes: list, labels: list[int] | None = None, ignore: list[bool] | None = None) -> Targets:
    n = len(boxes)
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([0] * n if labels is None else labels, dtype=torch.int64),
        torch.tensor([False] * n if ignore is None else ignore, dtype=torch.bool),
    )


def test_ranges_follow_the_strides():
    assert size_ranges(STRIDES) == ((-1, 16), (16, 32), (32, 64), (64, 128), (128, math.inf))
    assert size_ranges((8, 16, 32, 64, 128), scale=8)[0] == (-1, 64)


def test_points_lie_in_the_middle_of_cells_of_the_true_size():
    # An image of 100x50 whose map has 4x2 cells of 25x25 px, whatever the nominal stride was.
    points, cells = grid_points([(4, 2)], (100, 50), torch.device("cpu"))
    assert_close(points[:3], torch.tensor([[12.5, 12.5], [37.5, 12.5], [12.5, 37.5]]))
    assert_close(cells[0], torch.tensor([25.0, 25.0]))


def test_areas_of_16_and_20_do_not_tie():
    """Both contain the point (10, 10); the smaller comes second. In float32, 1e8 - 16 == 1e8 - 20."""
    assert torch.tensor(1e8) - 16 == torch.tensor(1e8) - 20
    for objects, smaller in (([[8, 8, 12, 13], [8, 8, 12, 12]], 1), ([[8, 8, 12, 12], [8, 8, 12, 13]], 0)):
        points, assigned = assign(objects)
        on_point = (points[:, 0] == 10) & (points[:, 1] == 10)
        assert assigned[on_point][0] == smaller


def test_equal_areas_go_to_the_first():
    points, assigned = assign([[8, 8, 12, 13], [8, 8, 13, 12], [8, 8, 12, 13]])
    assert assigned[(points == 10).all(1)][0] == 0


def naive(
    objects: Tensor, points: Tensor, sizes: list[tuple[int, int]], radius: float = 1.5, reach: float = 0.0
) -> list[int]:
    """Point by point, object by object."""
    result, start = [], 0
    for (low, high), stride, (h, w) in zip(size_ranges(STRIDES), STRIDES, sizes, strict=True):
        for x, y in points[start : start + h * w].tolist():
            best, best_area = BACKGROUND, math.inf
            for n, (x1, y1, x2, y2) in enumerate(objects.tolist()):
                sides = (x - x1, y - y1, x2 - x, y2 - y)
                off = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
                area = (x2 - x1) * (y2 - y1)
                near = min(sides) > 0 or (reach > 0 and off <= reach * stride)
                if near and low < max(sides) <= high and off < radius * stride and area < best_area:
                    best, best_area = n, area
            result.append(best)
        start += h * w
    return result


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-20, 250), st.integers(-20, 250), st.integers(1, 40), st.integers(1, 200)), max_size=6
    ),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_assignment_equals_the_slow_twin(quarters, reach):
    """Quarter pixels and quarter sizes: exact in float32, with centres on cell borders and equal areas."""
    objects = torch.tensor([[x / 2, y / 2, x / 2 + w / 2, y / 2 + h / 2] for x, y, w, h in quarters]).reshape(-1, 4)
    points, assigned = assign(objects.tolist(), padded=(64, 128), reach=reach)
    assert assigned.tolist() == naive(objects, points, map_sizes((64, 128)), reach=reach)


@pytest.mark.parametrize("side", range(1, 9))
def test_with_a_reach_of_half_a_cell_every_object_has_a_point(side):
    for shift in range(17):  # in steps of 1/2 and 1/4 px away from a point at (10, 10)
        x, y = 10 + shift / 2, 10 + shift / 4
        box = [x - side / 2, y - side / 2, x + side / 2, y + side / 2]
        points, assigned = assign([box], reach=0.5)
        finest = points[: 32 * 48]
        nearest = (finest - torch.tensor([x, y])).abs().amax(1).argmin()
        assert assigned[nearest] == 0
        assert (assigned == 0).sum() >= (assign([box])[1] == 0).sum()


def test_blocks_of_objects_do_not_change_the_assignment(monkeypatch):
    torch.manual_seed(0)
    corner, side = torch.rand(60, 2) * 100, torch.rand(60, 2) * 30 + 1
    objects = torch.cat([corner, corner + side], 1).tolist()
    _, whole = assign(objects)
    monkeypatch.setattr("flyspeck.models.heads.fcos._BLOCK", 10_000)  # four objects at a time
    assert_close(assign(objects)[1], whole, rtol=0, atol=0)


def test_points_inside_ignore_regions_learn_nothing_but_objects_there_are_learnt():
    points, assigned = assign([[8, 8, 16, 16]], torch.tensor([[0.0, 0, 40, 40]]))
    inside = (points < 40).all(1)
    assert set(assigned[inside].tolist()) == {0, IGNORED}
    assert set(assigned[~inside].tolist()) == {BACKGROUND}


def test_centerness_by_hand():
    # 2 of 8 px across, the middle down: sqrt(2/6 * 4/4).
    assert_close(centerness(torch.tensor([[2.0, 4, 6, 4]])), torch.tensor([(2 / 6) ** 0.5]))


def test_distances_are_in_cells_of_the_true_size():
    box = boxes_around(torch.tensor([[10.0, 20]]), torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[4.0, 8.0]]))
    assert_close(box, torch.tensor([[6.0, 4, 22, 52]]))


def test_the_quality_of_iou_is_learnt_from_the_boxes_predicted():
    """One point, (10, 10), predicts [8, 8, 12, 12] for an object [8, 8, 12, 10.5]: an IoU of 10 / 16."""
    fcos_head = head(num_classes=1, quality="iou")
    with torch.no_grad():
        for conv in (fcos_head.box_distances, fcos_head.centerness):
            conv.weight.zero_()
        fcos_head.box_distances.bias.fill_(0.5)
        fcos_head.centerness.bias.fill_(1.5)
    losses = fcos_head.losses(maps(), [target([[8, 8, 12, 10.5]])], PADDED, [PADDED])
    assert set(losses) == {"classification", "box", "iou"}
    iou = 4 * 2.5 / 16
    expected = nn.functional.binary_cross_entropy_with_logits(torch.tensor(1.5), torch.tensor(iou))
    assert_close(losses["iou"], expected)
    assert_close(losses["box"], torch.tensor(1 - iou))  # the hull is the union
    losses["iou"].backward()
    assert fcos_head.box_distances.bias.grad is None or not fcos_head.box_distances.bias.grad.any()


def test_an_unknown_quality_is_refused():
    with pytest.raises(UserError, match="'IoU' is no quality"):
        head(quality="IoU")


@pytest.mark.parametrize("side", range(1, 9))
def test_a_box_of_a_few_pixels_around_a_point_is_learnt_by_it(side):
    points, assigned = assign([[10 - side / 2, 10 - side / 2, 10 + side / 2, 10 + side / 2]])
    assert points[assigned == 0].tolist()[0] == [10, 10]
    # 8 px reach (6, 14): points at 6 and 14 lie on its border and are not inside.
    assert (assigned == 0).sum() == 1


@pytest.mark.parametrize(
    "given_target",
    [
        target([]),
        target([[10, 10, 11, 11], [10, 10, 11, 11]], [0, 1]),  # two on one spot
        target([[8, 8, 12, 12], [8, 8, 12, 13]], [1, 0]),
        target([[0, 0, 128, 96]], [-1], [True]),  # only an ignore region
        target([[3, 3, 5, 5]]),  # between the points: contains none
        target([[10.0 + i % 30 * 5, 4.0 + i // 30 * 4, 13.0 + i % 30 * 5, 8.0 + i // 30 * 4] for i in range(800)]),
    ],
    ids=["none", "two-on-one-spot", "areas-16-and-20", "only-ignored", "between-points", "800"],
)
@pytest.mark.parametrize("options", [{}, {"reach": 0.5, "quality": "iou"}, {"reach": 1.0}], ids=str)
def test_losses_are_finite_and_have_gradients(given_target, options):
    fcos_head = head(**options)
    losses = fcos_head.losses(maps(), [given_target], PADDED, [PADDED])
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in fcos_head.parameters())


def test_a_fully_ignored_image_costs_nothing_where_the_points_lie_inside():
    whole = target([[-1, -1, 500, 500]], [-1], [True])
    losses = head().losses(maps(), [whole], PADDED, [PADDED])
    assert {name: float(value.detach()) for name, value in losses.items()} == {
        "classification": 0,
        "box": 0,
        "centerness": 0,
    }


def test_perfect_outputs_give_the_objects_back():
    """Targets written into the outputs by hand, then decoded: boxes of 2 to 60 px return to the last bit that matters."""
    objects = torch.tensor([[9.0, 9, 11, 11], [30, 41, 37, 47], [60, 20, 120, 70]])
    points, assigned = assign(objects.tolist())
    sizes, fcos_head = map_sizes(), head(num_classes=1, suppression=Suppression(score=0.3, iou=0.5))
    logits = torch.full((len(points),), -20.0)
    logits[assigned >= 0] = 20
    _, cells = grid_points(sizes, PADDED, torch.device("cpu"))
    goal = objects[assigned.clamp(min=0)]
    distances = torch.cat([(points - goal[:, :2]) / cells, (goal[:, 2:] - points) / cells], 1).clamp(min=0)

    def split(flat: Tensor) -> list[Tensor]:
        parts = flat.split([h * w for h, w in sizes])
        return [p.reshape(h, w, -1).permute(2, 0, 1)[None] for p, (h, w) in zip(parts, sizes, strict=True)]

    fcos_head.forward = lambda _: (split(logits), split(distances), split(torch.full_like(logits, 20)))  # type: ignore[method-assign]
    found = fcos_head.detect(maps(), PADDED, [PADDED])[0]
    assert_close(found.boxes[found.boxes[:, 0].argsort()], objects, rtol=0, atol=1e-4)


# --- parity with torchvision -----------------------------------------------------------------------------------------

TV_STRIDES = (8, 16, 32, 64, 128)
TV_PADDED = (256, 384)


class _NoBackbone(nn.Module):
    out_channels = 64


@pytest.fixture
def pair() -> tuple[TorchvisionFCOS, FCOSHead]:
    """torchvision's FCOS and a head with its weights: shared group norms are copied into every level."""
    torch.manual_seed(0)
    sizes = tuple((s,) for s in TV_STRIDES)
    theirs = TorchvisionFCOS(
        _NoBackbone(), 3, anchor_generator=AnchorGenerator(sizes, ((1.0,),) * 5), score_thresh=0.05, nms_thresh=0.6
    ).eval()
    ours = FCOSHead(
        [FeatureSpec(64, s) for s in TV_STRIDES],
        num_classes=3,
        norm=lambda c: nn.GroupNorm(32, c),
        offset=0.0,
        range_scale=8.0,
        centerness_weighted=False,
        suppression=Suppression(score=0.05, iou=0.6, pre_nms=1000, max_detections=100),
    )
    for parameter in theirs.head.parameters():  # the default weights give no score above the threshold
        nn.init.normal_(parameter, std=0.05)
    for tower, other, outputs in (
        (ours.class_tower, theirs.head.classification_head, [("class_logits", "cls_logits")]),
        (ours.box_tower, theirs.head.regression_head, [("box_distances", "bbox_reg"), ("centerness", "bbox_ctrness")]),
    ):
        for i in range(4):
            # torchvision's convolutions have a bias before the norm, ours do not
            tower.convs[i] = nn.Conv2d(64, 64, 3, 1, 1)
            tower.convs[i].load_state_dict(other.conv[3 * i].state_dict())
            for level in range(5):
                tower.norms[level][i].load_state_dict(other.conv[3 * i + 1].state_dict())
        for mine, name in outputs:
            getattr(ours, mine).load_state_dict(getattr(other, name).state_dict())
    return theirs, ours.eval()


def tv_objects(n: int, seed: int) -> Tensor:
    """Boxes of 4 to 200 px whose areas are far apart and whose distances meet no bound."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 150
    return torch.cat([corner, corner + 4 + torch.rand(n, 2, generator=generator) ** 3 * 190], 1)


def test_losses_equal_torchvisions(pair):
    theirs, ours = pair
    features = maps(TV_PADDED, batch=2, channels=64, strides=TV_STRIDES)
    boxes = [tv_objects(12, 0), tv_objects(5, 1)]
    labels = [torch.arange(12) % 3, torch.arange(5) % 3]
    outputs = theirs.head(features)
    images = torchvision_images(TV_PADDED, 2)
    anchors = theirs.anchor_generator(images, features)
    counts = [m.shape[-2] * m.shape[-1] for m in features]
    reference = theirs.compute_loss(
        [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)], outputs, anchors, counts
    )
    given_targets = [Targets(b, k, torch.zeros(len(b), dtype=torch.bool)) for b, k in zip(boxes, labels, strict=True)]
    losses = ours.losses(features, given_targets, TV_PADDED, [TV_PADDED] * 2)
    assert_close(losses["classification"], reference["classification"], rtol=1e-4, atol=1e-5)
    assert_close(losses["box"], reference["bbox_regression"], rtol=1e-4, atol=1e-5)
    assert_close(losses["centerness"], reference["bbox_ctrness"], rtol=1e-4, atol=1e-5)


def test_detections_equal_torchvisions(pair):
    theirs, ours = pair
    features = maps(TV_PADDED, batch=2, channels=64, strides=TV_STRIDES)
    with torch.no_grad():
        outputs = theirs.head(features)
        anchors = theirs.anchor_generator(torchvision_images(TV_PADDED, 2), features)
        counts = [m.shape[-2] * m.shape[-1] for m in features]
        split = {name: list(value.split(counts, 1)) for name, value in outputs.items()}
        reference = theirs.postprocess_detections(
            OrderedDict(split), [list(a.split(counts)) for a in anchors], [TV_PADDED] * 2
        )
        found = ours.detect(features, TV_PADDED, [TV_PADDED] * 2)
    assert_same_detections(found, reference, box_px=1e-2, score=1e-4, rule=ours.suppression, least=21)


def torchvision_images(padded: tuple[int, int], batch: int):
    from torchvision.models.detection.image_list import ImageList

    return ImageList(torch.zeros(batch, 3, *padded), [padded] * batch)


def test_group_norm_towers_and_plain_ones_run_on_any_size():
    for norm in (None, group_norm):
        fcos_head = head(norm=norm)
        odd = [torch.randn(1, 16, h, w) for h, w in map_sizes((70, 90))]
        assert len(fcos_head.detect(odd, (70, 90), [(61, 83)])) == 1
