"""Whole runs on a small set: the folder they leave, and runs that stop half way."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flyspeck.errors import UserError
from flyspeck.evaluate.score_curve import ScoreCurve
from flyspeck.files import read_jsonl
from flyspeck.train.build import load_described, load_detector
from flyspeck.train.checkpoint import load_state, load_weights
from flyspeck.train.config import Recipe, load_recipe
from flyspeck.train.loop import DetectionObjective
from flyspeck.train.run import train

RecipeMaker = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Bit for bit needs one order of sums; the tests that compare runs share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_run_leaves_a_folder_that_explains_itself(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    recipe = make_recipe(train={"ema": 0.9, "accumulate": 2}, data={"metres_per_pixel": 0.1})
    metrics = train(recipe, tmp_path / "run")
    assert {"ap50_tiny", "ap50_tiny1", "ap50_all", "ap_all"} <= set(metrics)
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        *("recipe.yaml", "environment.json", "metrics.jsonl", "metrics.csv", "curves.html", "state.pt"),
        *("best.safetensors", "last.safetensors", "detections.json", "evaluation.json"),
    }
    settled = load_recipe(tmp_path / "run" / "recipe.yaml")
    # What the images and weights decided stands there too, so that a repeat does not depend on them.
    assert (settled.data.channels, settled.model.pixel_norm) == (1, "data")
    given = recipe.data.model_copy(update={"channels": 1}), recipe.model.model_copy(update={"pixel_norm": "data"})
    assert settled == recipe.model_copy(update=dict(zip(("data", "model"), given, strict=True)))
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["train"]["images"] == 12
    assert len(environment["data_sha256"]) == 64
    epochs = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in epochs] == ["1", "2"]
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    detector, description = load_described(tmp_path / "run")
    assert detector.classes == ("square",)
    assert description["training_size"] == [64, 96]
    known = {"median": 0.1, "lowest": 0.1, "highest": 0.1, "images": 0}
    assert description["metres_per_pixel"] == known
    scores = ScoreCurve.of(description)
    counted = json.loads((tmp_path / "run" / "evaluation.json").read_text())["counts"]
    assert scores is not None
    assert not scores.points or scores.best.score == pytest.approx(counted["score"], abs=1e-6)
    assert len(description["mean"]) == 1  # the images are grey
    with pytest.raises(UserError, match="holds a run already"):
        train(recipe, tmp_path / "run")


class Stop(Exception):
    """In place of a kill: nothing of ours catches it."""


def weights(folder: Path) -> dict[str, Tensor]:
    return load_weights(folder / "last.safetensors")[0]


@pytest.mark.parametrize("stop_at", [2, 4])
def test_a_stopped_run_goes_on_bit_for_bit(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    recipe = make_recipe(train={"ema": 0.9, "optimizer": "adamw", "lr": 0.001, "checkpoint_every": 1, "eval_every": 2})
    train(recipe, tmp_path / "whole")

    plain = DetectionObjective.forward
    calls = 0

    def forward(self: Any, images: Any, targets: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > stop_at:
            raise Stop
        return plain(self, images, targets)

    monkeypatch.setattr(DetectionObjective, "forward", forward)
    with pytest.raises(Stop):
        train(recipe, tmp_path / "stopped")
    monkeypatch.undo()
    assert load_state(tmp_path / "stopped" / "state.pt")["progress"]["step"] == stop_at
    train(recipe, tmp_path / "stopped", resume=True)

    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert set(expected) == set(got)
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
    steps = [r["step"] for r in read_jsonl(tmp_path / "stopped" / "metrics.jsonl") if r["kind"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_resume_refuses_another_recipe_and_an_empty_folder(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    train(make_recipe(train={"epochs": 1}), tmp_path / "run")
    with pytest.raises(UserError, match="another recipe"):
        train(make_recipe(train={"epochs": 1, "lr": 0.02}), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="nothing to resume"):
        train(make_recipe(), tmp_path / "new", resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DetectionObjective.forward

    def forward(self: Any, images: Any, targets: Any) -> Any:
        return {**plain(self, images, targets), "box": torch.tensor(float("nan"), requires_grad=True)}

    monkeypatch.setattr(DetectionObjective, "forward", forward)
    with pytest.raises(UserError, match=r"not finite .*box nan.* on images .*lower train.lr"):
        train(make_recipe(), tmp_path / "run")
    batch = load_state(tmp_path / "run" / "non_finite_batch.pt")
    assert batch["pixels"].shape == (4, 1, 64, 96)
    assert len(batch["ids"]) == len(batch["targets"]) == 4


@pytest.mark.parametrize("often", [{"checkpoint_every": 1}, {"checkpoint_minutes": 1e-6}])
def test_ctrl_c_leaves_the_last_checkpoint(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, often: dict[str, float]
) -> None:
    recipe = make_recipe(train=often)
    plain = DetectionObjective.forward
    calls = 0

    def forward(self: Any, images: Any, targets: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return plain(self, images, targets)

    monkeypatch.setattr(DetectionObjective, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run")
    assert load_state(tmp_path / "run" / "state.pt")["progress"]["step"] == 2
    load_detector(tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"model": {"name": "retinanet:mobilenet_v9"}}, "mobilenet_v2"),
        ({"model": {"name": "mobilenet_v2"}}, "is a backbone"),
        ({"model": {"head": {"depht": 3}}}, "unknown key 'model.head.depht'; did you mean 'depth'"),
        ({"train": {"batch_size": 64}}, "12 images do not fill one batch of 64"),
        ({"data": {"train": "/nowhere/train.json"}}, "/nowhere/train.json"),
        ({"evaluate": {"protocol": "coco_box"}}, "coco_bbox"),
        ({"evaluate": {"best": "ap50_micro"}}, "no metric 'ap50_micro'"),
        (
            {"evaluate": {"protocol": "coco_bbox"}},
            "no metric 'ap50_tiny' .* protocol coco_bbox has others; known: ap_all",
        ),
    ],
)
def test_mistakes_in_a_recipe(make_recipe: RecipeMaker, tmp_path: Path, section: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        train(make_recipe(**section), tmp_path / "run")
    assert not (tmp_path / "run" / "state.pt").exists()  # before the first step, not after an epoch


def test_broken_entries_stop_a_run_unless_their_share_is_allowed(
    make_recipe: RecipeMaker, tiny_set: Path, tmp_path: Path
) -> None:
    content = json.loads((tiny_set / "train.json").read_text())
    content["annotations"][0]["bbox"][2] = float("nan")
    broken = tiny_set / "broken.json"
    broken.write_text(json.dumps(content))
    number = content["annotations"][0]["id"]
    with pytest.raises(UserError, match=rf"1 broken entries .*annotation {number}.*max_broken_share"):
        train(make_recipe(data={"train": str(broken)}), tmp_path / "refused")
    train(make_recipe(data={"train": str(broken), "max_broken_share": 0.1}, train={"epochs": 1}), tmp_path / "allowed")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batch_norm_over_one_value_is_a_line(make_recipe: RecipeMaker, tmp_path: Path, accumulate: int) -> None:
    """An image of 64 px at a time: the deepest map has one pixel."""
    recipe = make_recipe(
        augment={"crop": [64, 64]},
        model={"norm": "bn", "freeze_norms": False},
        train={"batch_size": accumulate, "accumulate": accumulate},
    )
    with pytest.raises(
        UserError, match=r"model\.norm: batch norm has one value .*\(1 image of 64x64 at a time\).*batch_size"
    ):
        train(recipe, tmp_path / "run")


def test_tensorboard_of_a_resumed_run_counts_no_step_twice(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epochs in (1, 2):
        recipe = make_recipe(train={"epochs": epochs, "tensorboard": True, "schedule": "constant"})
        train(recipe, tmp_path / "run", resume=epochs == 2)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/box")] == [1, 2, 3, 4, 5, 6]


def test_tensorboard_gets_the_losses_and_the_metrics(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(make_recipe(train={"epochs": 1, "tensorboard": True}), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"train/classification", "train/box", "train/lr", "val/ap50_tiny"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("train/box")] == [1, 2, 3]
