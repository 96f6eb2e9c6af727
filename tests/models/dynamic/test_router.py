"""A detector that chooses its factor: the same detections whatever the batch, folded or not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.norms import SwitchedNorm, at_factor, privatise_norms
from flyspeck.models.dynamic.pooling import pool_dynamically
from flyspeck.models.dynamic.predictor import Decision
from flyspeck.models.dynamic.router import FactorRouter, FoldedFactors, attach_predictor
from flyspeck.types import ImageBatch
from same_detections import assert_same_detections


@pytest.fixture(params=["retinanet", "reppoints", "faster_rcnn"])
def routed(request: pytest.FixtureRequest, small: Callable[..., Detector]) -> Detector:
    """Three factors with private norms that differ, and a predictor whose choice depends on the image's brightness."""
    detector = small(request.param)
    pool_dynamically(detector)
    privatise_norms(detector)
    for module in detector.modules():
        if isinstance(module, SwitchedNorm):
            for copy in module.copies:
                torch.nn.init.uniform_(copy.weight, 0.8, 1.2)  # type: ignore[arg-type]
    attach_predictor(detector)
    return detector.eval()


@pytest.fixture
def images() -> ImageBatch:
    generator = torch.Generator().manual_seed(3)
    return ImageBatch(torch.rand(5, 3, 96, 128, generator=generator), ((96, 128),) * 5)


def fix_choices(detector: Detector, images: ImageBatch, probabilities: list[list[float]]) -> None:
    """Lets the router say `probabilities` of the images, told apart by their first pixel."""
    router = detector.router
    assert isinstance(router, FactorRouter)
    known = {float(p[0, 0, 0]): row for p, row in zip(images.pixels, probabilities, strict=True)}
    router.probabilities = lambda shared, images: np.array(  # type: ignore[method-assign]
        [known[float(p[0, 0, 0])] for p in images.pixels]
    )


CHOICES = [[0.9, 0.1, 0.1], [0.9, 0.2, 0.9], [0.1, 0.9, 0.1], [0.9, 0.9, 0.9], [0.9, 0.1, 0.1]]


def test_a_batch_gives_what_its_images_give_one_by_one(routed: Detector, images: ImageBatch) -> None:
    fix_choices(routed, images, CHOICES)
    together = routed.detect(images)
    router = routed.router
    assert isinstance(router, FactorRouter)
    assert_array_equal(router.taken, [2, 1, 2])
    rule = routed.head.suppression
    for i, factor in enumerate([0.5, 0.25, 0.33, 0.25, 0.5]):
        one = ImageBatch(images.pixels[i : i + 1], images.sizes[i : i + 1])
        for found in (routed.detect(one), at_factor(routed, factor).detect(one)):
            assert_same_detections(found, [together[i]], box_px=1e-2, score=1e-5, rule=rule)


def test_probabilities_do_not_depend_on_the_padding(routed: Detector, images: ImageBatch) -> None:
    """An image of 64x96 padded to 96x128, and alone."""
    from flyspeck.models.dynamic.pooling import run_prefix

    router = routed.router
    assert isinstance(router, FactorRouter)
    pixels = images.pixels[:1, :, :64, :96]
    padded = torch.zeros(2, 3, 96, 128)
    padded[0, :, :64, :96], padded[1] = pixels[0], images.pixels[1]
    together = ImageBatch(padded, ((64, 96), (96, 128)))
    alone = ImageBatch(pixels, ((64, 96),))
    with torch.no_grad():
        a = router.probabilities(run_prefix(routed, together)[1], together)
        b = router.probabilities(run_prefix(routed, alone)[1], alone)
    assert a.shape == (2, 3)
    assert_allclose(a[0], b[0], atol=0.02)  # the border's cells see the padding


def test_folded_factors_detect_the_same(routed: Detector, images: ImageBatch) -> None:
    folded = FoldedFactors(routed).eval()
    assert not any(isinstance(m, SwitchedNorm) for m in folded.modules())
    kept = [m for t in folded.twins for m in t.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # type: ignore[union-attr]
    assert not kept
    with torch.no_grad():
        expected, found = routed.detect(images), folded.detect(images)
    assert_same_detections(found, expected, box_px=1e-2, score=1e-5, rule=routed.head.suppression)
    assert isinstance(routed.router, FactorRouter)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in routed.router.predictor.modules())  # the given one is whole


def test_the_threshold_moves_the_choice_without_training(routed: Detector, images: ImageBatch) -> None:
    router = routed.router
    assert isinstance(router, FactorRouter)
    router.decision = Decision("cheapest", 0.0)
    routed.detect(images)
    assert_array_equal(router.taken, [0, 0, 5])
    router.decision = Decision("cheapest", 1.1)
    routed.detect(images)
    assert_array_equal(router.taken, [5, 0, 5])
