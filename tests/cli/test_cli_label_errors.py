from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import flyspeck
from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.label_errors.opinions import seen_in_training, training_images
from small_training import base_recipe, write_squares


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on eight images, which has learnt next to nothing."""
    folder = write_squares(tmp_path_factory.mktemp("label_errors"))
    recipe = base_recipe()
    recipe["data"] |= {name: str(folder / "data" / "squares" / f"{name}.json") for name in ("train", "val")}
    recipe["model"]["min_score"] = 0.001
    flyspeck.train(recipe, out=folder / "run")
    return folder / "run"


def data(run: Path, name: str) -> Path:
    return run.parent / "data" / "squares" / f"{name}.json"


def errors(*arguments: object) -> int:
    return main(["data", "errors", *map(str, arguments), "--device", "cpu"])


def test_a_set_that_the_run_did_not_learn_from(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert errors(run, data(run, "val"), "--out", out, "--to", "label-studio,cvat", "--chance", "0", "--draw", "4") == 0
    said = capsys.readouterr().out
    assert said.startswith("coco: val.json: 5 images, 8 annotations\nkind ")
    assert {path.name for path in out.iterdir()} == {
        "errors.csv", "errors.json", "index.html", "label_studio.json", "cvat.xml"
    }  # fmt: skip
    facts = json.loads((out / "errors.json").read_text())
    assert set(facts["rates"]) == {"missing", "superfluous", "class", "placement"}
    chances = [one["chance"] for one in facts["suspects"]]
    assert len(chances) >= 8  # every annotation, as the least chance is 0
    assert chances == sorted(chances, reverse=True)
    assert (
        errors(
            run / "best.safetensors",
            data(run, "val"),
            "--out",
            tmp_path / "again",
            "--chance",
            "0",
            "--draw",
            "0",
            "--json",
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out) == facts
    packaged = tmp_path / "package"
    packaged.mkdir()
    shutil.copy(run / "best.safetensors", packaged / "model.safetensors")
    assert errors(packaged, data(run, "train"), "--out", tmp_path / "third") == 0
    assert "nothing says what it was trained on; its opinion is taken as held out" in capsys.readouterr().err


def test_a_run_that_was_trained_on_the_set_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert errors(run, data(run, "train"), "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "was trained on 8 of these 8 images, so that its opinion of them is not held out; train folds with" in said
    assert not (tmp_path / "out").exists()
    copied = shutil.copytree(data(run, "train").parent, tmp_path / "copy") / "train.json"
    assert errors(run, copied, "--out", tmp_path / "out") == 2  # the same images elsewhere are the same images
    assert errors(run / "best.safetensors", copied, "--out", tmp_path / "out") == 2
    capsys.readouterr()
    assert errors(run, data(run, "train"), "--out", tmp_path / "out", "--in-sample") == 0
    assert "errors that it learnt by heart are not found" in capsys.readouterr().err


def test_of_several_runs_the_one_that_did_not_see_an_image_judges_it(run: Path, tmp_path: Path) -> None:
    table = flyspeck.read_annotations(data(run, "train"))
    other = shutil.copytree(run, tmp_path / "other")
    recipe = (other / "recipe.yaml").read_text().replace(str(data(run, "train")), str(data(run, "val")))
    (other / "recipe.yaml").write_text(recipe)
    assert training_images(other) == [data(run, "val").parent / f"val{n}.png" for n in range(1, 6)]
    found = flyspeck.find_label_errors([run, other], annotations=table)
    assert len(found.annotations) == 8
    assert found.files == ()
    (other / "recipe.yaml").write_text(recipe.replace(str(data(run, "val")), "gone.json"))
    assert training_images(other) is None
    seen = seen_in_training(table, [table.path(3), tmp_path / "elsewhere" / "train1.png"])
    np.testing.assert_array_equal(np.flatnonzero(seen), [3])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}", "{set}", "--to", "yolo"], "--to: no pre-annotations for 'yolo'; known: cvat, fiftyone"),
        (["{run}", "{set}", "--to", "cvat,"], "--to: 'cvat,' has an empty name"),
        (["{run}", "nowhere.json"], "nowhere.json: no such file or folder"),
        (["nowhere", "{set}"], "nowhere: no such run or checkpoint"),
        (["{run}", "{set}", "--folds", "1"], "--folds: 1 folds of 5 images; give 2 at least, 5 is usual"),
        (["{run}", "{set}", "--folds", "6"], "--folds: 6 folds of 5 images"),
        (["{run}", "{run}", "{set}", "--folds", "2"], "--folds with 2 runs; give one run"),
        (["{run}/best.safetensors", "{set}", "--folds", "2"], "no recipe to train folds by; give a run folder"),
        (["{run}", "{set}", "--classes", "circle"], "circle"),
        (["{run}", "{other}"], "knows square, of which the set has nothing; known: round"),
        (["{run}", "{empty}"], "no objects to judge; annotate some first"),
        (["{run}", "{lost}"], "no image can be read: "),
    ],
)
def test_mistakes_are_one_line(
    run: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(data(run, "val").read_text())
    places = {"run": str(run), "set": str(data(run, "val"))}
    changed = {
        "other": content | {"categories": [{"id": 1, "name": "round"}]},
        "empty": content | {"annotations": []},
        "lost": content
        | {"images": [image | {"file_name": f"no_{image['file_name']}"} for image in content["images"]]},
    }
    for name, text in changed.items():
        path = tmp_path / name / "val.json"
        shutil.copytree(data(run, "val").parent, path.parent)
        path.write_text(json.dumps(text))
        places[name] = str(path)
    assert errors(*(argument.format(**places) for argument in arguments), "--out", tmp_path / "out") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("note:", "fold"))]
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_a_broken_image_is_named_and_not_judged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(data(run, "val").parent, tmp_path / "broken")
    (folder / "val2.png").write_bytes(b"no image")
    assert errors(run, folder / "val.json", "--out", tmp_path / "out", "--chance", "0", "--draw", "0") == 0
    said = capsys.readouterr()
    assert "note: 1 image is not judged: " in said.err
    assert "4 images, 7 annotations" in said.out
    assert "val2.png" not in (tmp_path / "out" / "errors.csv").read_text()


def test_python_says_what_is_missing(run: Path) -> None:
    with pytest.raises(UserError, match="formats: nowhere to write; give out"):
        flyspeck.find_label_errors(run, annotations=data(run, "val"), formats=["cvat"])
    with pytest.raises(UserError, match="least chance: a chance of 2; choose one from 0 to 1"):
        flyspeck.find_label_errors(run, annotations=data(run, "val"), least_chance=2)


@pytest.mark.slow
def test_folds_are_trained_and_judge_what_they_did_not_see(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert errors(run, data(run, "train"), "--out", out, "--folds", "2") == 0
    assert capsys.readouterr().out.startswith("coco: train.json: 8 images, 12 annotations")
    halves = [training_images(out / "folds" / f"fold{n}" / "run") for n in (1, 2)]
    names = [{path.name for path in half or []} for half in halves]
    assert names[0] | names[1] == {f"train{n}.png" for n in range(1, 9)}
    assert not names[0] & names[1]
    assert flyspeck.find_label_errors(
        [run, *(out / "folds" / f"fold{n}" / "run" for n in (1, 2))], annotations=data(run, "train")
    )
