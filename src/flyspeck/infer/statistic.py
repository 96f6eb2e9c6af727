"""A first look by the statistic branch of a factor predictor (DPNet, sec. III-C): how many objects it expects in a window.

The branch reads the map before the resize, so a look costs the network's first stages at full size: far more than the network of
`flyspeck tune look`, but nothing has to be trained.
"""

from __future__ import annotations

import numpy as np
import torch

from flyspeck.errors import UserError
from flyspeck.infer.skip import FirstLook
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.pooling import run_prefix
from flyspeck.models.dynamic.predictor import STATISTICS
from flyspeck.models.dynamic.router import FactorRouter, FoldedFactors

_COUNT = STATISTICS.index("count")


def has_statistics(model: object) -> bool:
    """Whether a model has a predictor with such a branch."""
    return isinstance(model, TorchModel) and isinstance(model.detector.router, FactorRouter)


class StatisticLook(FirstLook):
    """A window's score is the expected number of objects, at most 1."""

    shrink = 1

    def __init__(self, model: TorchModel) -> None:
        detector = model.detector
        if not isinstance(detector, FoldedFactors) or detector.router is None:
            raise UserError("the detector has no factor predictor", where="skip", fix="flyspeck tune look RUN")
        first, router = detector.twins[0], detector.router
        assert isinstance(first, Detector)
        self._model, self._first, self._predictor = model, first, router.predictor

    @torch.inference_mode()
    def __call__(self, windows: list[np.ndarray]) -> np.ndarray:
        """See `FirstLook`."""
        _, shared = run_prefix(self._first, self._model.to_images(windows))
        statistics = self._predictor(shared.float())[1]
        return statistics[:, _COUNT].expm1().clamp(0, 1).cpu().numpy()
