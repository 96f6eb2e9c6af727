"""The section `dynamic` of a recipe: DPNet's dynamic pooling and its predictor."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flyspeck.options import Count, Options, Positive, Seed, Weight

Factor = Annotated[float, Field(gt=0, le=1)]
"""Side of a map after the resize over its side before."""


class PredictorConfig(Options):
    """DPNet's factor predictor (DFP), trained on the frozen detector when its training has ended."""

    guidance: bool = True
    """Labels from the guidance loss (Algorithm 2); False: from the detector's own losses."""
    positives: Literal["best", "matched"] = "best"
    """Of the guidance loss: `best`, the prediction that fits an object best before suppression, however little; `matched`, only
    one that survives suppression and overlaps the object (IoU) by at least 0.5."""
    folds: int = Field(default=1, ge=1, le=100)
    """Labels from held-out images (cross-fit): so many more detectors are trained, each without one part of the training images,
    and label that part. 1: the detector labels the images that it has learnt itself."""
    ratio: float = Field(default=1.1, ge=1)
    """T: a factor is good enough where its loss is at most so many times the least (Eq. 10)."""
    slack: Weight | None = None
    """Takes the place of `ratio`: good enough is up to so much more in the sum over the image's objects. AP counts objects
    and not images, so this beats random choices where Eq. 10 hardly does (docs/papers/dpnet.md); 1.0 is a good start."""
    widths: list[Count] | None = Field(default=None, min_length=1)
    """Channels of the blocks; null fits them to the host (128, 128, 256, 256 on a ResNet-50)."""
    pool: Count = 4
    """The map is average-pooled by this before the predictor."""
    statistics: bool = True
    """Learn the statistic branch too."""
    weight: Positive = 1.0
    """lambda: the factors' loss against the statistics'."""
    rule: Literal["cheapest", "argmax"] = "cheapest"
    """The smallest factor that is probably good enough (the paper's aim), or the most probable one (its Eq. 4)."""
    threshold: Weight = 0.5
    """Of `cheapest`: the probability from which a factor is good enough."""
    epochs: Count = 12
    """Passes over the images. A few hundred are learnt by heart in 40."""
    batch_size: int = Field(default=32, ge=2, le=1_000_000)
    """Images per step."""
    lr: Positive = 0.001
    """Learning rate of AdamW."""
    weight_decay: Weight = 0.01
    """Of AdamW."""
    seed: Seed = 0
    """Of the first weights and the order of the images."""


class DynamicConfig(Options):
    """Dynamic pooling (DPNet): a stage's stride becomes a resize by a factor, and one detector serves all factors."""

    factors: list[Factor] = Field(default=[0.5, 0.33, 0.25], min_length=1)
    """Down-sampling factors; 0.5 is the stride of 2."""
    default: Factor = 0.5
    """The factor that acts where nobody chooses; a `single` training learns at this one."""
    stage: str = "stage2"
    """The stage before which maps are resized."""
    stride: Literal["kept", "replaced"] = "kept"
    """`kept`: resize by twice the factor in front of the strided block, so that 0.5 is exactly the static detector;
    `replaced`: the paper's, the stride becomes 1 and the resize is by the factor (costs 4-5 points in short trainings)."""
    norms: Literal["shared", "private", "all"] = "private"
    """Norm layers of each factor (ANM): `private` after the resize, `all` everywhere, `shared` none."""
    train: Literal["mixed", "single"] = "mixed"
    """`mixed`: every batch at all factors (MST); `single`: at the default alone. All factors are measured either way."""
    scale_clip: bool = True
    """Of a `mixed` training: `train.clip_grad` is meant for the gradient of one factor, so that of the sum may be as many times
    as large as there are factors. false: it bounds the sum."""
    predictor: PredictorConfig | None = None
    """Also train the predictor, at the end of the run, into its folder `dpnet`; `flyspeck dpnet fit` does it later."""

    @model_validator(mode="after")
    def _pairs(self) -> DynamicConfig:
        if self.train == "single" and self.norms != "shared":
            raise ValueError("a single training never trains the other factors' norms: set norms to shared")
        if self.default not in self.factors:
            raise ValueError(f"the factors {self.factors} do not have the default {self.default:g}")
        return self
