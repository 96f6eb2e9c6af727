"""What stops a run, before it has cost anything: missing and broken images of both sets, and a start that can be repeated."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flyspeck.errors import UserError
from flyspeck.train.config import Recipe
from flyspeck.train.run import train

Make = Callable[..., Recipe]


@pytest.fixture
def recipe(make_recipe: Make, tiny_set: Path, tmp_path: Path) -> Recipe:
    """On a set of its own, whose files a test may break."""
    own = shutil.copytree(tiny_set, tmp_path / "set")
    return make_recipe(data={"train": str(own / "train.json"), "val": str(own / "val.json")})


def remove(recipe: Recipe, which: str, number: int) -> Path:
    """Takes one image of a set away; returns its path."""
    source = Path(getattr(recipe.data, which))
    path = sorted((source.parent / "images").glob(f"{source.stem}*"))[number]
    path.unlink()
    return path


@pytest.mark.parametrize("which", ["train", "val"])
def test_a_missing_image_of_either_set_stops_before_the_first_step(recipe: Recipe, tmp_path: Path, which: str) -> None:
    path = remove(recipe, which, 0)
    with pytest.raises(UserError, match=f"1 of .* images cannot be used; the first: .*{path.name}"):
        train(recipe, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.yaml"))  # free for the next start


@pytest.mark.parametrize("which", ["train", "val"])
def test_a_share_of_either_set_may_be_missing(recipe: Recipe, tmp_path: Path, which: str) -> None:
    remove(recipe, which, 0)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_broken_share": 0.5})})
    assert train(recipe, tmp_path / "run")


def test_full_finds_what_headers_do_not(recipe: Recipe, tmp_path: Path) -> None:
    source = Path(recipe.data.val)
    path = sorted((source.parent / "images").glob(f"{source.stem}*"))[0]
    path.write_bytes(path.read_bytes()[:-200])
    full = recipe.model_copy(update={"data": recipe.data.model_copy(update={"check_files": "full"})})
    with pytest.raises(UserError, match=path.name):
        train(full, tmp_path / "run")


def test_an_evaluation_that_fails_loses_no_epoch(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(recipe, tmp_path / "whole")

    def fails(*_: object, **__: object) -> dict[str, float]:
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("flyspeck.train.measure.detect_all", fails)
        with pytest.raises(UserError, match="the disk is full"):
            train(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "state.pt").is_file()
    assert train(recipe, tmp_path / "run", resume=True) == expected


def test_a_start_that_failed_can_be_resumed_or_begun_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fails(*_: object, **__: object) -> None:
        raise UserError("no such device")

    with monkeypatch.context() as patch:
        patch.setattr("flyspeck.train.run.fit", fails)
        with pytest.raises(UserError, match="no such device"):
            train(recipe, tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text("killed before its first checkpoint")
    with pytest.raises(UserError, match="holds a run that stopped before its first checkpoint"):
        train(recipe, tmp_path / "run")
    assert train(recipe, tmp_path / "run", resume=True)
