"""Whatever stands in a recipe: it is taken, or one line says which file, line and key are wrong. Never a traceback."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.options import Options
from flyspeck.train import model_config as parts
from flyspeck.train.config import Recipe, load_recipe, parse_recipe

HEAD = "data: {train: a.json, val: b.json}\n"
DATA: dict[str, Any] = {"data": {"train": "a.json", "val": "b.json"}}


def fault(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, list(overrides))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("a: [1", 2, "not YAML"),
        ("train:\n\tepochs: 3", 3, "indent with spaces"),
        ("train: {epochs: 3\nmodel: {}", 3, "not YAML"),
        ("train:\n  epochs: 3\n  epochs: 4", 4, "the key 'epochs' stands twice, first in line 3"),
        ("train: {}\ntrain: {}", 3, "the key 'train' stands twice"),
        ("train: {epochs: !!int x}", 2, "'x' cannot be read as int"),
        ("train: {epochs: !!timestamp 2024-13-45}", 2, "cannot be read as timestamp"),
        ("train: {epochs: " + "9" * 5000 + "}", 2, "cannot be read as int"),
        ("train: {epochs: !!python/name:os.system x}", 2, "could not determine a constructor"),
        ("train: {epochs: !!python/object/apply:os.system [x]}", 2, "could not determine a constructor"),
        ("train: {[1]: 3}", 2, "not YAML"),
        ("train: {{a: 1}: 3}", 2, "not YAML"),
        ("train: *x", 2, "undefined alias"),
        ("---\na: 1\n---\nb: 1", 2, "not YAML"),
        ("train: \x07", 2, "not YAML"),
        ("train: {lr: .nan}", 2, "train.lr: Input should be a finite number"),
        ("train:\n  epochs: 3\n  lr: .inf", 4, "train.lr: Input should be a finite number, got inf"),
        ("train:\n  lr: 1e999", 3, "train.lr: Input should be a finite number"),
        ("train:\n  epochs: 1000000000000000000000", 3, "train.epochs: Input should be less than or equal to 1000000"),
        ("train:\n  seed: -1", 3, "train.seed: Input should be greater than or equal to 0, got -1"),
        ("train: {epochs: yes}", 2, "train.epochs: Input should be a number, got True"),
        ("train: {epochs: 2.5}", 2, "train.epochs: Input should be a valid integer"),
        ("train: 2024-01-01", 2, "train: Input should be a section: keys with values, got '2024-01-01'"),
        ("train: null", 2, "train: Input should be a section"),
        ("1: 2", 2, "unknown key '1'"),
        ("null: 2", None, "unknown key 'None'"),
        ("name: [x]", 2, "name: Input should be a valid string"),
        ("name: 12", 2, "name: Input should be a valid string, got 12; write it in quotes"),
        ("model:\n  head:\n    hiden: 3", 4, "unknown key 'model.head.hiden'; did you mean 'hidden'?"),
        ("model:\n  head: {rpn: {\n    sample: 3}}", 4, "unknown key 'model.head.rpn.sample'; did you mean 'samples'?"),
        ("model: {head: [1]}", 2, "model.head: Input should be a section"),
        ("model: {head: null}", 2, "model.head: Input should be a section"),
        ("model:\n  name: fcos:resnet18\n  head:\n    radius: abc", 5, "model.head.radius: Input should be a valid number"),
        ("model:\n  name: fcos:resnet18\n  head:\n    hidden: 3", 5,
         "unknown key 'model.head.hidden'; it belongs to faster_rcnn, cascade_rcnn"),
        ("model:\n  head: {depth: 3}", 3, "unknown key 'model.head.depth'; it belongs to retinanet, "),
        ("model:\n  anchors:\n    ratios: [0]", 4, "model.anchors.ratios.0: Input should be greater than 0, got 0"),
        ("model:\n  anchors:\n    ratios: []", 4, "model.anchors.ratios: List should have at least 1 item"),
        ("model:\n  fusion: 1.0.0", 3,
         "model.fusion: Input should be a valid number, unable to parse string as a number or a list or 'one', 'three'"),
        ("model:\n  assigner:\n    name: nwd\n    k: 4", 5, "unknown key 'model.assigner.k'; it belongs to rfla; nwd has "),
        ("model:\n  assigner:\n    name: nwdd", 3, "model.assigner: Input should have one of these as its name: 'max_iou'"),
        ("model:\n  assigner: {}", 3, "model.assigner: Unable to extract tag"),
        ("model:\n  assigner: nwd", 3, "model.assigner"),
        ("model:\n  backbone: {tf_same: true}", 3, "unknown key 'model.backbone.tf_same'; it belongs to mobilenet_v1; "
         "mobilenet_v2 has no options"),
        ("model:\n  name: fastr_rcnn:resnet18", 3, "model.name: no 'fastr_rcnn'"),
        ("model:\n  name: fcos:resnet19", 3, "model.name: no backbone 'resnet19'"),
        ("model:\n  name: resnet18", 3, "model.name: 'resnet18' is a backbone; write faster_rcnn:resnet18"),
        ("model:\n  name: dpnet:fcos:resnet18", 3, "is a name to count with; write fcos:resnet18"),
        ("train:\n  lr: 0.02", 2, "train: an lr of 0.02 is SGD's"),
        ("augment:\n  scale: [2, 1]", None, "augment.scale is a range (low, high)"),
        ("distill:\n  teacher: x\n  spatial: [1, -1]", 4, "distill.spatial.1: Input should be greater than or equal to 0"),
    ],
)  # fmt: skip
def test_one_line_says_where(tmp_path: Path, text: str, line: int | None, expected: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    found = fault(path)
    assert found.startswith(f"{path}, line {line}: " if line else f"{path}: "), found
    assert expected in found
    assert len(found) < len(str(path)) + 450


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: x\nmodel: \xff\n")
    assert fault(path) == f"{path}, line 2: not text in UTF-8; save it as UTF-8"
    path.write_text("[" * 5000, encoding="utf-8")
    assert "nested too deeply" in fault(path)
    path.write_text("", encoding="utf-8")
    assert "a recipe is a mapping of sections" in fault(path)
    path.write_text("\ufeff" + HEAD, encoding="utf-8")
    assert load_recipe(path).name == "run"
    path.write_text(HEAD + "name: 2024-01-01\n", encoding="utf-8")
    assert load_recipe(path).name == "2024-01-01"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.head=[", "--set model.head=[: not YAML"),
        ("model.fusion=one of them", "--set model.fusion=one of them: model.fusion: Input should be"),
        ("model.head.hiden=3", "--set model.head.hiden=3: unknown key 'model.head.hiden'; did you mean 'hidden'?"),
        ("modle.head=3", "--set modle.head=3: unknown key 'modle'; did you mean 'model'?"),
        ("model.name.x=3", "--set model.name.x=3: 'model.name' is not a section"),
        ("train.lr=0", "--set train.lr=0: train.lr: Input should be greater than 0, got 0"),
        ("train.lr=", "--set train.lr=: train.lr: Input should be a valid number, got None"),
        ("data.val=", "--set data.val=: data.val: Input should be a valid string, got None"),
        ("train.lr", "--set: 'train.lr' sets nothing; write section.key=value"),
        (".lr=3", "--set: '.lr=3' sets nothing"),
        ("=3", "--set: '=3' sets nothing"),
        ("train.epochs=2024-99-99", "--set train.epochs=2024-99-99: train.epochs: Input should be a valid integer"),
        ("train={epochs: 1, epochs: 2}", "the key 'epochs' stands twice"),
        ("train={epochs: 0}", "--set train={epochs: 0}: train.epochs: Input should be greater"),
    ],
)
def test_overrides_are_named_as_they_were_given(tmp_path: Path, override: str, expected: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(HEAD + "model: {name: 'faster_rcnn:resnet18'}\n")
    assert expected in fault(path, override)
    assert main(["train", str(path), "--set", override, "--print-config"]) == 2


def test_overrides_begin_sections_that_are_null(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(HEAD + "model: {anchors: null}\ndynamic: null\n")
    recipe = load_recipe(path, ["model.anchors.octaves=2", "dynamic.stage=stage3", "model.fusion=1"])
    assert recipe.model.anchors is not None
    assert recipe.model.anchors.octaves == 2
    assert recipe.dynamic is not None
    assert recipe.dynamic.stage == "stage3"
    assert recipe.model.fusion == 1.0


def test_paths_are_relative_to_the_file_or_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "recipes", tmp_path / "work"
    there.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    path = there / "r.yaml"
    path.write_text(HEAD + "model: {weights: w.pth}\ndistill: {teacher: t}\n")
    recipe = load_recipe(path, ["data.val=../v.json", "model.start=runs/a"])
    assert recipe.data.train == str(there / "a.json")
    assert recipe.data.val == str(tmp_path / "v.json")
    assert recipe.model.start == str(here / "runs" / "a")
    assert recipe.model.weights == str(there / "w.pth")
    assert recipe.distill is not None
    assert recipe.distill.teacher == str(there / "t")
    whole = load_recipe(path, ["data={train: x.json, val: ~/y.json}", "model.weights=IMAGENET1K_V1", "distill=null"])
    assert whole.data.train == str(here / "x.json")
    assert whole.data.val == str(Path("~/y.json").expanduser())
    assert whole.model.weights == "IMAGENET1K_V1"


def keys(model: type[Options], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key below a section; of a section by name, those of its first kind."""
    found: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        found.append((*path, name))
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Options) and kind is not Options:
                found += keys(kind, (*path, name))
                break
    return found


