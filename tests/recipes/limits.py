"""What is other than the heads say when their commands are run on fakes: the one place.

The commands are run word for word, but (1) every recipe that is read, a teacher's too, gets the values of `limited`, as if
each had been given by `--set`: two steps of a detector a sixteenth as large, from random weights, on images that are enlarged
less; (2) `prepare` gets `--anyway`, as a fake is not the whole set; (3) `pretrain` gets `PRETRAIN`, and the smallest backbone
of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from flyspeck.plain_yaml import Places, set_value
from flyspeck.train import config

ALWAYS = (
    "model.weights=null",
    "model.width=0.25",
    "data.train_limit=4",
    "train.epochs=1",
    "train.batch_size=2",
    "train.accumulate=1",
    "train.workers=0",
    "train.warmup_steps=0",
    "train.eval_every=1",
    "evaluate.batch_size=1",
)
WHERE_GIVEN = (
    "model.channels=16",
    "data.short_side=160",
    "evaluate.short_side=160",
    "evaluate.long_side=240",
    "distill.finetune.epochs=1",
    "dynamic.predictor.epochs=1",
)
"""Only of a recipe that has the key (of `distill` and `dynamic`: the section that it is in)."""
PRETRAIN = ("--epochs", "1", "--batch-size", "2", "--warmup-steps", "0", "--width", "0.25")


def limited(content: Mapping[str, Any]) -> list[str]:
    """The assignments for a recipe of this content; timm's transformers have one width."""
    name = _name(content)
    always = [one for one in ALWAYS if not (one.startswith("model.width") and "timm/" in name)]
    return [*always, *(one for one in WHERE_GIVEN if _applies(content, one.partition("=")[0].split(".")))]


def _name(content: Mapping[str, Any]) -> str:
    model = content.get("model")
    return str(model.get("name", "")) if isinstance(model, Mapping) else ""


def _applies(content: Mapping[str, Any], keys: list[str]) -> bool:
    value: Any = content
    for key in keys if keys[0] in ("model", "data", "evaluate") else keys[:-1]:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value is not None


def limit_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every recipe gets the values of `limited`, whoever reads it."""
    validated = config.validated

    def small(model: Any, content: Any, **more: Any) -> Any:
        if model is config.Recipe:
            for assignment in limited(content):
                set_value(content, Places("limits"), assignment)
        return validated(model, content, **more)

    monkeypatch.setattr(config, "validated", small)


def words_to_run(words: list[str]) -> list[str]:
    """A command as it is run."""
    if words[:2] == ["flyspeck-lab", "prepare"]:
        return [*words, "--anyway"]
    if words[:2] == ["flyspeck", "pretrain"]:
        return ["flyspeck", "pretrain", "bh_resnet14", *words[3:], *PRETRAIN]
    return words
