"""SSPNet: parameters, gates, attention targets and losses by hand, weighted negatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from flyspeck.models.assign import BACKGROUND, sample_balanced
from flyspeck.models.necks.sspnet import (
    SSPNet,
    attention_losses,
    level_matches,
    paint_targets,
    sspnet_anchors,
    weighted_negatives,
)
from flyspeck.types import FeatureSpec, Targets

FEATURES = [FeatureSpec(c, 4 * 2**i) for i, c in enumerate((6, 8, 10, 12))]
PADDED = (128, 160)
STRIDES = (4, 8, 16, 32)


def maps(padded: tuple[int, int] = PADDED) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, f.channels, *(-(-n // int(f.stride)) for n in padded)) for f in FEATURES]


def neck(**options) -> SSPNet:
    torch.manual_seed(0)
    return SSPNet(FEATURES, channels=16, **options)


def target(boxes: list, ignore: list[bool] | None = None) -> Targets:
    n = len(boxes)
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.zeros(n, dtype=torch.int64),
        torch.tensor([False] * n if ignore is None else ignore, dtype=torch.bool),
    )


def test_parameters_are_the_published_ones():
    with torch.device("meta"):
        whole = SSPNet([FeatureSpec(c, s) for c, s in zip((256, 512, 1024, 2048), (4, 8, 16, 32), strict=True)])
    assert sum(p.numel() for p in whole.parameters()) == 8_992_004
    assert sum(p.numel() for p in whole.context.parameters()) == 5_647_620


def test_specs_are_what_comes_out():
    for extra in (0, 1, 2):
        sspnet = neck(num_extra=extra)
        out = sspnet(maps())
        assert [(o.shape[1], o.shape[2]) for o in out] == [
            (f.channels, -(-128 // int(f.stride))) for f in sspnet.features
        ]


def test_the_pyramid_is_gated_as_the_paper_says():
    """Written out for four levels from the laterals and the attention maps (SEM, SSM, SEM)."""
    sspnet, given = neck().eval(), maps()
    lateral = [conv(m) for conv, m in zip(sspnet.inner, given, strict=True)]
    a = [torch.sigmoid(x) for x in sspnet.context(lateral)]
    e = [(1 + a[i]) * lateral[i] for i in range(4)]
    for i in (3, 2, 1):
        e[i - 1] = e[i - 1] + a[i - 1] * F.interpolate(a[i], scale_factor=2) * F.interpolate(e[i], scale_factor=2)
    expected = [(1 + a[i]) * sspnet.layer[i](e[i]) for i in range(4)]
    assert_close(sspnet(given), [*expected, expected[3][..., ::2, ::2]])


def test_odd_sizes_and_images_of_one_cell():
    for padded in ((70, 90), (33, 64)):
        assert neck().eval()(maps(padded))[0].shape[-2:] == maps(padded)[0].shape[-2:]


def test_levels_are_responsible_for_octaves_of_sizes():
    # (4, 32), (8, 64), (16, 128), (32, 256) px; the finest takes what is smaller, the coarsest what is larger.
    sizes = torch.tensor([1.0, 6, 8, 20, 40, 100, 200, 999])
    assert level_matches(sizes, STRIDES).int().tolist() == [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1],
    ]
    # From stride 2 on, everything is an octave finer.
    assert level_matches(sizes / 2, (2, 4, 8, 16)).equal(level_matches(sizes, STRIDES))


def test_painted_targets_of_a_matched_an_unmatched_and_an_ignored_box():
    given = target([[2.3, 4, 3.2, 6], [20, 20, 60, 60], [100, 0, 200, 10]], [False, False, True])
    painted, ignored = paint_targets(given, PADDED, STRIDES)
    # The sub-pixel box touches columns 2 and 3, rows 4 and 5: matched on the finest level only.
    assert painted[:, 4:6, 2:4].flatten(1).unique(dim=1)[:, 0].tolist() == [1, -1, -1, -1]
    assert (painted[:, 30, 30].tolist(), int((painted[0] != 0).sum())) == ([-1, 1, 1, 1], 4 + 1600)
    assert int(ignored.sum()) == 60 * 10


def test_a_matched_object_wins_over_an_unmatched_one():
    painted, _ = paint_targets(target([[10, 10, 14, 14], [0, 0, 60, 60]]), PADDED, STRIDES)
    assert painted[:, 12, 12].tolist() == [1, 1, 1, 1]
    assert painted[:, 50, 50].tolist() == [-1, 1, 1, 1]


def test_attention_losses_by_hand():
    """One positive, one of another level, four background pixels of which the three hardest count."""
    logits = torch.tensor([0.0, 0.0, 2.0, 1.0, 0.0, -1.0])
    goal = torch.tensor([1.0, -1, 0, 0, 0, 0])
    cross_entropy, dice = attention_losses(logits, goal, torch.zeros(6, dtype=torch.bool))
    hard = sum(math.log1p(math.exp(x)) for x in (2, 1, 0))
    assert_close(cross_entropy, torch.tensor((math.log(2) + 3 * math.log(2) + hard) / 5))
    # p = 0.5, t = 1: 1 - 2 (0.5 + 1) / (0.25 + 1 + 1 + 1).
    assert_close(dice, torch.tensor(1 - 3 / 3.25))


def test_attention_losses_without_positives_take_the_hardest_twentieth():
    logits = torch.linspace(-3, 3, 100)
    cross_entropy, dice = attention_losses(logits, torch.zeros(100), torch.zeros(100, dtype=torch.bool))
    assert_close(cross_entropy, F.softplus(logits[-5:]).mean())
    assert float(dice) == 0


def test_pixels_under_ignore_regions_are_no_background():
    logits, everything = torch.full((10,), 9.0), torch.ones(10, dtype=torch.bool)
    assert [float(loss) for loss in attention_losses(logits, torch.zeros(10), everything)] == [0, 0]


@pytest.mark.parametrize(
    "given",
    [
        [],
        [[10, 10, 11, 11], [10, 10, 11, 11]],
        [[0.2, 0.2, 0.7, 0.7]],
        [[-20, -20, 400, 400]],
        [[float(i % 40 * 4), float(i // 40 * 6), float(i % 40 * 4 + 3), float(i // 40 * 6 + 4)] for i in range(800)],
    ],
    ids=["none", "two-on-one-spot", "less-than-a-pixel", "larger-than-the-image", "800"],
)
def test_losses_are_finite_and_reach_the_attention(given):
    sspnet = neck()
    levels, losses = sspnet.forward_with_losses(maps(), [target(given), target([[0, 0, 160, 128]], [True])], PADDED)
    assert len(levels) == 5
    assert set(losses) == {"attention", "attention_dice"}
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    grads = [p.grad for p in sspnet.context.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)


def test_attention_learns_where_the_objects_are():
    sspnet, given = neck(), maps()
    given = [m.clone() for m in given]
    box = target([[40, 40, 56, 56]])
    for m, f in zip(given, FEATURES, strict=True):
        m[:, 0] = 0
        s = int(f.stride)
        m[:, 0, 40 // s : -(-56 // s), 40 // s : -(-56 // s)] = 5
    optimizer = torch.optim.Adam(sspnet.parameters(), 3e-3)
    for _ in range(60):
        _, losses = sspnet.forward_with_losses(given, [box, box], PADDED)
        optimizer.zero_grad()
        (100 * losses["attention"] + losses["attention_dice"]).backward()
        optimizer.step()
    _, logits = sspnet.attend(given)
    attention = torch.sigmoid(logits[0][0, 0]).detach()
    inside = torch.zeros_like(attention, dtype=torch.bool)
    inside[10:14, 10:14] = True
    assert float(attention[inside].min()) > 0.5 > float(attention[~inside].mean())


def test_weighted_negatives_by_hand():
    anchors = torch.tensor([[0.0, 0, 8, 8], [4, 0, 12, 8], [50, 50, 60, 60]])
    objects = torch.tensor([[0.0, 0, 8, 8], [6, 0, 10, 4]])
    logits = torch.tensor([0.0, 0.0, 2.0])
    # Anchor 0 holds all of object 0; anchor 1 all of object 1; anchor 2 nothing, but it is sure of itself.
    expected = [0.6 + 0.2, 0.6 + 0.2, 0.4 * torch.sigmoid(torch.tensor(2.0)).item()]
    assert_close(weighted_negatives(anchors, logits, objects), torch.tensor(expected).exp())
    assert_close(weighted_negatives(anchors, logits, objects[:0]), torch.exp(0.4 * torch.sigmoid(logits)))


def test_negatives_that_cover_objects_are_drawn_more_often():
    torch.manual_seed(0)
    assigned = torch.full((400,), BACKGROUND)
    weight = torch.ones(400)
    weight[:40] = math.e  # a tenth of the anchors with weight e: e * 40 / (e * 40 + 360) = 23 % of the draws
    drawn = torch.cat(
        [sample_balanced(assigned, count=8, positive_share=0.5, negative_weight=weight) for _ in range(300)]
    )
    assert 0.19 < float((drawn < 40).float().mean()) < 0.27
    few = sample_balanced(assigned, count=500, positive_share=0.5, negative_weight=weight)
    assert sorted(few.tolist()) == list(range(400))


def test_blocks_do_not_change_the_weights(monkeypatch):
    torch.manual_seed(0)
    corner = torch.rand(50, 2) * 100
    objects, anchors = torch.cat([corner, corner + 5], 1), torch.cat([corner + 2, corner + 9], 1)
    whole = weighted_negatives(anchors, torch.zeros(50), objects)
    monkeypatch.setattr("flyspeck.models.necks.sspnet._BLOCK", 100)
    assert_close(weighted_negatives(anchors, torch.zeros(50), objects), whole)


def test_twelve_anchors_of_the_authors_rpn():
    grid = sspnet_anchors([FeatureSpec(1, 4), FeatureSpec(1, 8)])
    assert grid.num_per_cell == 12
    width, height = grid.shapes[0][0]
    assert_close(width * height, 36.0)  # (1.5 * 4)^2
    assert_close(height / width, 0.4)


def test_channels_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        SSPNet(FEATURES, channels=18)
