"""The section `distill` of a recipe: whom the student learns from, and what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from flyspeck.options import Count, Options, Positive, Share, Weight
from flyspeck.train.distill.method_names import METHOD_TERMS, MethodName

LevelWeight = Weight | list[Weight]
"""One weight for all levels, or one for each level, finest first."""


class FinetuneConfig(Options):
    """The last stage: ground truth only, from the distilled weights."""

    epochs: int = Field(default=0, ge=0, le=1_000_000)
    """0 leaves the stage out. Of `train.minutes` the two stages get their shares, as their epochs stand to each other."""
    lr: Positive = 0.1
    """Factor on `train.lr`."""


class DistillConfig(Options):
    """L_total = L_detection + lambda * sum over levels of (spatial + semantic + contextual), each with its weight."""

    teacher: str = Field(json_schema_extra={"format": "path"})
    """A recipe (.yaml, trained first), a run folder or a weights file."""
    method: MethodName = "hierarchical"
    """`none` learns from the ground truth alone; `response` from the teacher's class scores and boxes; `single` from one
    pyramid level, by the spatial term; `hierarchical` from all levels by all terms. From all levels by the rules of other papers:
    `fine_grained` (cells near objects), `attention_guided` (attention, cells weighed by it, relations), `overhaul` (what the
    teacher does not suppress), `fgd` (objects, background, attention, context), `decoupled` (objects and background apart),
    `instance_conditional` (where a decoder looks for each object), `relational` (of cells, and of objects)."""
    weight: Weight = 1.0
    """Lambda: the weight of all that comes from the teacher."""
    levels: list[Annotated[int, Field(ge=0, le=20)]] | None = None
    """Pyramid levels of the student to compare (2 is stride 4); null: P2 to P5 as far as both have them, for `single` the
    finest."""
    match: Literal["stride", "level"] = "stride"
    """Which level of the teacher belongs to one of the student: that of the same stride in the student's pixels, or that of
    the same number, resized. They differ where the teacher sees enlarged images."""
    spatial: LevelWeight = 1.0
    """Alpha: difference of the maps, cell by cell."""
    semantic: LevelWeight = 1.0
    """Beta: difference of the attention maps, over space and over channels."""
    contextual: LevelWeight = 1.0
    """Gamma: difference of pooled regions, and of the relations between them."""
    terms: dict[str, LevelWeight] | None = None
    """Weights of the terms of another paper's method, by name: `imitation` of `fine_grained`; `attention`, `masked`, `non_local`
    of `attention_guided`; `margin` of `overhaul`; `objects`, `background`, `attention`, `global` of `fgd`; `objects` and
    `background` of `decoupled`; `instances`, `auxiliary` of `instance_conditional`; `pixels`, `objects` of `relational`. What is
    not named keeps its own: 0.5 for `background` of `fgd`, 1 for the others."""
    imitation_threshold: Share = 0.5
    """Psi of `fine_grained`: a cell is learnt where an anchor overlaps an object by more than this share of the best overlap."""
    attention_temperature: Positive = 0.5
    """Of the attention that weighs cells and channels (`attention_guided`, `fgd`): the lower, the fewer of them count."""
    foreground: Share = 0.5
    """Share of the spatial term that the cells of objects have together; 0: every cell counts alike."""
    size_power: float = Field(default=0.0, ge=-4, le=4)
    """An object's share of the foreground goes with size^-power: 0 counts all objects alike, above 0 the tiny ones more."""
    attention_weighted: bool = False
    """Weigh the cells of the spatial term by the teacher's attention."""
    adaptive: Literal["none", "uncertainty", "gradient_norm"] = "none"
    """Weights that follow training: learnt uncertainty of each term, or gradients of one length."""
    temperature: Positive = 2.0
    """Of class scores that are a softmax (`response`)."""
    sigmoid_temperature: Positive = 1.0
    """Of scores that are sigmoids, objectness included (`response`). Above 1, the tens of thousands of anchors that show
    background outweigh the objects."""
    regions: Count = 128
    """The teacher's best proposals an image, which both box heads look at (`response` of two-stage detectors)."""
    teacher_scale: float | None = Field(default=None, gt=0, le=100)
    """The teacher sees the image enlarged so much; null: as much as it was trained on, relative to the student."""
    finetune: FinetuneConfig = FinetuneConfig()
    """The last stage, on the ground truth alone."""
    cache: str | None = Field(default=None, json_schema_extra={"format": "path"})
    """Folder for the teacher's outputs on the training set, kept in half precision; null computes them in every step."""
    cache_limit_gb: Positive = 8.0
    """A cache that would be larger is refused before it is begun."""

    @field_validator("levels")
    @classmethod
    def _levels(cls, levels: list[int] | None) -> list[int] | None:
        if levels is not None and (not levels or sorted(set(levels)) != levels):
            raise ValueError("name each level once, finest first, such as [2, 3, 4, 5]")
        return levels

    @model_validator(mode="after")
    def _pairs(self) -> DistillConfig:
        if self.method == "single" and self.levels is not None and len(self.levels) != 1:
            raise ValueError(f"method single compares one level, got {self.levels}")
        for name in ("spatial", "semantic", "contextual"):
            value = getattr(self, name)
            if isinstance(value, list) and (self.levels is None or len(value) != len(self.levels)):
                raise ValueError(f"{name} has {len(value)} weights: name as many levels")
        return self

    @model_validator(mode="after")
    def _terms(self) -> DistillConfig:
        own = METHOD_TERMS.get(self.method)
        for name, value in (self.terms or {}).items():
            if own is None:
                raise ValueError(f"method {self.method} has no weights under distill.terms ({name})")
            if name not in own:
                raise ValueError(f"method {self.method} has no term '{name}': it has {', '.join(own)}")
            if isinstance(value, list) and (self.levels is None or len(value) != len(self.levels)):
                raise ValueError(f"terms.{name} has {len(value)} weights: name as many levels")
        return self
