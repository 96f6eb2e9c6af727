"""What a plugin's function raises, or returns in place of what is due, is one line that names the plugin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flyspeck import Sample, Targets, UserError, load_plugin, read_annotations
from flyspeck.cli.main import main
from flyspeck.data.transforms import Compose, RandomFlip, transform_named
from flyspeck.data.writers import WRITERS
from flyspeck.models.build import build

FAULTY = """
import flyspeck

def fails(*arguments, width=1.0, weights=None, **options):
    raise ValueError("two\\nlines")

def nothing(*arguments, **options):
    return None

def register():
    flyspeck.register_backbone("fails", fails)
    flyspeck.register_backbone("no_keywords", lambda: None)
    flyspeck.register_neck("fails", fails)
    flyspeck.register_detector("fails", fails)
    flyspeck.register_detector("nothing", nothing)
    flyspeck.register_reader("fails", fails, endings=[".fails"])
    flyspeck.register_reader("nothing", nothing, endings=[".nothing"])
    flyspeck.register_writer("fails", annotations=fails)
    flyspeck.register_transform("fails", fails)
    flyspeck.register_transform("nothing", nothing)
    flyspeck.register_transform("gives_nothing", lambda: nothing)
    flyspeck.register_transform("fails_later", lambda: fails)
    flyspeck.register_backbone("missing_file", lambda *, width, weights: open("/nowhere/weights.pt"))
"""
FAILED = r"plugin faulty: the {} 'fails' failed.* \(ValueError: two lines\); mend the plugin; --debug shows where"


@pytest.fixture(autouse=True)
def faulty(outside, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = outside(faulty=FAULTY)
    monkeypatch.syspath_prepend(str(folder))
    load_plugin("faulty")
    return folder


def sample() -> Sample:
    targets = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool))
    return Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), targets, 7)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", FAILED.format("backbone")),
        ("fcos:resnet18:fails", FAILED.format("neck")),
        ("fails:resnet18", FAILED.format("detector")),
        ("no_keywords", r"the backbone 'no_keywords' failed \(TypeError: .*'width'"),
        ("nothing:resnet18", "the detector 'nothing' returns NoneType where Detector is due"),
    ],
)
def test_builders(name: str, words: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=words) as caught:
        build(name, width=0.25)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_says_so_itself() -> None:
    with pytest.raises(FileNotFoundError, match=r"/nowhere/weights\.pt"):
        build("missing_file")


def test_readers_and_writers(faulty: Path) -> None:
    for kind in ("fails", "nothing"):
        (faulty / f"a.{kind}").touch()
    with pytest.raises(UserError, match=FAILED.format("reader").replace(".*", " on a.fails")):
        read_annotations("a.fails")
    with pytest.raises(UserError, match="the reader 'nothing' returns NoneType where Annotations is due"):
        read_annotations("a.nothing")
    with pytest.raises(UserError, match=FAILED.format("writer of annotations").replace(".*", " on b.x")):
        WRITERS["fails"](None, Path("b.x"))  # type: ignore[arg-type]


def test_transforms() -> None:
    with pytest.raises(UserError, match=FAILED.format("transform")):
        transform_named("fails", {})
    with pytest.raises(UserError, match="the transform 'nothing' returns NoneType where Callable is due"):
        transform_named("nothing", {})
    for name, words in {
        "gives_nothing": "transform nothing of faulty returns NoneType, no Sample",
        "fails_later": r"transform fails of faulty failed on image 7 \(ValueError: two lines\)",
    }.items():
        steps = Compose((RandomFlip(), transform_named(name, {})))
        with pytest.raises(UserError, match=words):
            steps(sample(), np.random.default_rng(0))


def test_the_command_line_ends_in_one_line_and_shows_where_on_demand(faulty: Path, capsys) -> None:
    (faulty / "a.fails").touch()
    command = ["data", "inspect", "a.fails", "--plugin", "faulty"]
    assert main(command) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(UserError) as caught:
        main([*command, "--debug"])
    assert isinstance(caught.value.__cause__, ValueError)
