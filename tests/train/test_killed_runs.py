"""A run that is killed at any of its writes is neither stuck nor lost: it goes on, or begins again, and ends as it would have."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flyspeck import files
from flyspeck.cli import tune
from flyspeck.errors import UserError
from flyspeck.train import checkpoint, run
from flyspeck.train.checkpoint import load_weights
from flyspeck.train.config import Recipe
from flyspeck.train.run import begun, train, train_without

RecipeMaker = Callable[..., Recipe]
PLAN = {"epochs": 1, "ema": 0.9}


class Kill(BaseException):
    """Nothing of ours catches it."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Writes:
    """Counts the files that are replaced, and raises before number `kill` of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.kill = 0, 0
        plain = files.replace_file

        def replace_file(path: Path, *args: Any, **options: Any) -> None:
            self.count += 1
            if self.count == self.kill:
                raise Kill
            plain(path, *args, **options)

        for module in (files, checkpoint):
            monkeypatch.setattr(module, "replace_file", replace_file)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder / "best.safetensors")[0]


@pytest.mark.parametrize("kills", [[2], pytest.param(None, marks=pytest.mark.slow)])
def test_killed_at_a_write(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: list[int] | None
) -> None:
    """A kill leaves no time to tidy up. After it `--resume` works, and a plain start either does or names what does. `kills`
    None: at every write there is.
    """
    recipe = make_recipe(train=PLAN)
    writes = Writes(monkeypatch)
    train(recipe, tmp_path / "whole")
    expected, total = weights(tmp_path / "whole"), writes.count
    assert total >= 9  # recipe, environment, log, last and state twice, best, detections, evaluation
    monkeypatch.setattr(run, "_released_on_failure", lambda folder, accelerator: contextlib.nullcontext())

    stuck_before = 0
    for kill in kills or range(1, total + 1):
        folder = tmp_path / f"killed{kill}"
        writes.count, writes.kill = 0, kill
        with pytest.raises(Kill):
            train(recipe, folder)
        writes.kill = 0
        if begun(folder):
            what = "holds a run already" if (folder / "state.pt").exists() else "stopped before its first checkpoint"
            stuck_before += what.startswith("stopped")
            with pytest.raises(UserError, match=rf"{what}.* with --resume"):
                train(recipe, folder)
            train(recipe, folder, resume=True)
        else:
            train(recipe, folder)
        got = weights(folder)
        assert all(torch.equal(value, got[name]) for name, value in expected.items()), f"write {kill}"
        for name in ("detections.json", "evaluation.json"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), f"write {kill}"
    assert stuck_before >= (1 if kills else 3)


@pytest.mark.parametrize("kill", [1, 2, 3, 4])
def test_a_start_that_fails_leaves_a_folder_to_start_in(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: int
) -> None:
    """Where there is time to tidy up (a full disk, Ctrl-C before the first step), nothing claims the folder."""
    writes = Writes(monkeypatch)
    writes.kill = kill
    with pytest.raises(Kill):
        train(make_recipe(train=PLAN), tmp_path / "run")
    assert not begun(tmp_path / "run")


def test_a_refused_resume_leaves_no_trace(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    for options in ({"resume": True}, {"resume": True, "finish": True}):
        with pytest.raises(UserError, match=r"nothing to resume|no checkpoint to finish from"):
            train(make_recipe(train=PLAN), tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()


def test_whatever_resumes_by_itself_begins_a_run_again_that_was_killed_early(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    """A search, and the parts of a cross-validation: they have no `--resume` that a user could give to one of their runs."""
    recipe = make_recipe(train=PLAN)
    for name, go_on in (
        ("search", lambda folder: tune._train(recipe, folder)),
        ("part", lambda folder: train_without(recipe, folder, [1])),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text("killed before its first checkpoint")
        assert "ap50_tiny" in go_on(folder)
