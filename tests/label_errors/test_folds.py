from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.label_errors.folds import DONE, split_folds, train_folds
from flyspeck.train.config import dump_recipe, parse_recipe
from planted_errors import table
from small_training import base_recipe


def of_names(names: list[str]) -> Annotations:
    from dataclasses import replace

    empty = table(np.zeros((0, 4)), np.zeros(0), np.zeros(0), num_images=len(names))
    return replace(empty, file_names=tuple(names))


def test_frames_that_follow_each_other_share_a_fold_whatever_their_order_in_the_file() -> None:
    """HIT-UAV's names count through the set, whatever stands before the number; the jump of frame numbers is the cut."""
    frames = [*range(100, 150), *range(400, 452), *range(900, 948)]
    names = [f"{frame % 2}_60_{frame % 7}_{frame:05d}.png" for frame in frames]
    order = np.random.default_rng(0).permutation(len(names))
    parts = split_folds(of_names([names[row] for row in order]), 3)
    by_frame = dict(zip(np.array(frames)[order].tolist(), parts.tolist(), strict=True))
    assert [by_frame[frame] for frame in frames] == [0] * 50 + [1] * 52 + [2] * 48


def test_videos_in_folders_are_not_cut_where_that_can_be_avoided() -> None:
    names = [f"video{v}/{frame:04d}.png" for v in range(6) for frame in range(1, 18 + v)]
    parts = split_folds(of_names(names), 3)
    assert [len(set(parts[[name.startswith(f"video{v}/") for name in names]].tolist())) for v in range(6)] == [1] * 6
    assert (np.bincount(parts) > 0.25 * len(names)).all()


@pytest.mark.parametrize(("count", "number"), [(2, 2), (5, 5), (11, 3), (100, 7)])
def test_every_fold_has_images(count: int, number: int) -> None:
    parts = split_folds(of_names([f"{chr(97 + row % 26)}{row}.png" for row in range(count)]), number)
    assert np.bincount(parts, minlength=number).min() >= 1
    assert len(np.bincount(parts)) == number


@pytest.mark.parametrize("number", [-1, 1, 4])
def test_impossible_folds(number: int) -> None:
    with pytest.raises(UserError, match="folds of 3 images"):
        split_folds(of_names(["a.png", "b.png", "c.png"]), number)


def test_each_fold_is_trained_on_the_others_by_the_recipe(tmp_path: Path) -> None:
    content = base_recipe()
    content["data"] |= {"train": "all.json", "val": "val.json"}
    content["model"]["start"] = "runs/before"
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(parse_recipe(content)))
    boxes = np.tile([[5.0, 5, 9, 9]], (9, 1))
    annotations = table(boxes, np.arange(9) % 2, np.arange(9))
    calls: list[tuple[Any, Path, bool]] = []

    def trained(recipe: Any, out: Path, resume: bool) -> None:
        calls.append((recipe, out, resume))
        out.mkdir(parents=True)
        (out / DONE).write_text("{}")

    lines: list[str] = []
    runs = train_folds(run, annotations, 3, tmp_path / "out", train=trained, say=lines.append)
    assert [folder for folder, _ in runs] == [tmp_path / "out" / f"fold{n}" / "run" for n in (1, 2, 3)]
    assert np.sort(np.concatenate([rows for _, rows in runs])).tolist() == list(range(9))
    for (folder, held_out), (recipe, out, resume) in zip(runs, calls, strict=True):
        from flyspeck.data.readers import read_annotations

        learnt = read_annotations(recipe.data.train)
        assert (out, resume) == (folder, False)
        assert set(learnt.image_ids.tolist()) == {1 + row for row in range(9)} - {1 + int(row) for row in held_out}
        assert (recipe.model.start, recipe.data.classes) == (None, ["car", "person"])
        assert recipe.train.epochs == 2
    assert "fold 2 of 3" in lines[1]
    train_folds(run, annotations, 3, tmp_path / "out", train=trained, say=lines.append)
    assert len(calls) == 3  # what is finished is kept


def test_folds_need_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe to train folds by; give a run folder"):
        train_folds(tmp_path, of_names(["a.png", "b.png"]), 2, tmp_path, train=print, say=print)
