"""The page's plugin as a package: installed by pip into an environment of its own, found by its entry points alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml
from test_extend_page import commands, write_files

import flyspeck

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that sees this one's libraries, and has the plugin installed."""
    for needed in ("hatchling", "timm", "onnx"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=True)
    interpreter = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = subprocess.run(
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    seen = [sysconfig.get_paths()["purelib"], str(Path(flyspeck.__file__).parents[1])]
    Path(site, "borrowed.pth").write_text("\n".join(seen), encoding="utf-8")
    package = folder / "package"
    package.mkdir()
    write_files(package)
    (package / "recipe.yaml").unlink()
    run(interpreter, folder, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", str(package))
    shutil.rmtree(package)
    return interpreter


def run(python: Path, folder: Path, *arguments: str, code: int = 0) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([python, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def without_plugins(arguments: list[str]) -> list[str]:
    given = {i for i, word in enumerate(arguments) if word == "--plugin"}
    return [word for i, word in enumerate(arguments) if i not in given and i - 1 not in given]


def test_importing_flyspeck_loads_no_plugin(python: Path, tmp_path: Path) -> None:
    run(
        python,
        tmp_path,
        "-c",
        "import sys, flyspeck; assert not [name for name in sys.modules if name.startswith('my_')]",
    )


def test_the_page_runs_without_a_single_option_and_not_without_the_package(python: Path, tmp_path: Path) -> None:
    write_files(tmp_path, only="recipe.yaml")
    for arguments in commands():
        run(python, tmp_path, "-m", "flyspeck.cli.main", *without_plugins(arguments))
    noted = yaml.safe_load((tmp_path / "runs/outside/recipe.yaml").read_text())["plugins"]
    assert noted == [f"my_{part}==1.0" for part in ("backbone", "format", "head", "neck", "rest")]
    run(python, tmp_path, "-m", "pip", "uninstall", "--yes", "my-parts")
    predict = ["predict", "--model", "runs/outside", "scenes/val/images", "--out", "again"]
    said = run(python, tmp_path, "-m", "flyspeck.cli.main", *predict, code=2)
    assert "needs the plugin 'my_backbone', version 1.0, which is neither installed nor given" in said
    assert len(said.strip().splitlines()) == 1
