"""A run is trained on for INT8, alone and pruned, from the command line; it resumes bit for bit; what cannot be is one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from flyspeck.cli.main import main
from flyspeck.models.fake_quantised import FakeQuantised, input_ranges
from flyspeck.train.build import load_described, load_detector
from flyspeck.train.checkpoint import load_weights
from flyspeck.train.config import Recipe, dump_recipe, load_recipe
from flyspeck.train.quantising import quantise_run
from flyspeck.train.run import train

RecipeMaker = Callable[..., Recipe]


@pytest.fixture(scope="module")
def run(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch, of a detector with batch norms in its head."""
    folder = tmp_path_factory.mktemp("quantising") / "run"
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(
        f"""
name: first
data: {{train: {tiny_set / "train.json"}, val: {tiny_set / "val.json"}}}
augment: {{flip: 0.5}}
model: {{name: "retinanet:mobilenet_v2", width: 0.25, channels: 16, norm: bn, anchors: {{octaves: 1}}, head: {{depth: 1}}}}
train: {{epochs: 4, batch_size: 4, optimizer: sgd, lr: 0.01, warmup_steps: 2, workers: 0, log_every: 1, eval_every: 4, ema: null}}
evaluate: {{batch_size: 4}}
"""
    )
    train(load_recipe(recipe, ["train.epochs=1"]), folder)
    kept = load_recipe(recipe)
    (folder / "recipe.yaml").write_text(dump_recipe(kept))
    return folder


class Stop(Exception):
    pass


class Stopping:
    """A reporter that stops the run in its second epoch."""

    epochs = 0

    def start(self, *, total_steps: int, done_steps: int) -> None: ...

    def step(self, record: Mapping[str, Any]) -> None:
        if self.epochs:
            raise Stop

    def epoch(self, record: Mapping[str, Any]) -> None:
        self.epochs += 1

    def close(self) -> None: ...


def test_quantise_and_train(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, trained = tmp_path / "start", tmp_path / "trained"
    assert main(["quantise", str(run), "--out", str(start)]) == 0
    said = capsys.readouterr().out
    assert f"next: flyspeck train {start / 'recipe.yaml'} --out FOLDER" in said
    recipe = load_recipe(start / "recipe.yaml")
    assert (recipe.train.epochs, recipe.train.lr) == (1, pytest.approx(0.001))
    assert recipe.model.quantised
    # Nothing is rounded before the first batch, and what was measured is not said of it.
    before, description = load_described(start / "quantised.safetensors")
    assert not input_ranges(before)
    assert description["metrics"] == {}
    assert main(["train", str(start / "recipe.yaml"), "--out", str(trained)]) == 0
    after, description = load_described(trained)
    assert description["model"]["quantised"] is True
    rounding = [m for m in after.modules() if isinstance(m, FakeQuantised)]
    assert len(input_ranges(after)) == len(rounding) > 30
    # The weights moved, from where they were.
    old, new = before.state_dict(), after.state_dict()
    assert any(not torch.equal(old[k], new[k]) for k in old if k.endswith("weight"))
    assert (
        main(["predict", str(tmp_path), "--model", str(trained), "--out", str(tmp_path / "none")]) == 2
    )  # no images there


def test_pruned_and_quantised_in_one_go_and_resumed(run: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    assert (
        main(
            ["prune", str(run), "--share", "0.4", "--multiple", "2", "--quantise", "--epochs", "2", "--out", str(both)]
        )
        == 0
    )
    recipe = load_recipe(both / "recipe.yaml")
    assert recipe.model.quantised
    assert recipe.model.pruned
    whole = tmp_path / "whole"
    train(recipe, whole)
    found = load_detector(whole)
    assert sum(p.numel() for p in found.parameters()) < sum(p.numel() for p in load_detector(run).parameters())
    # Ranges are state: a run that stopped after its first epoch ends bit for bit where the whole one did.
    stopped = tmp_path / "stopped"

    with pytest.raises(Stop):
        train(recipe, stopped, reporter=Stopping())
    train(recipe, stopped, resume=True)
    one, other = (load_weights(folder / "last.safetensors")[0] for folder in (whole, stopped))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("verb", ["prune", "quantise"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("model.onnx", "an exported file cannot be"),
        ("model.xml", "an exported file cannot be"),
        ("best.safetensors", "weights without their recipe"),
        ("nothing", "no run of flyspeck"),
        ("int8", "trained for INT8 already"),
        ("dynamic", "several resolutions"),
    ],
)
def test_what_cannot_be_is_one_line(
    verb: str, given: str, said: str, run: Path, tmp_path: Path, make_recipe: RecipeMaker,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    where = tmp_path / given
    if "." in given:
        where.write_bytes(b"")
    elif given != "nothing":
        where.mkdir()
        recipe = load_recipe(run / "recipe.yaml")
        int8 = recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantised": True})})
        (where / "recipe.yaml").write_text(dump_recipe(int8 if given == "int8" else make_recipe(dynamic={})))
    assert main([verb, str(where), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_of_floats_is_not_resumed_as_one_of_integers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = quantise_run(run, tmp_path / "start")
    assert main(["train", str(done.recipe), "--out", str(run), "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "model" in error


def test_the_folder_must_be_empty(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["quantise", str(run), "--out", str(tmp_path)]) == 2
    assert "holds something already" in capsys.readouterr().err
