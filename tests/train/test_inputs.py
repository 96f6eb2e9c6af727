"""What the fields of a recipe become: every augmentation with its own numbers in its own place, every seed where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.data.copy_paste import CopyPaste, paste_sources
from flyspeck.data.loading import DetectionDataset
from flyspeck.data.readers import read_annotations
from flyspeck.data.rotate import RandomRotation
from flyspeck.data.sampling import Draw, EpochSampler, repeat_factors
from flyspeck.data.square_crop import RandomSquareCrop
from flyspeck.data.transforms import Compose, Photometric, RandomFlip, RandomScaleCrop, RandomTurn
from flyspeck.train.config import Recipe
from flyspeck.train.inputs import augmentation, training_loader

RecipeMaker = Callable[..., Recipe]
NOTHING = {"flip": 0.0, "photometric": 0.0}


@pytest.fixture(scope="module")
def train_set(tiny_set: Path) -> Annotations:
    return read_annotations(tiny_set / "train.json")


def steps(make_recipe: RecipeMaker, train_set: Annotations, **augment: Any) -> tuple[Any, ...]:
    found = augmentation(make_recipe(augment={**NOTHING, **augment}).augment, train_set)
    assert isinstance(found, Compose)
    return found.steps


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ({}, ()),
        ({"flip": 0.3}, (RandomFlip(0.3, 0.0),)),
        ({"vertical_flip": 0.2}, (RandomFlip(0.0, 0.2),)),
        ({"rot90": 0.4}, (RandomTurn(0.4),)),
        ({"rotate": 45, "rotate_probability": 0.3}, (RandomRotation(45.0, 0.3, "corners"),)),
        ({"rotate": 9, "rotated_boxes": "ellipse"}, (RandomRotation(9.0, 0.5, "ellipse"),)),
        ({"scale": [0.5, 2.0]}, (RandomScaleCrop((0.5, 2.0), None, 0.0),)),
        ({"crop": [64, 96], "toward_objects": 0.25}, (RandomScaleCrop((1.0, 1.0), (64, 96), 0.25),)),
        ({"crop": [64, 64], "square_crops": [0.3, 1.0]}, (RandomSquareCrop(64, (0.3, 1.0)),)),
        ({"photometric": 0.7}, (Photometric(0.7),)),
        (
            {
                "flip": 0.1,
                "vertical_flip": 0.2,
                "rot90": 0.3,
                "scale": [0.5, 1.5],
                "crop": [32, 64],
                "photometric": 0.4,
            },
            (RandomFlip(0.1, 0.2), RandomTurn(0.3), RandomScaleCrop((0.5, 1.5), (32, 64)), Photometric(0.4)),
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_every_field_is_its_step(
    make_recipe: RecipeMaker, train_set: Annotations, augment: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert steps(make_recipe, train_set, **augment) == expected


def test_copies_come_first_and_from_every_class_alike(make_recipe: RecipeMaker, train_set: Annotations) -> None:
    options = {"copy_paste": 0.6, "copy_paste_max_objects": 3, "copy_paste_max_size": 9.0}
    first, second = steps(make_recipe, train_set, flip=0.5, **options)
    assert second == RandomFlip(0.5, 0.0)
    assert isinstance(first, CopyPaste)
    assert (first.probability, first.max_objects, first.max_size) == (0.6, 3, 9.0)
    expected = paste_sources(train_set, max_size=9.0, rare_power=1.0)
    assert first.sources is not None
    assert expected is not None
    for name in ("rows", "probabilities", "class_weights"):
        np.testing.assert_array_equal(getattr(first.sources, name), getattr(expected, name))
    (none,) = steps(make_recipe, train_set, **{**options, "copy_paste_max_size": 1.0})  # the smallest object has 6 px
    assert none.probability == 0


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_batches_are_those_of_the_recipe_s_seed(
    make_recipe: RecipeMaker, train_set: Annotations, seed: int, rank: int, world: int
) -> None:
    recipe = make_recipe(train={"seed": seed})
    loader = training_loader(recipe, train_set, rule=PixelRule(channels=1), divisor=32, rank=rank, world_size=world)
    order = EpochSampler(len(train_set), seed=seed, rank=rank, world_size=world)
    order.load_state({"epoch": 3, "start": 0})
    transform = augmentation(recipe.augment, train_set)
    dataset = DetectionDataset(train_set, channels=1, transform=transform, seed=seed)
    draws: list[Draw] = list(order)
    seen = 0
    for images, _, _ in loader.epoch(3):
        for pixels in images.pixels:
            expected = dataset.draw(draws[seen]).pixels
            torch.testing.assert_close(pixels, expected, rtol=0, atol=0)
            seen += 1
    assert seen == len(draws) == 12 // world


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_how_often_images_come(make_recipe: RecipeMaker, train_set: Annotations, strength: float) -> None:
    labels, boxes = train_set.labels.copy(), train_set.boxes.copy()
    rare = int(np.flatnonzero(labels == 0)[0])
    labels[rare] = 1  # in one image of twelve, which has nothing tiny
    rows = train_set.of_image(int(train_set.image_index[rare]))
    boxes[rows] = [0, 0, 40, 40]
    train_set = replace(train_set, labels=labels, boxes=boxes, classes=("square", "rare"), category_ids=(7, 8))
    loader = training_loader(
        make_recipe(augment={"oversample": strength}),
        train_set,
        rule=PixelRule(channels=1),
        divisor=32,
        rank=0,
        world_size=1,
    )
    repeats = loader.sampler.repeats
    if strength == 0:
        assert repeats is None
        return
    assert repeats is not None
    np.testing.assert_array_equal(repeats, repeat_factors(train_set, rare_below=0.3 * strength, tiny_gain=strength))
    # The rare class asks for sqrt(0.3 * 12) at strength 1, tiny objects for 1 + their share.
    assert sorted(set(repeats.tolist())) == pytest.approx(sorted({1.0, (0.3 * strength * 12) ** 0.5, 1 + strength}))
