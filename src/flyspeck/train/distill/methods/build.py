"""The methods of papers by their names in a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from flyspeck.models.detector import Detector
from flyspeck.train.distill.config import DistillConfig
from flyspeck.train.distill.levels import LevelPair
from flyspeck.train.distill.methods.attention_guided import AttentionGuidedTerms
from flyspeck.train.distill.methods.base import PaperTerms
from flyspeck.train.distill.methods.decoupled import DecoupledTerms
from flyspeck.train.distill.methods.fgd import FgdTerms
from flyspeck.train.distill.methods.fine_grained import FineGrainedTerms, anchors_of
from flyspeck.train.distill.methods.instance_conditional import InstanceTerms
from flyspeck.train.distill.methods.overhaul import OverhaulTerms
from flyspeck.train.distill.methods.relational import RelationalTerms


def build_paper_terms(
    config: DistillConfig, student: Detector, pairs: Sequence[LevelPair], *, wanted: Sequence[str]
) -> PaperTerms:
    """The terms `wanted` of the method that `config` names, between a student and a teacher that share `pairs` of levels."""
    if config.method == "fine_grained":
        anchors = anchors_of(student, pairs)
        return FineGrainedTerms(pairs, wanted=wanted, anchors=anchors, threshold=config.imitation_threshold)
    if config.method == "attention_guided":
        return AttentionGuidedTerms(pairs, wanted=wanted, temperature=config.attention_temperature)
    if config.method == "overhaul":
        return OverhaulTerms(pairs, wanted=wanted)
    if config.method == "decoupled":
        return DecoupledTerms(pairs, wanted=wanted)
    if config.method == "instance_conditional":
        return InstanceTerms(pairs, wanted=wanted, classes=len(student.classes))
    if config.method == "relational":
        return RelationalTerms(pairs, wanted=wanted)
    assert config.method == "fgd", config.method
    return FgdTerms(pairs, wanted=wanted, temperature=config.attention_temperature)
