"""Mixed training: the gradients of the summed loss, with the memory of one factor."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.backbones.freezing import freeze_stages
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.mixed import MixedTraining
from flyspeck.models.dynamic.norms import privatise_norms
from flyspeck.models.dynamic.pooling import Stride, pool_dynamically
from flyspeck.models.profile import _PeakMemory
from flyspeck.types import ImageBatch


def converted(detector: Detector) -> Detector:
    pool_dynamically(detector)
    privatise_norms(detector)
    return detector


@pytest.mark.parametrize("kind", ["retinanet", "reppoints", "faster_rcnn"])
@pytest.mark.parametrize("frozen", [False, True])
def test_one_after_another_gives_the_same_gradients(kind, frozen, small, batch):
    results = []
    for sequential in (False, True):
        detector = converted(small(kind))
        if frozen:
            freeze_stages(detector.backbone, 1)
        torch.manual_seed(0)
        losses = MixedTraining(detector, sequential=sequential)(*batch)
        (2 * torch.stack(list(losses.values())).sum()).backward()
        results.append((losses, dict(detector.named_parameters())))
    (losses, expected), (again, parameters) = results
    assert list(losses) == list(again)
    assert "classification at 0.33" in losses or kind == "faster_rcnn"
    for name, value in losses.items():
        assert_close(again[name].detach(), value.detach(), atol=1e-5, rtol=1e-5)
    for name, parameter in expected.items():
        assert (parameter.grad is None) == (parameters[name].grad is None), name
        if parameter.grad is not None:
            size = float(parameter.grad.abs().max())
            assert_close(parameters[name].grad, parameter.grad, atol=1e-4 * max(size, 1e-3), rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", ["retinanet", "reppoints", "faster_rcnn", "mobilenet"])
def test_one_after_another_gives_the_same_gradients_in_bf16(kind, small, batch):
    """Under autocast weights are cast once for all factors, and the shared map comes as bf16: the sums still agree.

    bf16 has 8 bits: a gradient that is summed in another order may differ by some hundredths of its size, most where the
    processor has no such instructions; one that lacks a factor is off by a third.
    """
    results = []
    for sequential in (False, True):
        detector = converted(small(kind) if kind != "mobilenet" else mobile())
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            losses = MixedTraining(detector, sequential=sequential)(*batch)
            total = torch.stack(list(losses.values())).sum()
        total.backward()
        results.append((losses, dict(detector.named_parameters())))
    (losses, expected), (again, parameters) = results
    for name, value in losses.items():
        assert_close(again[name].detach(), value.detach(), atol=1e-5, rtol=1e-5)  # the same passes, forwards
    for name, parameter in expected.items():
        found = parameters[name].grad
        assert (parameter.grad is None) == (found is None), name
        if parameter.grad is not None:
            assert found.dtype == parameter.dtype == torch.float32
            assert torch.isfinite(found).all()
            size = float(parameter.grad.norm())
            assert float((found - parameter.grad).norm()) <= 0.05 * max(size, 1e-3), name


def mobile() -> Detector:
    """Strided depthwise convolutions, which have a backward pass of their own in bf16."""
    torch.manual_seed(0)
    detector = build("retinanet:mobilenet_v2", width=0.25, channels=16, classes=("a", "b"))
    assert isinstance(detector, Detector)
    return detector.train()


def peak(factors: tuple[float, ...], stride: Stride, *, sequential: bool, batch) -> int:
    torch.manual_seed(0)
    detector = build("fcos:resnet18", width=0.125, channels=32, classes=("a", "b"))
    assert isinstance(detector, Detector)
    pool_dynamically(detector, factors, stride=stride)
    privatise_norms(detector)
    objective = MixedTraining(detector, sequential=sequential)
    images, targets = batch
    with _PeakMemory() as memory:
        torch.stack(list(objective(images, targets).values())).sum().backward()
    return memory.peak


# With its stride kept a half needs no resized map, the other two do.
@pytest.mark.parametrize(("stride", "bound"), [("replaced", 1.15), ("kept", 1.2)])
def test_memory_does_not_grow_with_the_factors(stride, bound, batch):
    """Three factors that cost alike: kept together they need much more than one, one after another hardly more."""
    images, targets = batch
    large = (ImageBatch(images.pixels.repeat(2, 1, 1, 1), images.sizes * 2), [*targets, *targets])
    factors = (0.5, 0.49, 0.48)
    one = peak((0.5,), stride, sequential=False, batch=large)
    together = peak(factors, stride, sequential=False, batch=large)
    after_another = peak(factors, stride, sequential=True, batch=large)
    assert together > 1.7 * one
    assert after_another < bound * one


def test_a_plain_detector_is_refused(small):
    with pytest.raises(UserError, match="no dynamic pooling"):
        MixedTraining(small("fcos"))
