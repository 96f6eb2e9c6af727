"""Rotation and Scale Match by a recipe: drawn anew for each image and epoch, and refused where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flyspeck.data.bands import PixelRule
from flyspeck.errors import UserError
from flyspeck.train.config import Recipe, load_recipe
from flyspeck.train.inputs import read_sets, training_loader
from small_training import base_recipe, write_squares


def recipe_of(folder: Path, **augment: object) -> Recipe:
    squares, content = folder / "data" / "squares", base_recipe()
    content["data"] |= {"train": str(squares / "train.json"), "val": str(squares / "val.json")}
    content["train"] |= {"batch_size": 1}
    content["augment"] = {"flip": 0.0, **augment}
    (folder / "recipe.yaml").write_text(json.dumps(content))
    return load_recipe(folder / "recipe.yaml")


def epochs(recipe: Recipe) -> list[list[tuple[tuple[int, int], list[list[float]]]]]:
    options = {"rule": PixelRule(channels=1), "divisor": 1, "rank": 0, "world_size": 1}
    loader = training_loader(recipe, read_sets(recipe.data)[0], **options)  # type: ignore[arg-type]
    return [
        [(images.sizes[0], targets[0].boxes.tolist()) for images, targets, _ in loader.epoch(epoch)] for epoch in (0, 1)
    ]


def test_scale_match_draws_at_every_load(tmp_path: Path) -> None:
    write_squares(tmp_path)
    # The path is relative to the recipe, as all of a recipe's are.
    first, second = epochs(recipe_of(tmp_path, scale_match={"target": "data/squares/val.json", "max_scale": 3.0}))
    assert len({size for size, _ in first}) > 3
    assert first != second


def test_rotation_draws_at_every_load(tmp_path: Path) -> None:
    write_squares(tmp_path)
    first, second = epochs(recipe_of(tmp_path, rotate=45, rotate_probability=1.0))
    assert {size for size, _ in first} == {(48, 64)}
    assert [boxes for _, boxes in first] != [boxes for _, boxes in second]


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ({"rotated_boxes": "hull"}, "augment.rotated_boxes: Input should be 'corners' or 'ellipse'"),
        ({"rotate": 200}, "augment.rotate: Input should be less than or equal to 180"),
        ({"scale_match": {"match": "sm"}}, "augment.scale_match.target: Field required"),
        (
            {"scale_match": {"target": "x.json", "match": "sm+"}},
            "augment.scale_match.match: Input should be 'sm' or 'msm'",
        ),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, augment: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe_of(write_squares(tmp_path), **augment)
    assert words in str(caught.value)