KEYS = keys(Recipe)
NAMES = [f"{detector}:resnet18" for detector in parts.all_head_options()]
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 3, 10**30, -(10**30), 0.5, 1e300, -0.0, float("nan"), float("inf"), "", "x", "1e-3", "\n",
    [], [1], [0, -1], [[1]], ["a", None], {}, {"name": "nwd"}, {"a": 1}, {1: 2}, {None: []},
]  # fmt: skip


def placed(content: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content.setdefault(key, {})
    content[path[-1]] = value


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(KEYS), st.sampled_from(ODD))
def test_any_value_under_any_key(path: tuple[str, ...], value: Any) -> None:
    content: dict[str, Any] = {"data": {"train": "a", "val": "b"}}
    placed(content, path, value)
    taken_or_explained(content, ".".join(path[:-1]))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(NAMES), st.sampled_from(ODD), st.randoms(use_true_random=False))
def test_any_value_under_any_key_of_any_head(name: str, value: Any, rng: random.Random) -> None:
    options = parts.head_options(name)
    path = rng.choice(keys(options))
    head: dict[str, Any] = {}
    placed(head, path, value)
    taken_or_explained({**DATA, "model": {"name": name, "head": head}}, "model.head")


def taken_or_explained(content: dict[str, Any], section: str) -> None:
    try:
        recipe = parse_recipe(content, where="r.yaml")
    except UserError as error:
        text = str(error)
        assert text.startswith("r.yaml: "), text
        assert section in text or "{" in repr(content), text
        assert "\n" not in text
        assert len(text) < 600
    else:
        dumped = recipe.model_dump(mode="json")
        assert parse_recipe(yaml.safe_load(yaml.safe_dump(dumped))) == recipe
