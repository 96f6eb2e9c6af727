"""What an error tells to do next: the word that was meant, and a command that works."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import flyspeck
from flyspeck import errors
from flyspeck.errors import counted, install, missing_extra, nearest
from flyspeck.evaluate import PROTOCOLS
from flyspeck.models.zoo import DETECTORS

SOURCES = [Path(flyspeck.__file__).parent, Path(__file__).resolve().parents[1] / "lab" / "src"]
EXTRAS = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        ("coco", PROTOCOLS, "did you mean 'coco_bbox'?"),
        ("COCO_BBOX", PROTOCOLS, "did you mean 'coco_bbox'?"),
        ("flyspek", PROTOCOLS, "did you mean 'flyspeck'?"),
        ("tinybenchmark_app", PROTOCOLS, "did you mean 'tinybenchmark_ap'?"),
        ("fcoss", DETECTORS, "did you mean 'fcos'?"),
        ("wdith", ["width", "depth"], "did you mean 'width'?"),
        ("epoch", ["epochs", "steps"], "did you mean 'epochs'?"),
        ("max", ["width", "depth"], "known: depth, width"),
        ("person", ["car", "bicycle"], "known: bicycle, car"),
        ("mean", ["minimum", "max"], "known: max, minimum"),
        ("map", ["mr", "iou"], "known: iou, mr"),
        ("x", [], "known: "),
    ],
)
def test_a_near_name_is_offered_and_a_far_one_is_not(name: str, known: list[str], words: str) -> None:
    assert nearest(name, known) == words


def test_every_extra_that_a_message_names_exists() -> None:
    named = set()
    for path in (file for source in SOURCES for file in source.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r'missing_extra\([^()]*?"([\w-]+)"\)', text))
        named |= set(re.findall(r"""\binstall\(["']([\w-]+)["']\)""", text))
        # A command that names the extra itself does not work for a wheel or a clone: `install` writes it.
        assert "pip install 'flyspeck[" not in text, path
    assert {"geo", "tiff", "export", "video", "report"} <= named
    assert named <= set(EXTRAS)


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name != "dev"])
def test_the_command_names_the_packages_of_the_extra(extra: str) -> None:
    command = install(extra)
    for package in EXTRAS[extra]:
        assert f"'{package}'" in command
    assert re.search(r"pip install ", command)


def test_the_command_fits_where_flyspeck_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "__file__", "/venv/lib/python3.11/site-packages/flyspeck/errors.py")  # no clone
    monkeypatch.setattr(errors, "requires", lambda _: ['rasterio>=1.4; extra == "geo"', "torch>=2.11"])
    monkeypatch.setattr(errors.sys, "executable", "/venv/bin/python")
    monkeypatch.setattr(errors.shutil, "which", lambda _: "/usr/bin/python")
    monkeypatch.setattr(errors, "find_spec", lambda _: None)
    assert install("geo") == "uv pip install --python /venv/bin/python 'rasterio>=1.4'"
    monkeypatch.setattr(errors, "find_spec", lambda _: object())
    assert install("geo") == "/venv/bin/python -m pip install 'rasterio>=1.4'"
    monkeypatch.setattr(errors.shutil, "which", lambda _: "/venv/bin/python")
    assert install("geo") == "pip install 'rasterio>=1.4'"
    assert missing_extra("rasterio", "geo").fix == install("geo")

    def absent(_: str) -> list[str]:
        raise PackageNotFoundError

    monkeypatch.setattr(errors, "requires", absent)
    assert install("geo", "tiff") == "pip install 'flyspeck[geo,tiff]'"


def test_one_of_a_kind_is_not_several() -> None:
    assert [counted(number, "box") for number in (0, 1, 2, 1_234_567)] == [
        "0 boxes",
        "1 box",
        "2 boxes",
        "1234567 boxes",
    ]
    assert [counted(number, "minute") for number in (0.5, 1.0, 60.0)] == ["0.5 minutes", "1 minute", "60 minutes"]
    assert [counted(number, "image is", "images are") for number in (1, 3)] == ["1 image is", "3 images are"]
