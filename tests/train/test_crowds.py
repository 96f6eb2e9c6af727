"""What options of a head follow from the training set: the fullest window, the objects' sizes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from numpy.random import default_rng

from flyspeck.data.annotations import Annotations
from flyspeck.models.detr.options import DetrOptions
from flyspeck.options import Options, TrainingObjects
from flyspeck.train.crowds import fitted_head, fullest_window, training_window
from flyspeck.train.model_config import ModelConfig
from flyspeck.train.sections import AugmentConfig
from needs import TRANSFORMERS


def table(boxes: np.ndarray, image: np.ndarray, *, size: tuple[int, int] = (200, 300), ignored: int = 0) -> Annotations:
    """Boxes `(M, 4)` xyxy of images by row; the last `ignored` are ignore regions."""
    m, images = len(boxes), int(image.max(initial=0)) + 1
    ignore = np.arange(m) >= m - ignored
    return Annotations(
        image_ids=np.arange(images),
        file_names=tuple(f"{i}.png" for i in range(images)),
        sizes=np.tile(size, (images, 1)),
        image_index=image,
        boxes=boxes,
        labels=np.where(ignore, -1, 0),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(1),
        ignore=ignore,
        crowd=np.zeros(m, bool),
        box_ids=np.arange(m),
        classes=("thing",),
        category_ids=(1,),
    )


def squares(count: int, *, side: float = 4, seed: int = 0) -> np.ndarray:
    corner = default_rng(seed).uniform(0, (296, 196), (count, 2))
    return np.concatenate([corner, corner + side], 1)


def slow(annotations: Annotations, size: tuple[float, float]) -> int:
    """Every window that begins at a multiple of half a window, one by one."""
    most = 0
    for image in annotations:
        boxes = annotations.boxes[image][~annotations.ignore[image]]
        x, y = ((boxes[:, k] + boxes[:, k + 2]) / 2 for k in (0, 1))
        for left in np.arange(-size[1] / 2, 301, size[1] / 2):
            for top in np.arange(-size[0] / 2, 201, size[0] / 2):
                inside = (x >= left) & (x < left + size[1]) & (y >= top) & (y < top + size[0])
                most = max(most, int(inside.sum()))
    return most


@pytest.mark.parametrize("size", [(32, 48), (64, 64), (200, 300), (500, 500)])
def test_the_fullest_window_is_that_of_all_windows(size: tuple[int, int]) -> None:
    image = np.sort(default_rng(1).integers(0, 3, 150))
    annotations = table(squares(150), image, ignored=5)
    assert fullest_window(annotations, size) == slow(annotations, size)


def test_nothing_is_in_the_windows_of_nothing() -> None:
    assert fullest_window(table(np.zeros((0, 4)), np.zeros(0, np.int64)), (64, 64)) == 0
    assert fullest_window(table(squares(2), np.zeros(2, np.int64), ignored=2), (64, 64)) == 0


def test_what_a_training_step_sees() -> None:
    annotations = table(squares(3), np.zeros(3, np.int64))
    assert training_window(AugmentConfig(), annotations) == (200, 300)
    assert training_window(AugmentConfig(crop=(64, 96), scale=(0.5, 2.0)), annotations) == (128, 192)
    assert training_window(AugmentConfig(crop=(64, 96), scale=(1.5, 2.0)), annotations) == (64, 96)
    unknown = table(squares(3), np.zeros(3, np.int64), size=(-1, -1))
    assert fullest_window(unknown, training_window(AugmentConfig(), unknown)) == 3


def test_queries_follow_the_fullest_window_and_anchors_the_sizes() -> None:
    """810 objects: 1215 queries, and so 1250. A quarter are below 6 px: 1.5 cells of stride 4."""
    found = DetrOptions().fitted(TrainingObjects(most=810, quarter=6.0, finest_stride=4))
    assert (found.queries, found.anchor_scale) == (1250, 1.5)
    few = DetrOptions().fitted(TrainingObjects(most=3, quarter=1.0, finest_stride=4))
    assert (few.queries, few.anchor_scale) == (300, 1.0)
    said = DetrOptions(queries=90, anchor_scale=2.5)
    assert said.fitted(TrainingObjects(most=90, quarter=1.0, finest_stride=4)) == said
    assert type(Options().fitted(TrainingObjects(1, 1.0, 4))) is Options


def test_too_few_queries_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="flyspeck"):
        DetrOptions(queries=300).fitted(TrainingObjects(most=812, quarter=6.0, finest_stride=4))
    (record,) = caplog.records
    assert "model.head.queries is 300, and the fullest training window has 812 objects" in record.getMessage()


@TRANSFORMERS
def test_a_recipe_is_filled_in_from_its_training_set() -> None:
    annotations = table(squares(400, side=8), np.zeros(400, np.int64))
    model = ModelConfig.model_validate({"name": "dfine:resnet18", "width": 0.125, "channels": 16})
    head = fitted_head(model, annotations, (200, 300)).head
    assert isinstance(head, DetrOptions)
    assert (head.queries, head.anchor_scale) == (600, 2.0)
    other = ModelConfig.model_validate({"name": "fcos:resnet18"})
    assert fitted_head(other, annotations, (200, 300)) is other
