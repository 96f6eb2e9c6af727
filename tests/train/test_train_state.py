"""What a stored state must have to go on from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flyspeck.errors import UserError
from flyspeck.train.checkpoint import (
    add_to_description,
    load_run_state,
    load_state,
    load_weights,
    save_state,
    save_weights,
)
from flyspeck.train.ema import EMA
from flyspeck.train.state import Progress, agree, restore_run, save_run


def test_descriptions_agree_in_what_both_know() -> None:
    assert agree({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"d": 3}, "e": 4})
    assert not agree({"a": 1}, {"a": 2})
    assert not agree({"b": {"c": 2}}, {"b": {"c": 3}})
    assert not agree({"b": {"c": 2}}, {"b": 2})
    assert not agree({"b": 2}, {"b": {"c": 2}})


def parts() -> tuple[nn.Module, torch.optim.Optimizer, EMA]:
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), EMA(model, 0.9)


ABOUT: dict[str, Any] = {"model": {"name": "x"}, "recipe": {"train": {"epochs": 3}}}


def saved(folder: Path, about: dict[str, Any] | None = None, **progress: Any) -> tuple[nn.Module, EMA]:
    model, optimizer, ema = parts()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    ema.update(model)
    save_run(folder, model, model, optimizer, ema, Progress(**progress), about or ABOUT, {"box": 2.0})
    return model, ema


def test_a_run_goes_on_with_all_it_had(tmp_path: Path) -> None:
    old, old_ema = saved(tmp_path, epoch=2, planned={"epochs": 3.0, "minutes": None})
    model, optimizer, ema = parts()
    progress, losses = restore_run(tmp_path / "state.pt", model, optimizer, ema, {**ABOUT, "plugins": ["other"]})
    assert (progress.epoch, progress.ended, losses) == (2, False, {"box": 2.0})
    assert torch.equal(model.weight, old.weight)
    assert torch.equal(ema.model.weight, old_ema.model.weight)
    assert not torch.equal(ema.model.weight, model.weight)
    assert ema.updates == 1
    assert optimizer.state_dict()["state"][0]["momentum_buffer"] is not None
    weights, told = load_weights(tmp_path / "last.safetensors")
    assert torch.equal(weights["weight"], old_ema.model.weight)  # what is used is the mean
    assert (told["epoch"], told["metrics"]) == (2, {})


@pytest.mark.parametrize(("epoch", "ended"), [(2, False), (3, True), (4, True)])
def test_a_plan_that_is_not_noted_is_the_recipe_s(tmp_path: Path, epoch: int, ended: bool) -> None:
    saved(tmp_path, epoch=epoch)
    progress, _ = restore_run(tmp_path / "state.pt", *parts(), ABOUT)
    assert progress.planned == {"epochs": 3, "minutes": None}
    assert progress.ended is ended


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ({}, {"recipe": {"train": {"epochs": 4}}}, "was started with another recipe"),
        ({"dynamic": {}}, {}, None),
        ({"dynamic": {"train": "mixed"}}, {"dynamic": {"stride": "kept"}}, "replaced the backbone's stride"),
        (
            {"dynamic": {"train": "mixed"}},
            {"dynamic": {"stride": "replaced", "train": "mixed", "scale_clip": True}},
            "clipped the sum of its factors",
        ),
        ({"dynamic": {"train": "mixed"}}, {"dynamic": {"stride": "replaced", "train": "mixed"}}, None),
        ({"dynamic": {"train": "mixed"}}, {"dynamic": {"stride": "replaced", "scale_clip": True}}, None),
    ],
)
def test_another_recipe(tmp_path: Path, old: dict[str, Any], new: dict[str, Any], match: str | None) -> None:
    saved(tmp_path, {"recipe": old} if old else ABOUT, planned={"epochs": 1.0})
    about = new if "recipe" in new else {"recipe": new}
    if match is None:
        restore_run(tmp_path / "state.pt", *parts(), about)
    else:
        with pytest.raises(UserError, match=match):
            restore_run(tmp_path / "state.pt", *parts(), about)


def test_states_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    for content, match in (([1], "not a training state"), ({"description": {}}, "it has no progress")):
        torch.save(content, path)
        with pytest.raises(UserError, match=match):
            load_run_state(path)
    saved(tmp_path)
    state = load_state(path)
    for part in ("description", "progress", "objective", "optimizer"):
        save_state(path, {**state, part: 3})
        with pytest.raises(UserError, match=f"it has no {part}"):
            load_run_state(path)
    for part in ({"ema": None}, {"objective": {}}, {"progress": {"unknown": 1}}):
        save_state(path, {**state, **part})
        with pytest.raises(UserError, match="not the training state of this run"):
            restore_run(path, *parts(), ABOUT)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, "3"])
def test_descriptions_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    save_weights(tmp_path / "a.safetensors", {"x": torch.ones(1)}, {"a": 1})
    from flyspeck.train.checkpoint import KEY

    save_file({"x": torch.ones(1)}, tmp_path / "b.safetensors", {KEY: text})
    with pytest.raises(UserError, match="its description cannot be read"):
        load_weights(tmp_path / "b.safetensors")
    add_to_description(tmp_path / "a.safetensors", b=2)
    assert load_weights(tmp_path / "a.safetensors")[1] == {"a": 1, "b": 2}


@pytest.mark.parametrize(("format", "word"), [(1, "gate"), (2, "gate"), (3, "attention"), (None, "gate")])
def test_older_words_are_understood(tmp_path: Path, format: int | None, word: str) -> None:
    model = {"fusion": "attention"}
    about = {"model": model, "recipe": {"model": dict(model)}} | ({} if format is None else {"format": format})
    save_weights(tmp_path / "a.safetensors", {"x": torch.ones(1)}, json.loads(json.dumps(about)))
    told = load_weights(tmp_path / "a.safetensors")[1]
    assert (told["model"]["fusion"], told["recipe"]["model"]["fusion"]) == (word, word)


def test_a_run_begins_at_nothing() -> None:
    begun = Progress()
    counts = (
        begun.epoch,
        begun.step_in_epoch,
        begun.step,
        begun.best_epoch,
        begun.seconds,
        begun.share,
        begun.end,
        begun.stale,
    )
    assert counts == (0,) * 8
    assert begun.best == begun.mark == -float("inf")
    assert (begun.metrics, begun.planned, begun.origin, begun.ended, begun.stopped) == ({}, {}, [], False, "")
