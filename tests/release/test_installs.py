"""flyspeck's wheel in environments of its own: alone, with each extra alone, and with the lowest versions it names.

Slow, and an index of packages must be reachable. The environment without extras is made once; those of the extras begin as
copies of it (hard links), so that PyTorch is not unpacked twenty times.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = [name for name in PROJECT["optional-dependencies"] if name not in ("docs", "dev")]
LOWEST = [re.sub(r"([\w.-]+(?:\[\w+\])?)>=([\w.]+).*", r"\1==\2", text) for text in PROJECT["dependencies"]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="hard links and paths of Linux or macOS"),
]

# What is asked for is imported, and flyspeck with it; a tiny detector is built and counted.
PROBE = """
import importlib, sys
import flyspeck
assert "torch" not in sys.modules, "import flyspeck loads torch"
from importlib.metadata import distribution, packages_distributions, requires
from packaging.requirements import Requirement
asked = [Requirement(text) for text in requires("flyspeck")]
extras = [{"extra": sys.argv[1]}, {"extra": ""}]
mine = {r.name.lower() for r in asked if r.marker and [r.marker.evaluate(e) for e in extras] == [True, False]}
assert mine or sys.argv[1] == "none", "the extra brings nothing"
for name, owners in packages_distributions().items():
    if not name.startswith("_") and {owner.lower() for owner in owners} & mine:
        importlib.import_module(name)
from flyspeck.cli.main import main
assert main(["profile", "retinanet:resnet18", "--size", "64x64"]) == 0
"""
EXPORT = """
import json, sys
import flyspeck
from flyspeck.cli.main import main
scenes = flyspeck.write_scenes("scenes", num_images=2, seed=3, height=128, width=160)
content = json.loads(scenes.read_text())
content["categories"] = [{"id": c["id"], "name": n} for c, n in zip(content["categories"], ("Person", "Car", "Bicycle"))]
known = {c["id"] for c in content["categories"]}
content["annotations"] = [one for one in content["annotations"] if one["category_id"] in known]
scenes.write_text(json.dumps(content))
assert main(["export", sys.argv[1], "--out", "detector.onnx", "--on", str(scenes)]) == 0
"""
# An exported detector needs nothing of training.
PREDICT = """
import sys
from flyspeck.cli.main import main
assert main(["predict", "scenes/images", "--model", "detector.onnx", "--out", "found", "--to", "csv"]) == 0
assert "torch" not in sys.modules, "predicting with ONNX loads torch"
"""


def run(python: Path, *words: str, cwd: Path) -> str:
    """What it prints; it must succeed. Nothing of this environment or of this tree is seen."""
    command = [str(python), "-I", *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words[:4])}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


def install(python: Path, wanted: Sequence[str], cwd: Path) -> None:
    """By pip, which then finds nothing missing or at odds."""
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted, cwd=cwd)
    assert "No broken requirements found" in run(python, "-m", "pip", "check", cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("flyspeck-*.whl")
    return path


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and no extra; skips where nothing can be installed."""
    folder = tmp_path_factory.mktemp("plain") / "env"
    venv.create(folder, with_pip=True, symlinks=True)
    words = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder / "try"),
        "packaging",
    ]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no index of packages can be reached")
    install(folder / "bin" / "python", [str(wheel), "packaging"], folder)
    return folder


def packages_of(python: Path, cwd: Path) -> list[str]:
    """Names of what is installed."""
    listed = json.loads(run(python, "-m", "pip", "list", "--format", "json", cwd=cwd))
    return sorted(entry["name"] for entry in listed)


def brought(python: Path, plain: Path | None, cwd: Path) -> dict[str, object]:
    """What an environment holds, beyond the plain one where that is given: packages, and megabytes of files that are its own."""
    before = [] if plain is None else packages_of(plain / "bin" / "python", cwd)
    own = (path.lstat() for path in python.parents[1].rglob("*") if path.is_file() and not path.is_symlink())
    size = sum(status.st_size for status in own if status.st_nlink == 1)
    return {
        "packages": [name for name in packages_of(python, cwd) if name not in before],
        "megabytes": round(size / 1e6, 1),
    }


def kept(request: pytest.FixtureRequest, name: str, found: dict[str, object]) -> None:
    """For `docs/write_reliability.py --installs`."""
    path = Path(request.config.getoption("--installs-json") or os.devnull)
    if path != Path(os.devnull):
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(before | {name: found}, indent=1) + "\n")


def copied(plain: Path, to: Path) -> Path:
    """The Python of a copy whose files are links to the first one's."""
    shutil.copytree(plain, to, symlinks=True, copy_function=lambda a, b: Path(b).hardlink_to(a))
    return to / "bin" / "python"


def test_the_wheel_alone(plain: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = plain / "bin" / "python"
    run(python, "-c", PROBE, "none", cwd=tmp_path)
    seen = run(python, "-c", "import flyspeck, sys; print(flyspeck.__file__)", cwd=tmp_path)
    assert str(plain) in seen
    kept(request, "none", brought(python, None, tmp_path))


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_alone(extra: str, plain: Path, wheel: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = copied(plain, tmp_path / "env")
    install(python, [f"{wheel}[{extra}]"], tmp_path)
    run(python, "-c", PROBE, extra, cwd=tmp_path)
    if extra == "export":
        run(python, "-c", EXPORT, str(ROOT / "models" / "hituav_half" / "model.safetensors"), cwd=tmp_path)
        run(python, "-c", PREDICT, cwd=tmp_path)
        assert (tmp_path / "found" / "detections.csv").is_file()
    kept(request, extra, brought(python, plain, tmp_path))
    shutil.rmtree(tmp_path / "env")


def test_the_lowest_versions(plain: Path, wheel: Path, tmp_path: Path) -> None:
    """All that the project names a floor for, at that floor, the others as the installer chooses."""
    python = copied(plain, tmp_path / "env")
    install(python, [str(wheel), *LOWEST], tmp_path)
    run(python, "-c", PROBE, "none", cwd=tmp_path)
    shutil.rmtree(tmp_path / "env")
