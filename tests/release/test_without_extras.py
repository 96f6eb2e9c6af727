"""flyspeck without extras, and with one alone: whatever else is installed here cannot be imported.

The slow `test_installs.py` makes real environments; this holds the same for two of them on every run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The packages that an installation with one extra ("" for none) would bring, and no others.
ONLY = '''
import sys
from importlib.metadata import packages_distributions
sys.path.insert(0, sys.argv[1] + "/release")
from installed import closure, plain
allowed = closure([sys.argv[2]] if sys.argv[2] else [])
del sys.path[0], sys.modules["installed"]
owners = packages_distributions()

class Only:
    """A finder that finds less."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        owned = {plain(owner) for owner in owners.get(name.partition(".")[0], ())} - {"flyspeck"}
        return None if owned and not owned & allowed.keys() else self.finder.find_spec(name, path, target)

for name in [name for name in sys.modules if owners.get(name.partition(".")[0])]:
    del sys.modules[name]
sys.meta_path[:] = [Only(finder) for finder in sys.meta_path]
from flyspeck.cli.main import main
'''
ALONE = """
import importlib, pkgutil
import flyspeck
assert "torch" not in sys.modules, "import flyspeck loads torch"
for module in pkgutil.walk_packages(flyspeck.__path__, "flyspeck."):
    importlib.import_module(module.name)
scenes = str(flyspeck.write_scenes("scenes", num_images=2, seed=3, height=96, width=128))
model = sys.argv[1] + "/models/hituav_half"
for words in (
    ["data", "inspect", scenes], ["profile", "retinanet:resnet18", "--size", "64x64"],
    ["predict", "scenes/images", "--model", model, "--out", "found", "--to", "csv"],
):
    assert main(words) == 0, words
assert main(["export", model, "--out", "a.onnx", "--on", "scenes/images"]) == 2
"""
EXPORT = """
import json
import flyspeck
scenes = flyspeck.write_scenes("scenes", num_images=2, seed=3, height=96, width=128)
model = sys.argv[1] + "/models/hituav_half"
content = json.loads(scenes.read_text())
content["categories"] = [{"id": c["id"], "name": n} for c, n in zip(content["categories"], ("Person", "Car", "Bicycle"))]
scenes.write_text(json.dumps(content))
assert main(["export", model, "--out", "detector.onnx", "--on", str(scenes)]) == 0
"""
# An exported detector needs nothing of training.
PREDICT = """
assert main(["predict", "scenes/images", "--model", "detector.onnx", "--out", "found", "--to", "csv"]) == 0
assert "torch" not in sys.modules, "predicting with ONNX loads torch"
"""


def alone(script: str, extra: str, folder: Path) -> str:
    """What a process says in which nothing can be imported but what `extra` brings; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", ONLY + script, str(ROOT), extra],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stderr


def test_without_extras(tmp_path: Path) -> None:
    said = alone(ALONE, "", tmp_path)
    assert "this needs the package 'onnx'" in said, said


def test_with_the_extra_export_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    alone(EXPORT, "export", tmp_path)
    alone(PREDICT, "export", tmp_path)
    assert (tmp_path / "found" / "detections.csv").is_file()
