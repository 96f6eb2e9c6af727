"""Whole distillations on a small set: stages, folders, the table, and runs that stop half way."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.files import read_jsonl
from flyspeck.train.build import load_described
from flyspeck.train.checkpoint import load_state, load_weights
from flyspeck.train.config import Recipe, dump_recipe, load_recipe, parse_recipe
from flyspeck.train.distill import stages
from flyspeck.train.distill.config import DistillConfig
from flyspeck.train.distill.objective import FeatureObjective
from flyspeck.train.distill.table import StudentTable
from flyspeck.train.run import train

RecipeMaker = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def teacher(make_recipe: RecipeMaker, tmp_path: Path) -> Path:
    """A teacher's recipe: wider, and of another head than the students."""
    head = {"hidden": 16, "samples": 16, "train_proposals": 30, "proposals": 20}
    wide = make_recipe(
        model={"name": "faster_rcnn:mobilenet_v2", "channels": 24, "head": head},
        train={"epochs": 1},
        augment={"photometric": 0},
    )
    (tmp_path / "teacher.yaml").write_text(dump_recipe(wide))
    return tmp_path / "teacher.yaml"


def distilled(recipe: Recipe, teacher: Path, **fields: object) -> Recipe:
    section = DistillConfig(teacher=str(teacher), weight=0.1, **fields)  # type: ignore[arg-type]
    return recipe.model_copy(update={"distill": section})


def test_all_stages_leave_run_folders_and_one_table(
    make_recipe: RecipeMaker, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = distilled(
        make_recipe(augment={"photometric": 0}), teacher, finetune={"epochs": 1}, cache=str(tmp_path / "cache")
    )
    folder = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        table = stages.distill(recipe, folder)
    assert "24 images x" in caplog.text
    assert [row.name for row in table.rows] == ["teacher", "distilled (hierarchical)", "run (hierarchical fine-tuned)"]
    assert table.rows[0].params > table.rows[1].params == table.rows[2].params
    assert set(table.rows[1].similarity) == {"P2", "P3", "P4", "P5"}
    assert json.loads((folder / "table.json").read_text())["rows"][2]["name"] == table.rows[2].name
    assert "| AP50_tiny1 |" in (folder / "table.md").read_text()
    names = {path.name for path in folder.iterdir()}
    assert {"recipe.yaml", "best.safetensors", "detections.json", "stage.json", "teacher", "distilled"} <= names
    # The similarity of the levels is logged through training; it is not minimised.
    record = next(r for r in read_jsonl(folder / "distilled" / "metrics.jsonl") if r["kind"] == "step")
    assert set(record["observed"]) == {f"similarity_P{n}" for n in (2, 3, 4, 5)}
    assert {"kd_spatial", "kd_semantic", "kd_contextual"} <= set(record["losses"])
    # The student is a plain detector, and the fine-tuning began where the distillation ended.
    student, description = load_described(folder)
    assert set(load_weights(folder / "best.safetensors")[0]) == set(student.state_dict())
    assert description["distill"]["stage"] == "fine-tuned"
    assert load_recipe(folder / "recipe.yaml").train.epochs == 1
    # Finished stages are kept.
    with caplog.at_level(logging.INFO):
        caplog.clear()
        again = stages.distill(recipe, folder, resume=True)
    assert "epoch" not in caplog.text
    assert again.rows[1].metrics == table.rows[1].metrics
    assert_stages_survive_a_kill(recipe, folder, again)
    with pytest.raises(UserError, match="holds a run already"):
        stages.distill(recipe, folder)
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"lr": 0.5})})
    with pytest.raises(UserError, match="finished with another train"):
        stages.distill(longer, folder, resume=True)


def assert_stages_survive_a_kill(recipe: Recipe, folder: Path, table: StudentTable) -> None:
    """A kill after a training and before its stage was noted, and one between the distillation and the fine-tuning."""
    final = load_weights(folder / "last.safetensors")[0]
    for path in (folder / "teacher", folder / "distilled"):
        (path / "stage.json").unlink()
    for path in [p for p in folder.iterdir() if p.is_file()]:
        path.unlink()  # the fine-tuning had not begun
    again = stages.distill(recipe, folder, resume=True)
    assert [row.metrics for row in again.rows] == [row.metrics for row in table.rows]
    found = load_weights(folder / "last.safetensors")[0]
    assert all(torch.equal(found[name], value) for name, value in final.items())
    assert all((path / "stage.json").is_file() for path in (folder, folder / "teacher", folder / "distilled"))


