"""Dynamic pooling: its static twin, boxes that stay in place, what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.factors import FactorSwitch, check_factors
from flyspeck.models.dynamic.pooling import (
    PooledStage,
    find_switch,
    pool_dynamically,
    resized,
    run_prefix,
    run_rest,
    split_stage,
)
from flyspeck.types import ImageBatch
from same_detections import assert_same_detections

KINDS = ("retinanet", "fcos", "reppoints", "faster_rcnn")


def static_twin(detector: Detector) -> Detector:
    """Stage 2 of stride 1 behind a 2x2 average pool, written by hand for a ResNet of basic blocks."""
    twin = copy.deepcopy(detector)
    stages = twin.backbone.stages  # type: ignore[union-attr]
    block = stages["stage2"][0]  # type: ignore[index]
    block.conv1.stride = (1, 1)
    block.downsample[0].stride = (1, 1)
    stages["stage2"] = nn.Sequential(nn.AvgPool2d(2), *stages["stage2"])  # type: ignore[misc,index]
    return twin


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_is_a_static_average_pool(kind, small, batch):
    detector = small(kind)
    static, names = static_twin(detector), list(detector.state_dict())
    pool_dynamically(detector, stride="replaced")
    assert list(detector.state_dict()) == names
    with torch.no_grad():
        for ours, theirs in zip(detector.pyramid(batch[0]), static.pyramid(batch[0]), strict=True):
            assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())), rtol=0)
    found, expected = detector.detect(batch[0]), static.detect(batch[0])
    assert_same_detections(found, expected, box_px=1e-2, score=1e-5, rule=detector.head.suppression)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_its_stride_kept_a_half_is_the_static_detector(kind, stage, small, batch):
    detector = small(kind)
    static, names = copy.deepcopy(detector), list(detector.state_dict())
    switch = pool_dynamically(detector, stage=stage, stride="kept")
    assert list(detector.state_dict()) == names
    with torch.no_grad():
        for ours, theirs in zip(detector.pyramid(batch[0]), static.pyramid(batch[0]), strict=True):
            assert_close(ours, theirs, atol=0, rtol=0)
        with switch.use(0.25):
            assert detector.pyramid(batch[0])[-1].shape != static.pyramid(batch[0])[-1].shape


@pytest.mark.parametrize("stride", ["kept", "replaced"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_factor_trains_and_detects(kind, stride, small, batch):
    detector = small(kind)
    switch = pool_dynamically(detector, stride=stride)
    seen = []
    for factor in switch.factors:
        with switch.use(factor):
            torch.stack(list(detector.losses(*batch).values())).sum().backward()
            assert len(detector.detect(batch[0])) == 2
            seen.append([tuple(m.shape[-2:]) for m in detector.backbone(detector.pixel_norm(batch[0]))])
    # C2 of 24x32 stays; C3 is 12x16, 8x11 (24 x .33 = 7.9, 32 x .33 = 10.6), 6x8.
    assert [s[0] for s in seen] == [(24, 32)] * 3
    assert [s[1] for s in seen] == [(12, 16), (8, 11), (6, 8)]
    assert switch.active == 0.5
    for name, parameter in detector.named_parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name


@given(st.integers(8, 120), st.integers(8, 120), st.sampled_from([0.5, 0.33, 0.25]))
def test_cells_stay_where_they_are(height, width, factor):
    """A map that holds its own coordinates (in units of the image) still does after the resize: nothing drifts.

    The centre of cell i of n lies at (i + 0.5) / n of the image: what anchors and points assume. Bilinear reading of a
    linear ramp is exact inside; at the border it repeats the last cell.
    """
    switch = FactorSwitch((0.5, 0.33, 0.25), default=0.5)
    stage = PooledStage(nn.Sequential(nn.Identity()), switch, name="stage2")
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
    with switch.use(factor):
        small = stage(torch.stack([y, x])[None])[0]
    rows, columns = small.shape[-2:]
    assert (rows, columns) == (resized(height, factor), resized(width, factor))
    assert_close(small[0], ((torch.arange(rows) + 0.5) / rows)[:, None].expand(rows, columns), atol=1e-5, rtol=0)
    assert_close(small[1], ((torch.arange(columns) + 0.5) / columns)[None].expand(rows, columns), atol=1e-5, rtol=0)


def test_boxes_do_not_drift_at_a_third(small, batch):
    """Anchors, points and regression that predicts 'no offset': the boxes' centres are the cells' true centres."""
    detector = small("fcos")
    switch = pool_dynamically(detector)
    head = detector.head
    with torch.no_grad():
        for conv in (head.class_logits, head.box_distances, head.centerness):
            conv.weight.zero_()
            conv.bias.fill_(3.0)
    head.suppression = type(head.suppression)(score=0.0, iou=1.0, max_detections=10_000)
    with switch.use(0.33):
        maps = detector.pyramid(batch[0])
        found = detector.detect(batch[0])[0]
    rows, columns = maps[1].shape[-2:]
    assert (rows, columns) == (8, 11)
    middle = torch.tensor([5.5 * 128 / 11, 3.5 * 96 / 8])
    reach = torch.tensor([3 * 128 / 11, 3 * 96 / 8])
    expected = torch.cat([middle - reach, middle + reach])
    gaps = (torch.from_numpy(found.boxes) - expected).abs().amax(1)
    assert float(gaps.min()) < 1e-3


@pytest.mark.parametrize("stride", ["kept", "replaced"])
def test_prefix_and_rest_are_the_whole(stride, small, batch):
    for backbone, stage in (("resnet18", "stage2"), ("resnet18", "stage3"), ("mobilenet_v2", "stage1")):
        detector = small("fcos", backbone)
        switch = pool_dynamically(detector, stage=stage, stride=stride)
        with torch.no_grad(), switch.use(0.33):
            whole = detector.backbone(detector.pixel_norm(batch[0]))
            before, shared = run_prefix(detector, batch[0])
            parts = run_rest(detector, before, shared)
        assert len(whole) == len(parts)
        for a, b in zip(whole, parts, strict=True):
            assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize("stride", ["kept", "replaced"])
@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v1", "mobilenet_v1_coral", "vgg16", "bh_resnet50"])
def test_backbones_that_are_chains(backbone, stride):
    """At 0.5 the maps have the sizes of the strided backbone on any of them."""
    with torch.device("meta"):
        detector = build(f"fcos:{backbone}", width=0.25)
        assert isinstance(detector, Detector)
        x = torch.empty(1, 3, 160, 192)
        before = [m.shape for m in detector.backbone(x)]
        pool_dynamically(detector, stride=stride)
        assert split_stage(detector) == "stage1"
        assert [m.shape for m in detector.backbone(x)] == before


@pytest.mark.parametrize("stride", ["kept", "replaced"])
def test_the_stems_pool_is_stage_ones_stride(stride, small, batch):
    detector = small("retinanet")
    switch = pool_dynamically(detector, stage="stage1", stride=stride)
    assert isinstance(detector.backbone, StagedBackbone)
    assert isinstance(detector.backbone.stages["stem"][3], nn.Identity)  # type: ignore[index]
    for factor, side in ((0.5, 32), (0.25, 16)):
        with switch.use(factor), torch.no_grad():
            assert detector.pyramid(batch[0])[0].shape[-1] == side


def test_the_switch_returns_to_what_it_was_and_copies_have_their_own(small):
    detector = small("fcos")
    switch = pool_dynamically(detector, (0.25, 0.5, 0.33))
    assert switch.factors == (0.5, 0.33, 0.25)
    with switch.use(0.25):
        twin = copy.deepcopy(detector)
        with switch.use(0.33):
            assert switch.active == 0.33
        assert switch.active == 0.25
    with pytest.raises(RuntimeError), switch.use(0.33):
        raise RuntimeError
    assert switch.active == 0.5
    assert find_switch(twin).active == 0.25
    with pytest.raises(UserError, match=r"no down-sampling factor 0.4.*the detector has 0.5, 0.33, 0.25"):
        switch.use(0.4).__enter__()


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ((0.33, 0.25), r"the factors 0.33, 0.25 do not have the default 0.5.*add 0.5"),
        ((), r"\(none\) do not have the default"),
        ((0.5, 0.5), "a factor is listed twice"),
        ((0.5, 0), "0 is no down-sampling factor"),
        ((0.5, 1.5), "1.5 is no down-sampling factor"),
        ((0.5, float("nan")), "nan is no down-sampling factor"),
    ],
)
def test_factor_lists_that_are_refused(factors, message):
    with pytest.raises(UserError, match=message):
        check_factors(factors, default=0.5)


def test_a_map_smaller_than_a_kernel_is_refused(small):
    detector = small("fcos")
    switch = pool_dynamically(detector)
    image = ImageBatch(torch.rand(1, 3, 32, 64), ((32, 64),))
    detector.detect(image)  # C2 is 8x16: 4x8 at a half
    message = r"0.25 makes a map of 2x4 out of 8x16, smaller than the 3x3 kernels of stage2"
    with switch.use(0.25), pytest.raises(UserError, match=message):
        detector.detect(image)


def test_detectors_that_are_refused(small):
    detector = small("fcos")
    with pytest.raises(UserError, match=r"no stage 'stage9'.*stage1, stage2, stage3, stage4"):
        pool_dynamically(detector, stage="stage9")
    with pytest.raises(UserError, match="no dynamic pooling"):
        find_switch(detector)
    pool_dynamically(detector)
    with pytest.raises(UserError, match="dynamic pooling already"):
        pool_dynamically(detector)
    with torch.device("meta"):
        branches = build("fcos:hrnet18", width=0.25)
        dual = build("ssd:mobilenet_v1:S1L0-DualPath19-C", width=0.25)
        unstrided = build("fcos:resnet18-S1L4", width=0.25)
    assert isinstance(branches, Detector)
    assert isinstance(dual, Detector)
    assert isinstance(unstrided, Detector)
    with pytest.raises(UserError, match="parallel branches"):
        pool_dynamically(branches)
    with pytest.raises(UserError, match="a chain of stages"):
        pool_dynamically(dual)
    with pytest.raises(UserError, match="no stride of 2"):
        pool_dynamically(unstrided)


def test_interpolation_is_an_average_pool_on_even_maps():
    x = torch.randn(1, 3, 12, 18)
    halved = F.interpolate(x, size=(6, 9), mode="bilinear", align_corners=False)
    assert_close(halved, F.avg_pool2d(x, 2), atol=1e-6, rtol=0)
