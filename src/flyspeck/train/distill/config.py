"""The section `distill` of a recipe: whom the student learns from, and what."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Weight = float | list[float]
"""One weight for all levels, or one for each level, finest first."""


class FinetuneConfig(BaseModel):
    """The last stage: ground truth only, from the distilled weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=0, ge=0)
    """0 leaves the stage out."""
    lr: float = Field(default=0.1, gt=0)
    """Factor on `train.lr`."""


class DistillConfig(BaseModel):
    """L_total = L_detection + lambda * sum over levels of (spatial + semantic + contextual), each with its weight."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str
    """A recipe (.yaml, trained first), a run folder or a weights file."""
    method: Literal["none", "response", "single", "hierarchical"] = "hierarchical"
    """`none` learns from the ground truth alone; `response` from the teacher's class scores and boxes; `single` from one
    pyramid level, by the spatial term; `hierarchical` from all levels by all terms."""
    weight: float = Field(default=1.0, ge=0)
    """Lambda: the weight of all that comes from the teacher."""
    levels: list[int] | None = None
    """Pyramid levels of the student to compare (2 is stride 4); None: P2 to P5 as far as both have them, for `single` the
    finest."""
    match: Literal["stride", "level"] = "stride"
    """Which level of the teacher belongs to one of the student: that of the same stride in the student's pixels, or that of
    the same number, resized. They differ where the teacher sees enlarged images."""
    spatial: Weight = 1.0
    """Alpha: difference of the maps, cell by cell."""
    semantic: Weight = 1.0
    """Beta: difference of the attention maps, over space and over channels."""
    contextual: Weight = 1.0
    """Gamma: difference of pooled regions, and of the relations between them."""
    foreground: float = Field(default=0.5, ge=0, le=1)
    """Share of the spatial term that the cells of objects have together; 0: every cell counts alike."""
    size_power: float = Field(default=0.0, ge=-4, le=4)
    """An object's share of the foreground goes with size^-power: 0 counts all objects alike, above 0 the tiny ones more."""
    attention_weighted: bool = False
    """Weigh the cells of the spatial term by the teacher's attention."""
    adaptive: Literal["none", "uncertainty", "gradient_norm"] = "none"
    """Weights that follow training: learnt uncertainty of each term, or gradients of one length."""
    temperature: float = Field(default=2.0, gt=0)
    """Of class scores that are a softmax (`response`)."""
    sigmoid_temperature: float = Field(default=1.0, gt=0)
    """Of scores that are sigmoids, objectness included (`response`). Above 1, the tens of thousands of anchors that show
    background outweigh the objects."""
    regions: int = Field(default=128, ge=1)
    """The teacher's best proposals an image, which both box heads look at (`response` of two-stage detectors)."""
    teacher_scale: float | None = Field(default=None, gt=0)
    """The teacher sees the image enlarged so much; None: as much as it was trained on, relative to the student."""
    finetune: FinetuneConfig = FinetuneConfig()
    cache: str | None = None
    """Folder for the teacher's outputs on the training set, kept in half precision; None computes them in every step."""
    cache_limit_gb: float = Field(default=8.0, gt=0)
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
            for weight in value if isinstance(value, list) else [value]:
                if weight < 0:
                    raise ValueError(f"{name} has the weight {weight}; weights are 0 or more")
            if isinstance(value, list) and (self.levels is None or len(value) != len(self.levels)):
                raise ValueError(f"{name} has {len(value)} weights: name as many levels")
        return self
