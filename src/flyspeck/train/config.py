"""Recipes: one YAML file is one run, complete and typed. No inheritance, no interpolation, no code.

Every field is documented under its name (`sections`, `model_config`, `dynamic_config`, `distill.config`, and the options of
the parts); an unknown key is an error that names the nearest known one. Paths in a recipe are relative to the recipe's own
file, those that `--set` gives to the working folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from flyspeck.errors import UserError
from flyspeck.options import Locate, Options, validated
from flyspeck.plain_yaml import read_yaml, set_value
from flyspeck.plugins import load_needed
from flyspeck.train.distill.config import DistillConfig, FinetuneConfig
from flyspeck.train.dynamic_config import DynamicConfig, PredictorConfig
from flyspeck.train.model_config import AnchorConfig, ModelConfig
from flyspeck.train.sections import (
    PATH,
    PATH_OR_NAME,
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    ScaleMatchConfig,
    TrainConfig,
)

__all__ = [
    "AnchorConfig",
    "AugmentConfig",
    "DataConfig",
    "DistillConfig",
    "DynamicConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "ModelConfig",
    "PredictorConfig",
    "Recipe",
    "ScaleMatchConfig",
    "TrainConfig",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "resolve_paths",
]


class Recipe(Options):
    """All that decides a training run, section by section; `load_recipe` reads one from YAML."""

    name: str = "run"
    """Of the run folder, where no other is given."""
    plugins: list[str] = Field(default=[])
    """Plugins that it needs, as `my_parts` or `my_parts==1.2`: names only. They must be installed or given with `--plugin`; a
    run notes those that it used."""
    data: DataConfig
    """Where the images are and how they are read."""
    augment: AugmentConfig = AugmentConfig()
    """What training does to an image."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """Which detector, with the options of its parts."""
    train: TrainConfig = TrainConfig()
    """The optimisation."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How the run measures itself."""
    dynamic: DynamicConfig | None = None
    """Dynamic pooling (DPNet); null: a detector of one resolution."""
    distill: DistillConfig | None = None
    """For `flyspeck distill`; null: the detector learns from the ground truth alone."""

    @model_validator(mode="after")
    def _pairs(self) -> Recipe:
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is not a multiple of train.accumulate {self.train.accumulate}"
            )
        low, high = self.augment.scale
        if not 0 < low <= high:
            raise ValueError(f"augment.scale is a range (low, high) above 0, got ({low}, {high})")
        squares, crop = self.augment.square_crops, self.augment.crop
        if squares and (crop is None or crop[0] != crop[1]):
            raise ValueError(
                f"augment.square_crops are resized to augment.crop: give a square, as [640, 640], not {crop}"
            )
        if any(not 0 < share <= 1 for share in squares):
            raise ValueError(f"augment.square_crops are shares of the shorter side in (0, 1], got {squares}")
        if self.data.enlarge != 1 and self.data.short_side is not None:
            raise ValueError("data.enlarge and data.short_side exclude each other: give one of them")
        short, long = self.evaluate.short_side, self.evaluate.long_side
        if long is not None and (short is None or long < short):
            raise ValueError(f"evaluate.long_side {long} needs an evaluate.short_side of no more, not {short}")
        if self.data.squeeze is not None:
            self._with_squeeze()
        return self

    def _with_squeeze(self) -> None:
        """Raises ValueError for what cannot stand beside `data.squeeze`."""
        if self.data.enlarge != 1 or self.data.short_side is not None:
            raise ValueError("data.squeeze takes the place of data.enlarge and data.short_side: give one of them")
        if self.augment.scale_match is not None or self.evaluate.short_side is not None:
            raise ValueError(
                "data.squeeze leaves images no scale of their own: leave out augment.scale_match and evaluate.short_side"
            )
        if self.augment.crop is not None:
            raise ValueError(
                "data.squeeze and augment.crop exclude each other: with a squeeze, augment.scale zooms out of the image "
                "and into it"
            )


def load_recipe(path: Path | str, overrides: list[str] | None = None) -> Recipe:
    """A recipe from a YAML file, checked.

    Args:
        path: The file. Its paths are relative to its folder.
        overrides: `section.key=value` as on the command line, values in YAML; paths are relative to the working folder.

    Returns:
        The recipe, its paths absolute.

    Raises:
        UserError: Naming the file and line (or the override), the key and the nearest known key.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such recipe", where=path, fix="give a YAML file; recipes/ has examples")
    content, places = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(
            "a recipe is a mapping of sections", where=path, fix=f"sections: {', '.join(Recipe.model_fields)}"
        )
    given = {set_value(content, places, override) for override in overrides or []}
    if (path.parent / "environment.json").is_file() and isinstance(content.get("model"), dict):
        content["model"].setdefault("suppression", "nms")  # a run of version 0.1, which said none
    _load_plugins(content, path)
    recipe = validated(Recipe, content, locate=places)
    return _resolved(recipe, lambda key: Path.cwd() if _within(key, given) else path.parent)


def parse_recipe(content: Mapping[str, Any], *, where: Path | str = "recipe", locate: Locate | None = None) -> Recipe:
    """A mapping to a checked `Recipe`; paths stay as they are. Raises UserError."""
    _load_plugins(content, where)
    return validated(Recipe, content, where=where, locate=locate)


def _load_plugins(content: Mapping[str, Any], where: object) -> None:
    """The plugins that a recipe names, before its keys are judged: they know some. What is no list of names is left to that."""
    names = content.get("plugins")
    if isinstance(names, list):
        load_needed([name for name in names if isinstance(name, str)], where=where)


def resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    """The same recipe with its paths (`data`, `model`, `distill`) made absolute from `folder`; names of weights stay."""
    return _resolved(recipe, lambda key: folder)


def dump_recipe(recipe: Recipe) -> str:
    """The complete recipe as YAML, defaults included; `reference.commented` adds the sentences."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _resolved(recipe: Recipe, base: Callable[[tuple[str, ...]], Path]) -> Recipe:
    """The recipe with every field that is marked as a path made absolute from the folder `base` gives for its key."""

    def absolute(key: tuple[str, ...], model: Options) -> Options:
        changed: dict[str, Any] = {}
        for name, field in type(model).model_fields.items():
            value, extra = getattr(model, name), field.json_schema_extra
            if isinstance(value, Options):
                changed[name] = absolute((*key, name), value)
            elif isinstance(value, str):
                changed[name] = _absolute(value, extra, lambda name=name: base((*key, name)))
        return model.model_copy(update=changed)

    resolved = absolute((), recipe)
    assert isinstance(resolved, Recipe)
    return resolved


def _absolute(value: str, extra: object, base: Callable[[], Path]) -> str:
    """A field's value, made absolute from the folder of `base` where `extra` marks it as a path. Names stay as they are."""
    if extra not in (PATH, PATH_OR_NAME):
        return value
    if extra == PATH_OR_NAME:
        head, at, file = value.partition("@")
        if re.fullmatch(r"[a-z]+:.*", head):  # torchvision:NAME@FILE, package:NAME
            return f"{head}@{_absolute(file, PATH, base)}" if at else value
        if "/" not in value and "." not in value and not (base() / value).exists():
            return value
    path = Path(value).expanduser()
    return str(path if path.is_absolute() else (base() / path).resolve())


def _within(key: tuple[str, ...], given: set[tuple[str | int, ...]]) -> bool:
    return any(key[:length] in given for length in range(1, len(key) + 1))