class Stop(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("stop_at", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_stopped_distillation_goes_on_bit_for_bit(
    make_recipe: RecipeMaker, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    train(load_recipe(teacher), tmp_path / "teacher")
    recipe = distilled(
        make_recipe(train={"checkpoint_every": 2, "eval_every": 2}), tmp_path / "teacher", adaptive="gradient_norm"
    )
    stages.train_student(recipe, tmp_path / "whole")
    plain, calls = FeatureObjective.forward, 0

    def forward(self: Any, images: Any, targets: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at + 1:
            raise Stop
        return plain(self, images, targets)

    monkeypatch.setattr(FeatureObjective, "forward", forward)
    with pytest.raises(Stop):
        stages.train_student(recipe, tmp_path / "stopped")
    stages.train_student(recipe, tmp_path / "stopped", resume=True)
    one, two = (load_state(tmp_path / name / "state.pt")["objective"] for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("metric", "teacher", "student", "said"),
    [
        ("ap50_tiny", 0.4, 0.5, True), ("ap50_tiny", 0.5, 0.4, False), ("ap50_tiny", -1.0, 0.5, True),
        ("mr50_reasonable", 0.5, 0.4, True), ("mr50_reasonable", 0.4, 0.5, False), ("mr50_reasonable", -1.0, 0.5, True),
    ],
)  # fmt: skip
def test_a_worse_teacher_is_told_by_what_is_better_of_the_metric(
    metric: str, teacher: float, student: float, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a miss rate, less is."""
    with caplog.at_level(logging.WARNING):
        stages._say_worse(metric, {metric: teacher}, {metric: student})
    assert ("the teacher is worse than the student" in caplog.text) == said


@pytest.mark.slow
def test_the_baselines_and_a_better_student(
    make_recipe: RecipeMaker,
    teacher: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(load_recipe(teacher), tmp_path / "teacher")
    recipe = make_recipe(train={"epochs": 1})
    monkeypatch.setattr(stages, "_measure_teacher", lambda *_: {"ap50_tiny": -0.5})
    with caplog.at_level(logging.WARNING):
        stages.distill(distilled(recipe, tmp_path / "teacher", method="none"), tmp_path / "none")
    assert "the teacher is worse than the student on the validation set: ap50_tiny -50.0" in caplog.text
    table = stages.distill(
        distilled(recipe, tmp_path / "teacher", method="single", levels=[3]),
        tmp_path / "single",
        against=[tmp_path / "none"],
    )
    assert [row.name for row in table.rows] == ["teacher", "single (single)", "none (none)"]
    # Plain training and `none` are the same thing.
    train(recipe, tmp_path / "plain")
    one, two = (load_weights(tmp_path / name / "last.safetensors")[0] for name in ("plain", "none"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(UserError, match="heads of one kind only"):
        stages.distill(distilled(recipe, tmp_path / "teacher", method="response"), tmp_path / "response")
    # A student is exported without a trace of adapters and teacher: the graph has the weights of one that learnt alone.
    alone = exported_weights(tmp_path / "none")
    assert len(alone) > 50
    assert exported_weights(tmp_path / "single") == alone


def exported_weights(folder: Path) -> dict[str, list[int]]:
    """Names and shapes of the weights in the exported graph of a run."""
    onnx = pytest.importorskip("onnx")
    assert main(["export", str(folder), "--out", str(folder / "model.onnx"), "--limit", "1"]) == 0
    graph = onnx.load(str(folder / "model.onnx")).graph
    return {one.name: list(one.dims) for one in graph.initializer if "." in one.name}  # without folded constants


def test_recipes_that_do_not_fit(make_recipe: RecipeMaker, teacher: Path, tmp_path: Path) -> None:
    recipe = make_recipe()
    with pytest.raises(UserError, match="no section 'distill'"):
        stages.distill(recipe, tmp_path / "run")
    with pytest.raises(UserError, match=r"a section 'distill'; run it with `flyspeck distill`"):
        train(distilled(recipe, teacher), tmp_path / "run")
    with pytest.raises(UserError, match=r"augment.photometric changes them anew"):
        stages.train_student(distilled(recipe, teacher, cache="somewhere"), tmp_path / "run")
    (tmp_path / "odd.yaml").write_text(dump_recipe(distilled(recipe, teacher)))
    with pytest.raises(UserError, match="the teacher's recipe distils itself"):
        stages.distill(distilled(recipe, tmp_path / "odd.yaml"), tmp_path / "run")
    # Heads and pyramids that do not fit are said before the teacher is trained.
    with pytest.raises(UserError, match="heads of one kind only"):
        stages.distill(distilled(recipe, teacher, method="response"), tmp_path / "run")
    with pytest.raises(UserError, match="no common level P7: the student has P2, P3, P4, P5, P6, the teacher P2"):
        stages.distill(distilled(recipe, teacher, levels=[7]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_how_much_larger_a_teacher_sees(make_recipe: RecipeMaker, teacher: Path) -> None:
    def scale(data: dict, enlarge: dict, **fields: object) -> float:
        return stages._scale(distilled(make_recipe(data=data), teacher, **fields), {"enlarge": enlarge})

    twice, plain = {"factor": 2.0, "short_side": None}, {"factor": 1.0, "short_side": None}
    assert scale({}, plain) == 1
    assert scale({}, twice) == 2  # it was trained on images twice as large
    assert scale({"enlarge": 2.0}, twice) == 1
    assert scale({"enlarge": 0.5}, twice) == 4
    assert scale({}, plain, teacher_scale=3.0) == 3
    assert scale({"short_side": 512}, {"factor": 1.0, "short_side": 512}) == 1
    with pytest.raises(UserError, match="by different rules"):
        scale({}, {"factor": 1.0, "short_side": 512})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"method": "single", "levels": [2, 3]}, "method single compares one level"),
        ({"levels": [3, 2]}, "name each level once, finest first"),
        ({"spatial": [1.0, 2.0]}, "spatial has 2 weights: name as many levels"),
        ({"levels": [2], "semantic": -1.0}, "distill.semantic: Input should be greater than or equal to 0"),
        ({"wieght": 1.0}, "did you mean 'weight'"),
    ],
)
def test_bad_sections_are_explained(make_recipe: RecipeMaker, section: dict, message: str) -> None:
    content = make_recipe().model_dump(mode="json")
    with pytest.raises(UserError, match=message):
        parse_recipe({**content, "distill": {"teacher": "x", **section}})


def test_paths_are_relative_to_the_recipe(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    content = distilled(make_recipe(), Path("teacher.yaml"), cache="cache")
    (tmp_path / "student.yaml").write_text(dump_recipe(content))
    section = load_recipe(tmp_path / "student.yaml").distill
    assert section is not None
    assert (section.teacher, section.cache) == (str(tmp_path / "teacher.yaml"), str(tmp_path / "cache"))
