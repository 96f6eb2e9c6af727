"""The eight functions at the front door: what they look like, and the README's walk through the whole job."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import flyspeck
from flyspeck.callable_package import CallablePackage

README = Path(__file__).parents[1] / "README.md"
DOOR = (
    "inspect",
    "init",
    "auto",
    "train",
    "evaluate",
    "build",
    "load_predictor",
    "predict",
    "export",
    "report",
    "find_label_errors",
)


@pytest.mark.parametrize("name", [*DOOR, "split"])
def test_a_function_at_the_door_is_typed_keyword_only_and_documented(name: str) -> None:
    opened = getattr(flyspeck, name)
    function = opened.function if isinstance(opened, CallablePackage) else opened
    signature = inspect.signature(opened)
    assert signature == inspect.signature(function)
    first, *others = signature.parameters.values()
    assert first.kind in (first.POSITIONAL_OR_KEYWORD, first.KEYWORD_ONLY)
    assert {parameter.kind for parameter in others} == {first.KEYWORD_ONLY}  # and so neither *args nor **options
    assert signature.return_annotation not in (signature.empty, "None", "Any")
    for parameter in signature.parameters.values():
        assert parameter.annotation not in (parameter.empty, "Any"), f"{name}: {parameter.name}"
    text = inspect.getdoc(function) or ""
    assert text in (inspect.getdoc(opened) or "")  # what `help(flyspeck.train)` prints, a package's too
    sections = re.split(r"^(Args|Returns|Raises):$", text, flags=re.MULTILINE)
    assert sections[1::2] == ["Args", "Returns", "Raises"]
    told = re.findall(r"^    (\w+): \S", sections[2], re.MULTILINE)
    assert told == list(signature.parameters)


def test_the_walk_in_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    block = next(b for b in re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S) if ".train(" in b)
    statements = ast.parse(block).body
    assert len(statements) - 1 == 10  # below the import
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block, str(README), "exec"), names)
    said = capsys.readouterr().out
    assert "what this asks of a detector" in said
    assert "flyspeck: AP at IoU" in said
    run = names["run"]
    assert run.folder == Path("runs/first")
    assert run.weights.is_file()
    assert [record["epoch"] for record in run.history] == list(range(1, 9))
    result = flyspeck.evaluate(ground_truth=names["val"], detections=run)
    assert run.metrics["ap50_tiny"] == pytest.approx(result.value(metric="AP", iou=0.5, area="tiny"), abs=1e-9)
    assert Path("found/detections.json").is_file()
    assert Path("report.html").stat().st_size > 100_000
    image = sorted(Path("scenes/val/images").glob("*.png"))[0]
    (wanted,) = flyspeck.load_predictor(run, score_threshold=0).predict(image)
    (same,) = flyspeck.load_predictor("first.onnx", score_threshold=0).predict(image)
    assert len(wanted)
    np.testing.assert_allclose(np.sort(same.scores), np.sort(wanted.scores), atol=1e-3)


def test_build_is_the_one_builder_with_its_errors() -> None:
    head = {"depth": 1}
    mean, std = (0.5,), (0.2,)
    built = flyspeck.build(
        "fcos:resnet18",
        classes=["a", "b"],
        width=0.25,
        channels=16,
        levels="2-5",
        norm="bn",
        mean=mean,
        std=std,
        head=head,
    )
    assert built.classes == ("a", "b")
    assert [feature.stride for feature in built.features] == [4, 8, 16, 32]
    images = flyspeck.ImageBatch(torch.randint(0, 255, (2, 1, 64, 96), dtype=torch.uint8), ((64, 96), (60, 90)))
    assert [found.image_size for found in built.eval().detect(images)] == [(64, 96), (60, 90)]
    backbone = flyspeck.build("resnet18", width=0.25)
    assert [feature.stride for feature in backbone.features] == [4, 8, 16, 32]
    with pytest.raises(flyspeck.UserError, match="did you mean 'resnet18'"):
        flyspeck.build("fcos:resnt18")
    with pytest.raises(flyspeck.UserError, match="did you mean 'depth'"):
        flyspeck.build("fcos:resnet18", head={"dept": 1})
    with pytest.raises(flyspeck.UserError, match="give both"):
        flyspeck.build("fcos:resnet18", mean=mean)
    with pytest.raises(flyspeck.UserError, match="no norm 'bm'"):
        flyspeck.build("fcos:resnet18", norm="bm")


def test_evaluate_takes_files_folders_tables_and_lists(tmp_path: Path) -> None:
    truth = flyspeck.write_scenes(tmp_path / "scenes", num_images=2, seed=3, height=96, width=128, density=3)
    table = flyspeck.read_annotations(truth)
    found = []
    for row, image_id in enumerate(table.image_ids.tolist()):
        mine = (table.image_index == row) & ~table.ignore
        size = tuple(int(side) for side in table.sizes[row])
        scores = np.linspace(0.9, 0.5, mine.sum())
        found.append(flyspeck.Detections(table.boxes[mine], scores, table.labels[mine], size, image_id=image_id))
    detections = flyspeck.DetectionTable.from_list(found, table)
    detections.write_coco(tmp_path / "out" / "detections.json", table)
    given = [
        flyspeck.evaluate(ground_truth=one, detections=two)
        for one in (truth, str(truth), table)
        for two in (tmp_path / "out", tmp_path / "out" / "detections.json", detections, found)
    ]
    # Boxes of the generated scenes are whole pixels: as text and as arrays they are the same.
    assert {result.value(metric="AP", iou=0.5, area="all") for result in given} == {1.0}
    half = flyspeck.evaluate(ground_truth=table, detections=found[:1], bins=(2, 8, 400), ious=(0.5,), max_dets=50)
    assert 0 < half.value(metric="AP", iou=0.5, area="all") < 1
    with pytest.raises(flyspeck.UserError, match="give its file"):
        flyspeck.evaluate(ground_truth=table, detections=found, classes=["car"])
    with pytest.raises(flyspeck.UserError, match="no such file or folder"):
        flyspeck.evaluate(ground_truth=truth, detections=tmp_path / "nothing.json")


def test_a_mapping_is_a_recipe_with_its_errors(tmp_path: Path) -> None:
    from flyspeck.train.trained import read_recipe

    recipe = {"name": "r", "data": {"train": Path("a.json"), "val": "b.json"}, "model": {"name": "fcos:resnet18"}}
    read, folder = read_recipe(recipe, ["train.epochs=3", "model.width=0.5"])
    assert folder is None
    assert (read.train.epochs, read.model.width) == (3, 0.5)
    assert read.data.train == str(Path.cwd() / "a.json")
    assert "train" not in recipe
    assert recipe["model"] == {"name": "fcos:resnet18"}
    with pytest.raises(flyspeck.UserError, match="did you mean 'epochs'"):
        flyspeck.train(recipe, changes=["train.epoch=3"])
    with pytest.raises(ValueError, match="model_copy"):
        flyspeck.train(read, changes=["train.epochs=3"])
    with pytest.raises(flyspeck.UserError, match="no such recipe"):
        flyspeck.train(tmp_path)


PACKAGES = ("evaluate", "export", "report", "train")


@pytest.mark.parametrize(
    "code",
    [
        "import flyspeck; f = flyspeck.NAME",
        "from flyspeck import NAME as f",
        "import flyspeck.NAME; f = flyspeck.NAME",
        "import flyspeck.types, flyspeck; import flyspeck.NAME as f",
    ],
)
def test_a_package_at_the_door_is_a_function_however_it_was_imported(code: str) -> None:
    lines = [f"{code.replace('NAME', name)}\nassert callable(f) and f.__path__" for name in PACKAGES]
    lines += ["import sys; assert 'torch' not in sys.modules"]
    out = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr


def test_modules_of_a_package_at_the_door_are_still_found() -> None:
    import flyspeck.train.run as run

    assert flyspeck.train.run is run
    assert callable(flyspeck.train)
    assert "recipe" in inspect.signature(flyspeck.train).parameters


def test_where_torch_is_missing_data_is_inspected_and_scored(tmp_path: Path) -> None:
    truth = flyspeck.write_scenes(tmp_path / "scenes", num_images=1, seed=3, height=96, width=128)
    (tmp_path / "detections.json").write_text("[]")
    code = f"""
import sys
sys.modules["torch"] = None
import flyspeck
print(flyspeck.inspect({str(truth)!r}))
print(flyspeck.evaluate(ground_truth={str(truth)!r}, detections={str(tmp_path)!r}).table())
print(sorted(name for name in flyspeck.__all__ if name[0] == "_"), flyspeck.predict, flyspeck.load_predictor)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "flyspeck: AP at IoU" in out.stdout
