"""What each score threshold is worth on a validation set: stored with a model, so that its scores can be used.

A score says nothing by itself: one detector's 0.3 is another's 0.7. With the curve of a validation set a threshold is asked for
by what it shall do: the best F1, a precision, or so many false positives an image. IoU 0.5, classes pooled, all sizes together,
the ignore rules of the run's protocol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.evaluate.ap import prepare
from flyspeck.evaluate.catalogue import protocol_named
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import INFINITE, APProtocol, Bin

KEY = "scores"
"""Of a run's description: its `ScoreCurve`."""
WITHOUT = 0.3
"""The threshold of a model that has no curve."""
_POINTS = 100
_ALL = Bin("all", 0.0, INFINITE)
_RULES = "auto (best F1), precision=0.9, false-positives=0.1 (an image), or a score from 0 to 1"


@dataclass(frozen=True)
class ScorePoint:
    """A threshold and what the detections from it on are like."""

    score: float
    precision: float
    recall: float
    false_positives: float
    """Mean over the images."""

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total > 0 else 0.0


@dataclass(frozen=True)
class ScoreCurve:
    """Thresholds from high to low."""

    points: tuple[ScorePoint, ...]
    images: int
    objects: int

    @property
    def best(self) -> ScorePoint:
        """That of the best F1, the highest of several."""
        return max(self.points, key=lambda point: (point.f1, point.score))

    def to_dict(self) -> dict[str, Any]:
        """For a description, as JSON."""
        columns = ("score", "precision", "recall", "false_positives")
        return {
            "images": self.images,
            "objects": self.objects,
            **{name: [getattr(point, name) for point in self.points] for name in columns},
        }

    @staticmethod
    def of(description: Mapping[str, Any]) -> ScoreCurve | None:
        """The curve in the description of a run, a weights file or an exported file; None where it has none.

        Raises UserError for one that is broken.
        """
        told = description.get(KEY)
        if not told:
            return None
        try:
            rows = zip(told["score"], told["precision"], told["recall"], told["false_positives"], strict=True)
            points = tuple(ScorePoint(*map(float, row)) for row in rows)
            return ScoreCurve(points, int(told["images"]), int(told["objects"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UserError(
                "what the model says of its scores cannot be read",
                where=KEY,
                fix="copy it again, or train or export it again",
            ) from None


@dataclass(frozen=True)
class ScoreRule:
    """How a score threshold is chosen."""

    kind: str = "auto"
    """`auto` (the best F1), `precision`, `false-positives`, or `score`."""
    value: float = 0.0

    @staticmethod
    def parse(text: str | float, *, where: str = "--score") -> ScoreRule:
        """`auto`, `precision=0.9`, `false-positives=0.1` or a number. Raises UserError for what is none of them."""
        if text == "auto":
            return ScoreRule()
        match = re.fullmatch(r"(?:(precision|false-positives)=)?(\d+\.?\d*|\.\d+)(?:e-?\d+)?", str(text).strip())
        value = float(str(text).partition("=")[2] or text) if match else -1.0
        kind = (match[1] or "score") if match else ""
        if not match or (kind != "false-positives" and value > 1):
            raise UserError(f"'{text}' is no score threshold", where=where, fix=_RULES)
        return ScoreRule(kind, value)

    def threshold(self, curve: ScoreCurve | None) -> ScorePoint | None:
        """The point of the curve that the rule asks for; None for a plain number, and for `auto` without a curve.

        Raises UserError where no score gives what is asked for.
        """
        if self.kind == "score" or (self.kind == "auto" and (curve is None or not curve.points)):
            return None
        if curve is None or not curve.points:
            raise UserError(
                f"the model has no scores of a validation set, from which {self.kind}={self.value:g} could be told",
                where="--score",
                fix="give a number, or train with a validation set",
            )
        if self.kind == "auto":
            return curve.best
        if self.kind == "precision":
            fits = [point for point in curve.points if point.precision >= self.value]
            most = f"a precision of at most {max(point.precision for point in curve.points):.3g}"
        else:
            fits = [point for point in curve.points if point.false_positives <= self.value]
            most = f"at least {min(point.false_positives for point in curve.points):.3g} false positives an image"
        if not fits:
            raise UserError(
                f"no score gave {self.kind}={self.value:g} on the validation set, which had {most}",
                where="--score",
                fix=_RULES,
            )
        return max(fits, key=lambda point: (point.recall, point.score))

    def reported(self, curve: ScoreCurve | None) -> tuple[float, str]:
        """The threshold, and a few words on where it comes from. Errors as for `threshold`."""
        point = self.threshold(curve)
        if point is not None:
            return point.score, f" ({self.words}: precision {point.precision:.2f}, recall {point.recall:.2f})"
        if self.kind == "score":
            return self.value, ""
        return WITHOUT, " (the model does not say which is best)"

    @property
    def words(self) -> str:
        """For people."""
        return "best F1 in validation" if self.kind == "auto" else f"{self.kind}={self.value:g} in validation"


def score_curve(annotations: Annotations, detections: DetectionTable, protocol: object) -> ScoreCurve:
    """The curve of detections on a set, under the ignore rules of `protocol` where it is an AP of COCO's kind.

    At most about 100 points: all where recall steps up, thinned, and that of the best F1.
    """
    rule = protocol if isinstance(protocol, APProtocol) else protocol_named("flyspeck")
    assert isinstance(rule, APProtocol)
    rule = replace(rule, bins=(_ALL,), ious=(0.5,), max_dets=(max(len(detections), 1),), affinity="iou")
    inputs = prepare(annotations, detections, rule)
    outcome, images = inputs.outcomes[_ALL.name, 0.5], max(len(annotations), 1)
    total = int(outcome.counted.sum())
    order = np.argsort(-inputs.found.scores, kind="stable")
    order = order[~outcome.ignored[order]]
    scores, hit = inputs.found.scores[order], outcome.hit[order]
    if not total or not len(scores):
        return ScoreCurve((), len(annotations), total)
    # A threshold takes all detections of one score or none, so only the last of a tie is a working point.
    last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])
    hits = np.cumsum(hit)[last]
    best = int(np.argmax(hits / (last + 1 + total)))
    kept = np.unique(np.r_[_spread(hits), best])
    points = [
        ScorePoint(
            score=float(scores[last[k]]),
            precision=round(float(hits[k] / (last[k] + 1)), 5),
            recall=round(float(hits[k] / total), 5),
            false_positives=round(float((last[k] + 1 - hits[k]) / images), 5),
        )
        for k in kept.tolist()
    ]
    return ScoreCurve(tuple(points), len(annotations), total)


def _spread(hits: np.ndarray) -> np.ndarray:
    """Rows of some hundred points: evenly over the objects found, and evenly over the rows."""
    wanted = np.linspace(hits[0], hits[-1], _POINTS // 2)
    return np.r_[
        np.searchsorted(hits, wanted).clip(0, len(hits) - 1), np.linspace(0, len(hits) - 1, _POINTS // 2).astype(int)
    ]
