"""A batch split by factor gives what its images give one by one, in order."""

from __future__ import annotations

import pytest
import torch

from flyspeck.models.dynamic.norms import privatise_norms
from flyspeck.models.dynamic.pooling import pool_dynamically, run_prefix
from flyspeck.models.dynamic.split import detect_groups
from flyspeck.types import ImageBatch
from same_detections import assert_same_detections


def images() -> ImageBatch:
    """Five images, two of them smaller than the batch."""
    pixels = torch.rand(5, 3, 96, 128, generator=torch.Generator().manual_seed(2))
    return ImageBatch(pixels, ((96, 128), (80, 128), (96, 128), (96, 100), (96, 128)))


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "reppoints", "faster_rcnn"])
@pytest.mark.parametrize("factors", [(0.25, 0.5, 0.33, 0.25, 0.5), (0.33,) * 5])
def test_a_split_batch_is_its_images_one_by_one(kind, factors, small):
    detector = small(kind)
    switch = pool_dynamically(detector)
    privatise_norms(detector)
    batch = images()
    runs = []
    handle = detector.backbone.stages["stem"].register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        before, shared = run_prefix(detector, batch)
    places = [switch.place(factor) for factor in factors]
    found = detect_groups(dict.fromkeys(range(3), detector), before, shared, batch, places)
    handle.remove()
    assert len(runs) == 1
    assert sum(len(f) for f in found) > 20
    for i, factor in enumerate(factors):
        with switch.use(factor):
            alone = detector.detect(ImageBatch(batch.pixels[i : i + 1], batch.sizes[i : i + 1]))[0]
        assert found[i].image_size == alone.image_size == batch.sizes[i]
        rule = detector.head.suppression
        assert_same_detections([found[i]], [alone], box_px=0.02, score=1e-4, rule=rule)
