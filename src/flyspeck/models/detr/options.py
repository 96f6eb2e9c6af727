"""What a recipe may say of a detection transformer under `model.head`."""

from __future__ import annotations

import logging
import math
from typing import Annotated, Self

from pydantic import Field

from flyspeck.models.assigners.nwd import AITOD_SIZE
from flyspeck.models.detr.losses import Closeness
from flyspeck.models.detr.queries import ANCHOR_SCALES, QueryRule
from flyspeck.options import Count, Depth, Options, Positive, Share, TrainingObjects, Weight

log = logging.getLogger("flyspeck")
Points = Annotated[int, Field(ge=1, le=64)]
"""Sampled of a level."""
_SPARE, _STEP = 1.5, 50
"""Queries for each object of the fullest window, and what their number is a multiple of."""


class DetrOptions(Options):
    """Options of detection transformers."""

    queries: Count | None = None
    """Objects that an image can have at most, in what is learnt and in what is detected; null takes half as many again as the
    fullest window of the training set has, and 300 at least."""
    anchor_scale: Positive | None = None
    """Every cell proposes a square of so many cells a side; null fits it to the training set's objects."""
    layers: int = Field(default=3, ge=1, le=64)
    """Of the decoder."""
    heads: int = Field(default=8, ge=1, le=64)
    """Of every attention; `model.channels` must be a multiple."""
    ffn: Count | None = None
    """Channels of the linear layers behind every attention; null takes four times `model.channels`."""
    points: Points | list[Points] = 4
    """That a query samples of each level, by head; of D-FINE also a list with a number for each level."""
    encoder_layers: Depth = 1
    """Of attention within the coarsest map."""
    expansion: float = Field(default=1.0, ge=0.25, le=4)
    """Channels within the blocks of the encoder's pyramid, as a share of `model.channels`."""
    noise_queries: int = Field(default=100, ge=0, le=100_000)
    """Objects with noise that join the queries of an image in training, and as many that are none; 0 leaves denoising out."""
    label_noise: Share = 0.5
    """Share of them that may have another label."""
    box_noise: float = Field(default=1.0, ge=0, le=2)
    """Their sides move by up to this share of half a side."""
    score_cost: Weight = 2.0
    """Weight of the score in the cost by which queries are matched with objects."""
    l1_cost: Weight = 5.0
    """Of the L1 distance, as a share of the image."""
    giou_cost: Weight = 2.0
    """Of GIoU."""
    nwd_cost: Weight = 2.0
    """Of NWD, without which boxes of a few pixels all cost the same; published: 0."""
    score_weight: Weight = 1.0
    """Of the loss of scores."""
    l1_weight: Weight = 5.0
    """Of the L1 loss."""
    giou_weight: Weight = 2.0
    """Of the GIoU loss."""
    nwd_weight: Weight = 1.0
    """Of the NWD loss; published: 0."""
    nwd_constant: Positive = AITOD_SIZE
    """NWD's constant in px, of cost and loss: about the size of the objects."""
    closeness: Closeness = "nwd"
    """What scores learn of their boxes: IoU (published), or the mean of IoU and NWD, which tiny boxes need."""

    def fitted(self, objects: TrainingObjects) -> Self:
        """With queries for the fullest window, and anchors for the smaller of the objects; says where queries are too few."""
        found: dict[str, float] = {}
        if self.queries is None:
            wanted = math.ceil(_SPARE * objects.most / _STEP) * _STEP
            found["queries"] = max(QueryRule().queries, wanted)
            log.info("%d queries: the fullest training window has %d objects", found["queries"], objects.most)
        elif self.queries < objects.most:
            log.warning(
                "model.head.queries is %d, and the fullest training window has %d objects: those beyond are never found",
                self.queries,
                objects.most,
            )
        if self.anchor_scale is None:
            low, high = ANCHOR_SCALES
            found["anchor_scale"] = round(min(max(objects.quarter / objects.finest_stride, low), high), 2)
        return self.model_copy(update=found)
