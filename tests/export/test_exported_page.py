"""The page on exported files promises three programs: they are run as they stand there, and find what `predict` finds."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from tiny_exports import CLASSES, RULE, Exports

from flyspeck.data.enlarge import described_enlargement
from flyspeck.export.frame import Frame, framed
from flyspeck.export.metadata import conventions
from flyspeck.export.openvino import write_openvino
from flyspeck.infer.engines import open_exported
from flyspeck.infer.load import load_predictor
from flyspeck.train.build import load_described
from flyspeck.types import Detections
from same_detections import assert_same_detections

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "exported_files.md").read_text(encoding="utf-8")
SIZE = (83, 131)


def block(language: str) -> str:
    """The first: a second program in Python is for LiteRT."""
    text, *_ = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return text


@pytest.fixture
def place(exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file and an image, as the programs call them."""
    shutil.copy(exports.onnx, tmp_path / "mine.onnx")
    pixels = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), np.uint8)
    for name in ("photo.png", "photo.ppm"):
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_found(lines: list[tuple[int, float, list[float]]], exports: Exports) -> None:
    """As `flyspeck predict` of the run finds it in the whole image."""
    found = Detections(
        np.array([box for *_, box in lines], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in lines]),
        np.array([label for label, *_ in lines]),
        SIZE,
    )
    wanted = load_predictor(exports.run, tile="off", score_threshold=RULE.score).predict("photo.png")
    assert_same_detections([found], wanted, box_px=0.02, score=2e-4, rule=RULE, least=6)


def words(line: str, number: Callable[[str], int]) -> tuple[int, float, list[float]]:
    name, score, *box = line.split()
    return number(name), float(score), [float(side) for side in box]


def test_the_python_program_runs(exports: Exports, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("python"), "page", "exec"), {})
    assert_found([words(line, CLASSES.index) for line in capsys.readouterr().out.splitlines()], exports)


@pytest.mark.slow  # a compiler, and 19 MB of headers
def test_the_cpp_program_runs(exports: Exports, place: Path) -> None:
    openvino = pytest.importorskip("openvino")
    folder = Path(openvino.__file__).parent
    compiler = shutil.which("g++")
    if compiler is None or not (folder / "include").is_dir():
        pytest.skip("needs g++ and an OpenVINO with its headers")
    detector, description = load_described(exports.run)
    frame = Frame.of(detector, described_enlargement(description))
    write_openvino(
        framed(exports.core, frame, switch=False), place / "mine.xml", open_exported(exports.onnx).description
    )
    (place / "page.cpp").write_text(block("cpp"))
    libraries = sorted((folder / "libs").glob("libopenvino.so*"))[:1]
    options = ["-std=c++17", "-O1", f"-I{folder / 'include'}", "page.cpp", *map(str, libraries), "-o", "page"]
    subprocess.run([compiler, *options, f"-Wl,-rpath,{folder / 'libs'}"], check=True, capture_output=True)
    said = subprocess.run(["./page"], check=True, capture_output=True, text=True).stdout
    assert_found([words(line, int) for line in said.splitlines()], exports)


def node_modules(place: Path) -> None:
    """onnxruntime-web beside the program; skips where Node.js or the package cannot be had."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs Node.js with npm")
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "onnxruntime-web"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=240)
    if done.returncode:
        pytest.skip("the npm package onnxruntime-web cannot be had here")


DRIVER = """
import { readFileSync } from "node:fs";
import { detect } from "./page.mjs";
const file = readFileSync("photo.ppm");
const pixels = file.subarray(file.length - 3 * %(width)d * %(height)d);
const data = new Uint8ClampedArray(4 * %(width)d * %(height)d).fill(255);
pixels.forEach((value, i) => (data[4 * Math.floor(i / 3) + (i %% 3)] = value));
console.log(JSON.stringify(await detect({ width: %(width)d, height: %(height)d, data })));
"""


@pytest.mark.slow  # npm
def test_the_javascript_program_runs(exports: Exports, place: Path) -> None:
    node_modules(place)
    (place / "page.mjs").write_text(block("javascript"))
    (place / "driver.mjs").write_text(DRIVER % {"height": SIZE[0], "width": SIZE[1]})
    done = subprocess.run(["node", "driver.mjs"], capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert_found([(one["label"], one["score"], one["box"]) for one in found], exports)


def test_the_file_says_it_under_the_names_of_others(exports: Exports) -> None:
    told = {entry.key: entry.value for entry in onnx.load(exports.onnx).metadata_props}
    assert json.loads(told["class_names"]) == {"0": "dot", "1": "dash"}
    assert json.loads(told["model_type"]) == "Detector"
    # Tiles of 64x96 that share 28 px, seen at 1.5: 42 px of the image, 18.7 of them shared.
    assert json.loads(told["tiles_size"]) == 42
    assert json.loads(told["tiles_overlap"]) == 45
    assert [json.loads(told[name]) for name in ("det_conf", "det_iou_thresh", "det_remove_overlap")] == [
        0.02,
        0.5,
        True,
    ]
    assert ast.literal_eval(told["names"]) == {0: "dot", 1: "dash"}
    assert (told["stride"], told["task"], ast.literal_eval(told["imgsz"])) == ("32", "detect", [42, 64])
    assert "det_type" not in told  # none of Deepness's is the layout of these outputs
    for name in told:
        assert f"`{name}`" in PAGE, name


def test_metres_a_pixel_are_centimetres_there(exports: Exports) -> None:
    told = open_exported(exports.onnx).description
    ground = {"median": 0.125, "lowest": 0.1, "highest": 0.2, "images": 3}
    assert json.loads(conventions({**told, "metres_per_pixel": ground})["resolution"]) == 12.5
    assert "resolution" not in conventions(told)


def test_a_squeezed_image_has_no_tile(exports: Exports) -> None:
    told = open_exported(exports.onnx).description
    squeezed = conventions({**told, "enlarge": {"squeeze": [300, 300]}})
    unknown = conventions({key: value for key, value in told.items() if key != "training_size"})
    assert "tiles_size" not in squeezed | unknown
    assert "imgsz" not in squeezed | unknown
    assert squeezed["names"] == unknown["names"] == "{0: 'dot', 1: 'dash'}"


def test_openvino_says_the_same(exports: Exports, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    told = open_exported(exports.onnx).description
    write_openvino(framed(exports.core, Frame(32, 32), switch=False), tmp_path / "m.xml", told)
    model = openvino.Core().read_model(tmp_path / "m.xml")
    for name, text in conventions(told).items():
        assert model.get_rt_info([name]).astype(str) == text
