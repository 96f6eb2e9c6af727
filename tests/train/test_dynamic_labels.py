"""Where the predictor's labels come from: which positives, and images that nobody has learnt. And how far gradients may go."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.testing import assert_allclose, assert_array_equal

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.train import run as run_module
from flyspeck.train.build import load_described
from flyspeck.train.config import PredictorConfig, Recipe
from flyspeck.train.dynamic import optimisation
from flyspeck.train.dynamic_config import DynamicConfig
from flyspeck.train.dynamic_fit import fit_predictor, open_run
from flyspeck.train.dynamic_labels import (
    FactorLosses,
    LossKind,
    compute_losses,
    fold_of,
    join_folds,
    losses_file,
    read_losses,
)
from flyspeck.train.run import train_without
from flyspeck.train.sections import TrainConfig
from flyspeck.train.state import restore_run
from tiny_sets import train_dynamic

RecipeMaker = Callable[..., Recipe]


@pytest.fixture(scope="module")
def run(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two factors and a predictor."""
    folder = tmp_path_factory.mktemp("labels") / "run"
    train_dynamic(tiny_set, folder)
    return folder


@pytest.mark.parametrize(("count", "folds"), [(12, 3), (7, 2), (5, 5), (1, 1)])
def test_parts_are_runs_of_neighbours_of_nearly_one_size(count: int, folds: int) -> None:
    found = fold_of(count, folds)
    assert (np.diff(found) >= 0).all()  # frames of a video stay together
    sizes = np.bincount(found, minlength=folds)
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1


def losses_of(ids: Sequence[int], value: float) -> FactorLosses:
    rows = np.array([[value + i, value] for i in ids], np.float64)
    return FactorLosses(tuple(ids), (0.5, 0.25), rows, LossKind(folds=2), f"of {value:g}", np.array(ids))


def test_parts_are_joined_in_the_order_of_the_images() -> None:
    whole = join_folds([losses_of([3, 1], 10), losses_of([2], 20)], [1, 2, 3], detector="main")
    assert_array_equal(whole.losses, [[11, 10], [22, 20], [13, 10]])
    assert_array_equal(whole.objects, [1, 2, 3])
    assert (whole.image_ids, whole.detector) == ((1, 2, 3), "main")


def test_each_kind_of_losses_has_its_file(tmp_path: Path) -> None:
    kinds = [LossKind(g, p, f) for g in (True, False) for p in ("best", "matched") for f in (1, 3)]
    assert len({losses_file(tmp_path, part="train", kind=kind) for kind in kinds}) == len(kinds)
    assert losses_file(tmp_path, part="train", kind=LossKind()).name == "factor-losses-train.json"  # as in 0.1
    assert losses_file(tmp_path, part="val", kind=LossKind(False)).name == "factor-losses-val-own.json"
    losses_of([1], 1).write(tmp_path / "a.json")
    assert read_losses(tmp_path / "a.json").kind == LossKind(folds=2)
    content = json.loads((tmp_path / "a.json").read_text())
    for name in ("positives", "folds"):
        del content[name]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert read_losses(tmp_path / "old.json").kind == LossKind()


def test_a_part_is_judged_by_a_detector_that_has_not_learnt_it(run: Path, tmp_path: Path) -> None:
    """The stored losses are those of the two detectors, each on the images that were held out of its training."""
    copied = tmp_path / "run"
    copied.mkdir()
    (copied / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes())
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    content["data"]["val_limit"] = 1  # evaluations take most of the time
    (copied / "recipe.yaml").write_text(yaml.safe_dump(content))
    opened, asked = open_run(copied), []

    def watched(recipe: Recipe, folder: Path, image_ids: Sequence[int | str]) -> Any:
        asked.append((folder.name, list(image_ids)))
        assert recipe.dynamic is not None
        assert recipe.dynamic.predictor is None
        return train_without(recipe, folder, image_ids)

    config = PredictorConfig(folds=2, positives="matched", epochs=1, batch_size=4)
    folder, router = fit_predictor(opened, config, train_without=watched)
    assert asked == [("1-of-2", [1, 2, 3, 4, 5, 6]), ("2-of-2", [7, 8, 9, 10, 11, 12])]
    assert router.predictor is not None
    stored = read_losses(copied / "factor-losses-train-matched-folds2.json")
    train_set = opened.sets()[0]
    for number, rows in enumerate((range(6), range(6, 12)), 1):
        where = copied / "folds" / f"{number}-of-2"
        told = json.loads((where / "environment.json").read_text())
        assert told["train"]["images"] == 6  # the other half
        detector, _ = load_described(where)
        part = train_set.select_images(list(rows))
        kind = LossKind(positives="matched")
        expected = compute_losses(detector, part, rule=opened.rule, enlarge=opened.enlarge, kind=kind, batch_size=4)
        assert_allclose(stored.losses[list(rows)], expected.losses, atol=1e-5)
    own = opened.losses("train", kind=LossKind(positives="matched"))
    assert np.abs(own.losses - stored.losses).max() > 1e-3
    assert own.detector == stored.detector  # the detector that routes: other weights refuse them
    assert (own.losses >= opened.losses("train").losses - 1e-6).all()
    assert (folder / "best.safetensors").is_file()


