"""A function of the user's under our tiles: `--model package.module:function`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flyspeck.cli.class_names import class_names
from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.infer.foreign.function_model import FunctionModel, is_function

SPOTS = """
import numpy as np
from flyspeck.types import Detections

def _boxes(window):
    y, x = np.nonzero(window[:, :, 0] > 200)
    return [[x.min(), y.min(), x.max() + 1, y.max() + 1]] if len(x) else []

def rows(windows):
    return [np.array([[*box, 0.9, 1] for box in _boxes(w)]).reshape(-1, 6) for w in windows]
rows.classes, rows.tile = ["dark", "bright"], (64, 96)

def columns(windows):
    boxes = [_boxes(w) for w in windows]
    return [{"boxes": b, "scores": [0.9] * len(b), "labels": [1] * len(b)} for b in boxes]

def detections(windows):
    return [Detections(_boxes(w), [0.9] * len(_boxes(w)), [1] * len(_boxes(w)), w.shape[:2]) for w in windows]

def fails(windows):
    raise ZeroDivisionError("two\\nlines")

def too_few(windows):
    return []

def nonsense(windows):
    return [7 for _ in windows]

def nothing(windows):
    return None

def negative(windows):
    return [np.array([[1, 1, 4, 4, 0.9, -1]]) for _ in windows]

def far(windows):
    return [np.array([[400, 400, 408, 408, 0.9, 0], [4, 4, 80, 80, 0.9, 0]]) for _ in windows]

def corners_and_sizes(windows):
    return [np.array([[40, 40, 8, 8, 0.9, 0]]) for _ in windows]

def percent(windows):
    return [np.array([[1, 1, 4, 4, 90, 0]]) for _ in windows]

def kinds(windows):
    assert all(w.dtype == np.uint8 and w.shape[2] == 3 for w in windows)
    return [np.zeros((0, 6)) for _ in windows]

number, odd = 7, lambda windows: []
odd.tile = "large"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = f"spots_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SPOTS)
    (tmp_path / f"{name}_broken.py").write_text("1 / 0")
    pixels = np.full((200, 300, 3), 60, np.uint8)
    pixels[50:54, 100:105] = pixels[150:153, 250:256] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / name


@pytest.mark.parametrize("function", ["rows", "columns", "detections"])
def test_a_function_predicts_on_the_command_line(function: str, here: Path) -> None:
    asked = [] if function == "rows" else ["--classes", "dark,bright", "--tile", "64x96"]
    assert (
        main(["predict", "a.png", "--model", f"{here.name}:{function}", "--out", "found", "--overlap", "16", *asked])
        == 0
    )
    found = json.loads(Path("found/detections.json").read_text())
    assert sorted(one["bbox"] for one in found) == [[100, 50, 5, 4], [250, 150, 6, 3]]
    listing = json.loads(Path("found/images.json").read_text())
    assert [one["name"] for one in listing["categories"]] == ["dark", "bright"]
    assert len(list(Path("found/drawn").glob("*.png"))) == 1
    # A changed function is another model: its tiles are not mixed with those of before.
    source = Path(f"{here.name}.py")
    source.write_text(source.read_text() + "\n")
    assert main(["predict", "a.png", "--model", f"{here.name}:{function}", "--out", "found", "--resume", *asked]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", r"it failed in \S+\.py, line 21: ZeroDivisionError: two\\nlines$"),
        ("too_few", "it returned 0 results for 1 windows; return one a window"),
        ("nonsense", "a result that is neither detections"),
        ("nothing", "it returned no list for 1 windows"),
        ("negative", "finds class -1, counted from 0"),
        ("corners_and_sizes", "a box 40, 40, 8, 8 ends before it begins"),
        ("percent", "its scores are 90 to 90, where 0 to 1 is wanted; return"),
        ("number", "'number' is no function"),
        ("absent", "no 'absent' in the module"),
        ("odd", "its tile is 'large'"),
    ],
)
def test_a_wrong_function_is_one_line(name: str, message: str, here: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        FunctionModel(f"{here.name}:{name}", classes=("a",))([np.zeros((8, 8, 3), np.uint8)])
    assert "\n" not in str(caught.value)


def test_windows_are_colour_of_8_bits_and_boxes_stay_inside(here: Path) -> None:
    model = FunctionModel(f"{here.name}:kinds", classes=("a",))
    for shape, kind in (((8, 8, 1), np.uint8), ((8, 8, 3), np.uint16), ((8, 8, 1), np.uint16)):
        assert len(model([np.zeros(shape, kind)])[0]) == 0
    (found,) = FunctionModel(f"{here.name}:far", classes=("a",))([np.zeros((64, 48, 3), np.uint8)])
    assert found.boxes.tolist() == [[4, 4, 48, 64]]


def test_classes_and_modules(here: Path) -> None:
    bright = np.full((8, 8, 3), 255, np.uint8)
    with pytest.raises(UserError, match="does not say its classes"):
        FunctionModel(f"{here.name}:columns")
    with pytest.raises(UserError, match="finds class 1, counted from 0, and 1 classes are named: dark"):
        FunctionModel(f"{here.name}:columns", classes=("dark",))([bright])
    with pytest.raises(UserError, match="no module 'no_such_module'"):
        FunctionModel("no_such_module:f")
    with pytest.raises(UserError, match=r"its module fails in \S+_broken\.py, line 1: ZeroDivisionError"):
        FunctionModel(f"{here.name}_broken:f")


def test_what_names_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_function("a.b:c")
    assert not is_function("model.onnx")
    assert not is_function(r"C:\models\a.onnx")
    assert not is_function("runs/first")
    monkeypatch.chdir(tmp_path)
    Path("a:b").touch()
    assert not is_function("a:b")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "car\n\nred boat\n"),
        ("a.names", "\ufeffcar\nred boat"),
        ("a.json", '["car", "red boat"]'),
        ("b.json", '{"1": "red boat", "0": "car"}'),
        ("a.yaml", "names: {0: car, 1: red boat}\npath: x"),
        ("b.yml", "names: [car, red boat]"),
        ("c.yaml", "[car, red boat]"),
    ],
)
def test_classes_in_a_file(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert class_names(str(tmp_path / name), where="--classes") == ["car", "red boat"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", ""),
        ("a.json", "{"),
        ("b.json", '{"3": "car"}'),
        ("a.yaml", "names: 7"),
        ("b.txt", "\xff\xfe"),
        ("absent.txt", None),
    ],
)
def test_no_classes_in_a_file(name: str, content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"no classes|no list of classes|no such file"):
        class_names(str(tmp_path / name), where="--classes")


def test_classes_in_a_list() -> None:
    assert class_names("car, red boat", where="--classes") == ["car", "red boat"]
