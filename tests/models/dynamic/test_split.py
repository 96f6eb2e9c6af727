"""A batch split by factor gives what its images give one by one, in order."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.dynamic.norms import privatise_norms
from flyspeck.models.dynamic.pooling import pool_dynamically
from flyspeck.models.dynamic.split import detect_split
from flyspeck.types import ImageBatch


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
    # Low bars, so that random weights find something.
    rule = detector.head.suppression
    detector.head.suppression = type(rule)(score=0.001, iou=rule.iou, max_detections=50)
    batch = images()
    runs = []
    handle = detector.backbone.stages["stem"].register_forward_hook(lambda *_: runs.append(1))
    found = detect_split(detector, batch, factors)
    handle.remove()
    assert len(runs) == 1
    assert sum(len(f) for f in found) > 20
    for i, factor in enumerate(factors):
        with switch.use(factor):
            alone = detector.detect(ImageBatch(batch.pixels[i : i + 1], batch.sizes[i : i + 1]))[0]
        assert found[i].image_size == alone.image_size == batch.sizes[i]
        assert len(found[i]) == len(alone)
        assert_close(torch.from_numpy(found[i].scores), torch.from_numpy(alone.scores), atol=1e-4, rtol=1e-4)
        # Scores that tie may come in another order: compare as sets of rows.
        mine, theirs = (torch.from_numpy(d.boxes).sort(0).values for d in (found[i], alone))
        assert_close(mine, theirs, atol=1e-2, rtol=1e-3)


def test_factors_that_do_not_fit_the_batch(small):
    detector = small("fcos")
    pool_dynamically(detector)
    with pytest.raises(ValueError, match="2 factors for 5 images"):
        detect_split(detector, images(), (0.5, 0.5))
    with pytest.raises(UserError, match=r"no down-sampling factor 0.4"):
        detect_split(detector, images(), (0.5, 0.4, 0.5, 0.5, 0.5))
