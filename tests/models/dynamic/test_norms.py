"""Private norms: weights kept, copies apart, the prefix shared, folded copies; mixed losses; the cost of each factor."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.backbones.freezing import freeze_norms, freeze_stages
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.cost import mean_gflops, profile_factors
from flyspeck.models.dynamic.mixed import mixed_losses
from flyspeck.models.dynamic.norms import SwitchedNorm, at_factor, privatise_norms
from flyspeck.models.dynamic.pooling import Stride, pool_dynamically
from flyspeck.models.fold import fold_norms

KINDS = ("retinanet", "fcos", "reppoints", "faster_rcnn")


@pytest.mark.parametrize("kind", KINDS)
def test_conversion_keeps_what_was_trained(kind, small, batch):
    detector = small(kind)
    switch = pool_dynamically(detector)
    with torch.no_grad():
        before = []
        for factor in switch.factors:
            with switch.use(factor):
                before.append(detector.pyramid(batch[0]))
        privatise_norms(detector)
        for factor, maps in zip(switch.factors, before, strict=True):
            with switch.use(factor):
                for a, b in zip(detector.pyramid(batch[0]), maps, strict=True):
                    assert_close(a, b, atol=0, rtol=0)


def test_the_prefix_is_shared_and_the_rest_private(small):
    detector = small("fcos")
    pool_dynamically(detector)
    count = privatise_norms(detector)
    private = {name for name, m in detector.named_modules() if isinstance(m, SwitchedNorm)}
    assert len(private) == count
    # ResNet-18: stages 2-4 have 4 norms each and one in a projection: 15. FPN: 4 inner, 4 layer, 1 extra: 9.
    # FCOS: two towers of four on five levels: 40.
    assert count == 15 + 9 + 40
    assert not any(name.startswith(("backbone.stages.stem", "backbone.stages.stage1")) for name in private)
    everywhere = small("fcos")
    pool_dynamically(everywhere)
    assert privatise_norms(everywhere, everywhere=True) == count + 5  # the stem's and stage 1's four


def test_a_layer_in_two_places_stays_one_layer(small, batch):
    """A norm that two places share is one layer with one set of copies: its statistics come from both."""
    detector = small("fcos")
    stage = detector.backbone.stages["stage3"]
    stage[1].bn1 = stage[1].bn2
    switch = pool_dynamically(detector)
    before = len([m for m in detector.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)])
    count = privatise_norms(detector)
    assert stage[1].bn1 is stage[1].bn2
    assert isinstance(stage[1].bn1, SwitchedNorm)
    assert count == len([m for m in detector.modules() if isinstance(m, SwitchedNorm)])
    copies = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    assert len(copies) - before == count * (len(switch.factors) - 1)
    for factor in switch.factors:
        twin = at_factor(detector, factor)
        assert twin.backbone.stages["stage3"][1].bn1 is twin.backbone.stages["stage3"][1].bn2


def test_a_factor_trains_its_own_copies_and_all_convolutions(small, batch):
    detector = small("reppoints").train()
    switch = pool_dynamically(detector)
    privatise_norms(detector)
    untouched = {k: v.clone() for k, v in detector.state_dict().items()}
    with switch.use(0.33):
        torch.stack(list(detector.losses(*batch).values())).sum().backward()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1)
    optimizer.step()
    after = detector.state_dict()
    assert switch.factors.index(0.33) == 1
    changed = {k for k in after if not torch.equal(after[k], untouched[k])}
    copies = {k for k in changed if ".copies." in k}
    assert copies
    assert all(".copies.1." in k for k in copies)
    assert "backbone.stages.stage2.0.bn1.copies.1.running_mean" in copies
    assert "neck.layer.0.1.copies.1.weight" in copies
    assert "backbone.stages.stage2.0.conv1.weight" in changed
    assert "backbone.stages.stem.1.running_mean" in changed  # shared: it follows every factor


def test_one_factor_alone_is_a_plain_detector_that_folds(small, batch):
    detector = small("retinanet")
    switch = pool_dynamically(detector)
    privatise_norms(detector)
    for module in detector.modules():
        if isinstance(module, SwitchedNorm):
            for copy in module.copies:
                for tensor in copy.parameters():
                    nn.init.uniform_(tensor, 0.5, 1.5)
    outputs = []
    for factor in switch.factors:
        twin = at_factor(detector, factor)
        assert not any(isinstance(m, SwitchedNorm) for m in twin.modules())
        with torch.no_grad():
            folded = fold_norms(twin, lambda twin=twin: twin.pyramid(batch[0])).folded
            assert len(folded) == 20  # every batch norm of the backbone: 5 before the resize, 15 after
            with switch.use(factor):
                expected = detector.pyramid(batch[0])
            for a, b in zip(twin.pyramid(batch[0]), expected, strict=True):
                assert_close(a, b, atol=1e-4, rtol=1e-4)
            outputs.append(expected[0])
    assert switch.active == 0.5
    assert float((outputs[0] - outputs[1]).abs().max()) > 0.01


def test_what_cannot_have_private_norms(small):
    with pytest.raises(UserError, match="no dynamic pooling"):
        privatise_norms(small("fcos"))
    bare = small("faster_rcnn", "mobilenet_v1_coral")  # its norms are folded
    pool_dynamically(bare)
    with pytest.raises(UserError, match=r"no norm layers to make private after the resize.*norm: bn or gn"):
        privatise_norms(bare)
    frozen = small("faster_rcnn")
    freeze_norms(frozen.backbone)
    pool_dynamically(frozen)
    with pytest.raises(UserError, match="all norm layers are frozen"):
        privatise_norms(frozen)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_losses_are_those_of_each_factor(kind, small, batch):
    detector = small(kind)
    switch = pool_dynamically(detector)
    privatise_norms(detector)
    torch.manual_seed(0)
    runs: list[str] = []
    handle = detector.backbone.stages["stem"].register_forward_hook(lambda *_: runs.append("stem"))  # type: ignore[union-attr]
    mixed = mixed_losses(detector, *batch)
    handle.remove()
    assert runs == ["stem"]
    torch.manual_seed(0)  # a two-stage head draws samples
    for factor in switch.factors:
        with switch.use(factor):
            alone = detector.losses(*batch)
        assert list(alone) == list(mixed[factor])
        for name, value in alone.items():
            assert_close(mixed[factor][name], value, atol=1e-5, rtol=1e-5)


def coco_reppoints(stride: Stride) -> Detector:
    with torch.device("meta"):
        model = build("reppoints:resnet50", levels="3-7", classes=[f"class{i}" for i in range(80)])
    assert isinstance(model, Detector)
    freeze_stages(model.backbone, 1)  # type: ignore[arg-type]
    pool_dynamically(model, stride=stride)
    return model


@pytest.fixture(scope="module")
def coco_detector() -> Detector:
    return coco_reppoints("replaced")


def test_cost_of_each_factor_with_the_stride_kept():
    """At 0.5 it is the static RepPoints, whose 168.25 the paper prints."""
    costs = profile_factors(coco_reppoints("kept"), (796, 1124))
    assert {f: round(p.gflops, 1) for f, p in costs.items()} == {0.5: 168.2, 0.33: 81.8, 0.25: 53.3}


def test_cost_of_each_factor(coco_detector):
    """Between the cheapest and the dearest lies the paper's 107.80; its own 168.25 counts the strided first 1x1."""
    costs = profile_factors(coco_detector, (796, 1124))
    assert {f: round(p.gflops, 1) for f, p in costs.items()} == {0.5: 166.9, 0.33: 81.2, 0.25: 52.4}
    # p(.5) x 166.861 + p(.33) x 81.166 with p(.5) = 0.31: 51.727 + 56.005.
    assert mean_gflops(costs, {0.5: 0.31, 0.33: 0.69}) == pytest.approx(107.732, abs=0.01)
    with pytest.raises(ValueError, match="sum to 1"):
        mean_gflops(costs, {0.5: 0.5})


def test_parameters_of_private_norms(coco_detector):
    """2 x (50,176 + 7,168): batch norms of stages 2-4, group norms of neck and head, two more copies of each."""
    before = sum(p.numel() for p in coco_detector.parameters())
    assert privatise_norms(coco_detector) == 42 + 8 + 6
    assert sum(p.numel() for p in coco_detector.parameters()) - before == 114_688
