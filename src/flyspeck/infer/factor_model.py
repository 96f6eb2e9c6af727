"""An exported detector that chooses its factor (DPNet): a first graph, a graph for each factor, and this driver. No torch here.

`NAME.onnx` is what no factor changes, with the predictor: windows in; probabilities (B, m) and feature maps out.
`NAME.df0.5.onnx` and so on go on from there at one factor, whose private norms are folded into the convolutions. Windows take
their factor one by one: a batch of windows of different factors would have to be split anyway, and engines compile for a shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.errors import UserError
from flyspeck.infer.exported import Arrays, ExportedModel, Session


def factor_file(path: Path, factor: float) -> Path:
    """Where the graph of one factor lies, beside the first graph."""
    return path.with_name(f"{path.stem}.df{factor:g}{path.suffix}")


class FactorModel(ExportedModel):
    """`sessions` go on from `first`, one a factor, in the order of `description["factors"]["factors"]`, largest first."""

    def __init__(self, first: Session, sessions: Sequence[Session], description: Mapping[str, Any]) -> None:
        super().__init__(first.path, description)
        told = description["factors"]
        self._first, self._sessions = first, list(sessions)
        self.factors = tuple(float(factor) for factor in told["factors"])
        self._rule, self._threshold = str(told["rule"]), float(told["threshold"])
        self._always: int | None = None
        self._taken = np.zeros(len(self.factors), np.int64)

    @property
    def taken(self) -> dict[float, int]:
        """See `ExportedModel.taken`."""
        return dict(zip(self.factors, self._taken.tolist(), strict=True))

    def set_choice(self, *, quality: float | None = None, factor: float | None = None) -> None:
        """The probability that a factor must reach (0 the smallest everywhere, 1 the largest), or one factor for everything."""
        if quality is not None:
            if not 0 <= quality <= 1:
                raise UserError(f"a quality of {quality:g}", where="quality", fix="choose one from 0 to 1")
            # 1 is the largest factor for all, whatever the predictor says.
            self._rule, self._threshold = "cheapest", quality if quality < 1 else 1.001
        if factor is not None:
            if factor not in self.factors:
                known = ", ".join(f"{f:g}" for f in self.factors)
                raise UserError(f"no down-sampling factor {factor:g}", where="factor", fix=f"the model has {known}")
            self._always = self.factors.index(factor)

    def places(self, probabilities: np.ndarray) -> list[int]:
        """The place of each window's factor, from probabilities (B, m): see `models.dynamic.predictor.Decision`."""
        if self._always is not None:
            return [self._always] * len(probabilities)
        if self._rule == "argmax":
            return probabilities.argmax(axis=1).tolist()
        good = probabilities >= self._threshold
        smallest = probabilities.shape[1] - 1 - good[:, ::-1].argmax(axis=1)
        return np.where(good.any(axis=1), smallest, 0).tolist()

    def run(self, batch: np.ndarray) -> Arrays:
        """See `ExportedModel.run`."""
        probabilities, *maps = self._first.run([batch])
        places = self.places(probabilities)
        self._taken += np.bincount(places, minlength=len(self.factors))
        found = []
        for row, place in enumerate(places):
            rows = [np.ascontiguousarray(array[row : row + 1]) for array in (batch, *maps)]
            found.append(self._sessions[place].run(rows))
        boxes, scores, labels, counts = (list(column) for column in zip(*found, strict=True))
        longest = max(array.shape[1] for array in scores)
        # A small map at a small factor may have fewer candidates than the limit of detections.
        joined = [
            np.concatenate([_lengthened(array, longest) for array in column]) for column in (boxes, scores, labels)
        ]
        return joined[0], joined[1], joined[2], np.concatenate(counts)


def _lengthened(array: np.ndarray, length: int) -> np.ndarray:
    """`(1, D, ...)` to `(1, length, ...)`, filled with zeros."""
    if array.shape[1] == length:
        return array
    return np.pad(array, [(0, 0), (0, length - array.shape[1])] + [(0, 0)] * (array.ndim - 2))
