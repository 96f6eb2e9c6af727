"""L_total = L_detection + lambda L_KD, as an objective for the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flyspeck.models.detector import Detector
from flyspeck.train.distill.config import DistillConfig, LevelWeight
from flyspeck.train.distill.features import CellRule, FeatureTerms
from flyspeck.train.distill.levels import LevelPair, match_levels
from flyspeck.train.distill.method_names import METHOD_TERMS
from flyspeck.train.distill.methods.base import PaperTerms
from flyspeck.train.distill.methods.build import build_paper_terms
from flyspeck.train.distill.response import ResponseTerms, watched
from flyspeck.train.distill.teacher import Observe, Teacher, TeacherOutputs
from flyspeck.train.distill.weighting import WEIGHTINGS, Weighting
from flyspeck.train.meter import OBSERVED
from flyspeck.types import ImageBatch, Targets

RESPONSE_TERMS = ("class", "objectness", "anchors", "boxes", "centerness")
SIMILARITY_EVERY = 10
"""Steps between two comparisons of the maps; the last one is logged in between."""

OutputSource = Callable[[ImageBatch], TeacherOutputs]
"""A batch of images to the teacher's outputs: the teacher itself (`TeacherSource`), or a cache of them."""


class FeatureObjective(nn.Module):
    """The student's own losses and the weighted terms of its pyramid; logs the similarity of every level."""

    similarity: Tensor
    calls: Tensor

    def __init__(
        self,
        detector: Detector,
        terms: FeatureTerms | PaperTerms,
        source: OutputSource,
        *,
        weighting: Weighting,
        weight: float,
    ) -> None:
        super().__init__()
        self.detector, self.terms, self.weighting = detector, terms, weighting
        self.source, self.weight = source, weight
        self.register_buffer("similarity", torch.zeros(len(terms.pairs)))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The detection losses by name, each term over all levels (`kd_spatial`, …), and what is observed."""
        given = self.source(images)
        detector = self.detector
        losses, maps = detector.losses_and_pyramid(detector.backbone(detector.pixel_norm(images)), images, targets)
        found = self.terms(maps, given, images, targets)
        weighted = self.weighting(found, torch.stack([*losses.values()]).sum(), maps)
        by_term: dict[str, list[Tensor]] = {}
        for name, value in weighted.items():
            by_term.setdefault(name.rpartition(" ")[0], []).append(value)
        for term, parts in by_term.items():
            losses[f"kd_{term}"] = self.weight * torch.stack(parts).sum()
        if int(self.calls) % SIMILARITY_EVERY == 0:
            self.similarity.copy_(torch.stack([*self.terms.similarities(maps, given).values()]))
        self.calls += 1
        for pair, value in zip(self.terms.pairs, self.similarity.clone(), strict=True):
            losses[f"{OBSERVED}similarity_{pair.name}"] = value
        return losses


class ResponseObjective(nn.Module):
    """The student's own losses and the weighted terms of its final outputs."""

    def __init__(
        self, detector: Detector, terms: ResponseTerms, source: OutputSource, *, weighting: Weighting, weight: float
    ) -> None:
        super().__init__()
        self.detector, self.terms, self.weighting = detector, terms, weighting
        self.source, self.weight = source, weight

    def forward(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The detection losses by name, and `kd_class`, `kd_anchors`, … as the head has them."""
        given = self.source(images)
        detector = self.detector
        with watched(detector.head) as seen:
            losses, maps = detector.losses_and_pyramid(detector.backbone(detector.pixel_norm(images)), images, targets)
        found = self.terms(detector, seen, maps, given, images)
        weighted = self.weighting(found, torch.stack([*losses.values()]).sum(), maps)
        return {**losses, **{f"kd_{name}": self.weight * value for name, value in weighted.items()}}


def feature_terms(
    config: DistillConfig, student: Detector, teacher: Teacher
) -> tuple[FeatureTerms | PaperTerms, dict[str, float]]:
    """The terms of a method that compares pyramids, and the weight of each."""
    single = config.method == "single"
    pairs = match_levels(
        student.features,
        teacher.detector.features,
        wanted=config.levels,
        teacher_scale=teacher.scale,
        by=config.match,
        single=single,
    )
    given: dict[str, LevelWeight] = {"spatial": config.spatial}
    if config.method == "hierarchical":
        given |= {"semantic": config.semantic, "contextual": config.contextual}
    elif not single:
        given = {**METHOD_TERMS[config.method], **(config.terms or {})}
    weights = {
        f"{term} {pair.name}": weight
        for term, value in given.items()
        for pair, weight in zip(pairs, _by_level(value, pairs), strict=True)
        if weight > 0
    }
    if config.method in METHOD_TERMS:
        return build_paper_terms(config, student, pairs, wanted=list(weights)), weights
    rule = CellRule(config.foreground, config.size_power, config.attention_weighted)
    return FeatureTerms(pairs, wanted=list(weights), rule=rule), weights


def response_terms(
    config: DistillConfig, student: Detector, teacher: Teacher
) -> tuple[ResponseTerms, dict[str, float]]:
    """The terms of the method `response`, and the weight of each: all 1."""
    terms = ResponseTerms(
        student,
        teacher.detector,
        temperature=config.temperature,
        sigmoid_temperature=config.sigmoid_temperature,
        regions=config.regions,
        teacher_scale=teacher.scale,
    )
    return terms, dict.fromkeys(RESPONSE_TERMS, 1.0)


def build_objective(
    config: DistillConfig, student: Detector, teacher: Teacher, make_source: Callable[[Observe], OutputSource]
) -> FeatureObjective | ResponseObjective:
    """The objective of a recipe's `distill`, for every method but `none`.

    `make_source` gets what is to be observed of the teacher and returns where it comes from. Raises UserError for pyramids
    without a common level, heads that cannot be compared, and classes that do not meet.
    """
    weighting = WEIGHTINGS[config.adaptive]
    terms, weights = terms_of(config, student, teacher)
    source = make_source(terms.observe)
    if isinstance(terms, ResponseTerms):
        return ResponseObjective(student, terms, source, weighting=weighting(weights), weight=config.weight)
    return FeatureObjective(student, terms, source, weighting=weighting(weights), weight=config.weight)


def terms_of(
    config: DistillConfig, student: Detector, teacher: Teacher
) -> tuple[FeatureTerms | PaperTerms | ResponseTerms, dict[str, float]]:
    """The terms of a recipe's method and the weight of each. Raises UserError for a pair that cannot be compared."""
    if config.method == "response":
        return response_terms(config, student, teacher)
    return feature_terms(config, student, teacher)


def _by_level(value: LevelWeight, pairs: Sequence[LevelPair]) -> list[float]:
    return list(value) if isinstance(value, list) else [value] * len(pairs)