def test_a_part_that_was_begun_is_gone_on_with(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(run_module, "train", lambda recipe, folder, **options: calls.append(options))
    train_without(make_recipe(), tmp_path, [3])
    (tmp_path / "state.pt").touch()
    train_without(make_recipe(), tmp_path, [3])
    assert [(c["resume"], c["method"].leave_out) for c in calls] == [(False, (3,)), (True, (3,))]


def test_what_cannot_be_held_out(run: Path) -> None:
    opened = open_run(run)
    with pytest.raises(UserError, match="13 parts of 12 images"):
        opened.losses("train", kind=LossKind(folds=13), train_without=train_without)
    assert opened.losses("val", kind=LossKind(folds=4)).kind.folds == 1  # nobody has learnt the validation images


def test_the_detector_s_own_loss_has_no_positives() -> None:
    assert LossKind.of(PredictorConfig(guidance=False, positives="matched")) == LossKind(False)


def test_labels_on_the_command_line(run: Path, capsys: Any) -> None:
    assert main(["dpnet", "labels", str(run), "--guidance-positives", "matched"]) == 0
    assert "12 images, guidance loss, matched positives, T = 1.1" in capsys.readouterr().out
    for command, words in (
        (["--guidance-positives", "matched", "--no-guidance"], "positives of a loss that has none"),
        (["--folds", "2", "--part", "val"], "no detector has learnt validation images"),
    ):
        assert main(["dpnet", "labels", str(run), *command]) == 2
        assert words in capsys.readouterr().err


def test_several_processes_hold_nothing_out(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two:
        num_processes, is_main_process = 2, True

    monkeypatch.setattr(run_module, "join_processes", Two)
    recipe = make_recipe(model={"norm": "bn"}).model_copy(
        update={"dynamic": DynamicConfig(predictor=PredictorConfig(folds=2))}
    )
    with pytest.raises(UserError, match="made by one process"):
        run_module.train(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        (None, 35),
        ({}, 105),  # three factors
        ({"factors": [0.5, 0.25]}, 70),
        ({"scale_clip": False}, 35),
        ({"train": "single", "norms": "shared"}, 35),
    ],
)
def test_gradients_of_a_sum_are_clipped_at_the_sum_of_bounds(dynamic: dict | None, expected: float) -> None:
    config = None if dynamic is None else DynamicConfig.model_validate(dynamic)
    assert optimisation(TrainConfig(clip_grad=35), config).clip_grad == expected
    assert optimisation(TrainConfig(clip_grad=None), config).clip_grad is None
    assert optimisation(TrainConfig(optimizer="sgd", lr=0.5), config).lr == 0.5


def test_a_run_clips_so(make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two factors, and a bound that the gradient is far above: the norm of what is left is twice the bound."""
    from accelerate import Accelerator

    norms, plain = [], Accelerator.clip_grad_norm_

    def watched(self: Accelerator, parameters: Any, bound: float, *more: Any) -> Any:
        parameters = list(parameters)
        found = plain(self, parameters, bound, *more)
        norms.append(float(sum(p.grad.square().sum() for p in parameters if p.grad is not None) ** 0.5))
        return found

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", watched)
    recipe = make_recipe(model={"norm": "bn", "freeze_norms": False}, train={"epochs": 1, "clip_grad": 0.01})
    dynamic = DynamicConfig(factors=[0.5, 0.25])
    run_module.train(recipe.model_copy(update={"dynamic": dynamic}), tmp_path / "run")
    assert norms == pytest.approx([0.02] * len(norms), rel=1e-3)
    assert len(norms) == 3
    content = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert content["train"]["clip_grad"] == 0.01  # the recipe stays what was asked for


def test_a_run_that_clipped_the_sum_goes_on_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"recipe": {"dynamic": {"stride": "kept", "train": "mixed"}}}
    monkeypatch.setattr("flyspeck.train.state.load_run_state", lambda path: {"description": before})
    now = {"recipe": {"dynamic": {"stride": "kept", "train": "mixed", "scale_clip": True}}}
    with pytest.raises(UserError, match=r"clipped the sum.*set dynamic\.scale_clip to false"):
        restore_run(tmp_path, None, None, None, now)  # type: ignore[arg-type]
