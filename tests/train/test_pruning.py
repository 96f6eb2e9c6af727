"""A run is pruned, trained on and pruned again, from the command line; a distilled student goes on learning from its teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.models.profile import profile
from flyspeck.train.build import load_described, load_detector
from flyspeck.train.config import Recipe, dump_recipe, load_recipe
from flyspeck.train.distill import stages
from flyspeck.train.distill.config import DistillConfig
from flyspeck.train.pruning import prune_run
from flyspeck.train.run import train

RecipeMaker = Callable[..., Recipe]


@pytest.fixture
def run(make_recipe: RecipeMaker, tmp_path: Path) -> Path:
    """A finished run of one epoch, of a detector with batch norms in its head."""
    folder = tmp_path / "run"
    train(make_recipe(model={"norm": "bn", "freeze_norms": False}, train={"epochs": 1}), folder)
    return folder


def test_prune_train_and_prune_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, trained = tmp_path / "first", tmp_path / "trained"
    assert main(["prune", str(run), "--share", "0.4", "--multiple", "2", "--out", str(first)]) == 0
    assert f"next: flyspeck train {first / 'recipe.yaml'} --out FOLDER" in capsys.readouterr().out
    whole, pruned = load_detector(run), load_detector(first / "pruned.safetensors")
    counts = [profile(d, (64, 96)) for d in (whole, pruned)]
    assert counts[1].params < counts[0].params
    assert counts[1].gflops < counts[0].gflops
    recipe = load_recipe(first / "recipe.yaml")
    before = load_recipe(run / "recipe.yaml")
    assert recipe.train.epochs == 1
    assert recipe.train.lr == pytest.approx(0.1 * before.train.lr)
    assert recipe.model.weights is None
    # What was measured of the whole detector is not said of the pruned one.
    _, description = load_described(first / "pruned.safetensors")
    assert description["metrics"] == {}
    assert description["model"]["pruned"] == recipe.model.pruned
    # It trains from there, and its runs are as narrow.
    assert main(["train", str(first / "recipe.yaml"), "--out", str(trained)]) == 0
    after, description = load_described(trained)
    assert {n: p.shape for n, p in after.named_parameters()} == {n: p.shape for n, p in pruned.named_parameters()}
    assert {one["source"] for one in description["starts"]} == {str((first / "pruned.safetensors").resolve())}
    # Once more: what was narrow becomes narrower.
    again = prune_run(trained, tmp_path / "again", share=0.3, multiple=2)
    narrower = load_recipe(again.recipe).model.pruned
    assert narrower is not None
    assert recipe.model.pruned is not None
    assert set(recipe.model.pruned) <= set(narrower)
    assert all(narrower[name] <= width for name, width in recipe.model.pruned.items())
    with pytest.raises(UserError, match="holds something already"):
        prune_run(run, first, share=0.3)


def test_a_run_by_the_clock_is_trained_on_for_a_quarter_of_its_minutes(run: Path, tmp_path: Path) -> None:
    recipe = load_recipe(run / "recipe.yaml")
    clocked = recipe.train.model_copy(update={"minutes": 40.0, "epochs": 1000})
    (run / "recipe.yaml").write_text(dump_recipe(recipe.model_copy(update={"train": clocked})))
    by_clock = load_recipe(prune_run(run, tmp_path / "a", share=0.4, multiple=2).recipe).train
    assert (by_clock.minutes, by_clock.epochs) == (10.0, 1000)
    by_epochs = load_recipe(prune_run(run, tmp_path / "b", share=0.4, multiple=2, epochs=3).recipe).train
    assert (by_epochs.minutes, by_epochs.epochs) == (None, 3)


@pytest.mark.slow
def test_a_pruned_student_goes_on_learning_from_its_teacher(
    make_recipe: RecipeMaker, run: Path, tmp_path: Path
) -> None:
    plain = make_recipe(model={"norm": "bn", "freeze_norms": False}, train={"epochs": 1}, augment={"photometric": 0})
    section = DistillConfig(teacher=str(run), method="fgd", weight=0.1)
    student = tmp_path / "student"
    stages.train_student(plain.model_copy(update={"distill": section}), student)
    done = prune_run(student, tmp_path / "pruned", share=0.4, multiple=2, epochs=1)
    assert done.distills
    assert main(["distill", str(done.recipe), "--out", str(tmp_path / "tuned")]) == 0
    _, description = load_described(tmp_path / "tuned")
    assert description["distill"]["method"] == "fgd"
    assert description["model"]["pruned"]


def test_a_detector_of_several_resolutions_is_not_pruned(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(make_recipe(dynamic={})))
    with pytest.raises(UserError, match="several resolutions"):
        prune_run(folder, tmp_path / "out", share=0.3)
