"""The wheel: what is in it, and that flyspeck works without its laboratory."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Where it was, before it was the laboratory's.
GONE = tuple(f"flyspeck/{name}" for name in ("bench/", "data/prepare", "train/dynamic_curve", "report/tradeoff"))

# Runs in a process of its own, where the wheel comes first and the laboratory cannot be imported.
ALONE = """
import importlib, pkgutil, sys
sys.modules["flyspeck_lab"] = None
import flyspeck
import flyspeck.plugins
flyspeck.plugins.entry_points = lambda group: ()
from flyspeck.cli.main import VERBS, main
assert flyspeck.__file__.startswith(sys.argv[1]), flyspeck.__file__
for module in pkgutil.walk_packages(flyspeck.__path__, "flyspeck."):
    importlib.import_module(module.name)
for verb in VERBS:
    assert main([verb, "--help"]) == 0, verb
assert main(["profile", "retinanet:resnet18", "--size", "64x64"]) == 0
assert main(["profile", "libra_rcnn:resnet18"]) == 2
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """flyspeck's wheel, built from this tree."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("flyspeck-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_nothing_of_the_laboratory(wheel: zipfile.ZipFile) -> None:
    names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    source = ROOT / "src"
    there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert set(names) == {name for name in there if "__pycache__" not in name}
    contents = {wheel.read(name) for name in names}
    laboratory = [path for path in (ROOT / "lab" / "src").rglob("*.py") if path.stat().st_size]
    assert len(laboratory) > 8
    assert [path.name for path in laboratory if path.read_bytes() in contents] == []
    assert [name for name in names if name.startswith(("flyspeck_lab", *GONE))] == []


def test_flyspeck_works_without_its_laboratory(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert "no 'libra_rcnn' in 'libra_rcnn:resnet18'; it is in the package flyspeck-lab" in line


def test_both_packages_have_one_version() -> None:
    ours, lab = (
        tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        for path in (ROOT / "pyproject.toml", ROOT / "lab" / "pyproject.toml")
    )
    assert lab["version"] == ours["version"]
    assert lab["requires-python"] == ours["requires-python"]
    assert lab["dependencies"][0] == f"flyspeck[report]>={ours['version']}"
