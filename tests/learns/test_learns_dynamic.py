"""Mixed training with private norms: one detector finds the squares at every factor."""

from __future__ import annotations

from flyspeck.models.dynamic.mixed import MixedTraining
from flyspeck.models.dynamic.norms import privatise_norms
from flyspeck.models.dynamic.pooling import pool_dynamically
from flyspeck.models.heads.retinanet import retinanet
from flyspeck.models.layers import group_norm


class Mixed:
    """What `learn` asks of a detector, with the losses of mixed training."""

    def __init__(self, detector) -> None:
        self.detector, self.objective = detector, MixedTraining(detector)
        self.losses = self.objective

    def __getattr__(self, name: str):
        return getattr(self.detector, name)


def test_every_factor_learns(learn, score, small_backbone, squares, pixel_norm):
    detector = retinanet(
        small_backbone(), depth=1, classes=squares.classes, pixel_norm=pixel_norm, channels=32, norm=group_norm
    )
    switch = pool_dynamically(detector, (0.5, 0.33))
    privatise_norms(detector)
    assert learn(Mixed(detector), steps=60) > 0.8
    with switch.use(0.33):
        assert score(detector) > 0.7
