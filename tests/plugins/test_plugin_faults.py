"""What a plugin's function raises, or returns in place of what is due, is one line that names the plugin."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flyspeck import ImageBatch, Sample, Targets, UserError, load_plugin, read_annotations
from flyspeck.cli.layout import PlainApp
from flyspeck.cli.main import main, run_app
from flyspeck.data.transforms import Compose, RandomFlip, transform_named
from flyspeck.data.writers import WRITERS, writer_named
from flyspeck.models.build import build
from flyspeck.models.contracts import mark

FAULTY = """
import torch

import flyspeck
from flyspeck.models.detector import Detector, Head
from flyspeck.models.postprocess import Suppression

def fails(*arguments, width=1.0, weights=None, **options):
    raise ValueError("two\\nlines")

def nothing(*arguments, **options):
    return None

class Late(Head):
    num_classes = 1
    suppression = Suppression()

    def losses(self, maps, targets, padded, sizes):
        return fails() if padded == (64, 64) else [1]

    def detect(self, maps, padded, sizes):
        return fails() if padded == (64, 64) else []

class Maps(torch.nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, maps):
        return fails() if len(maps[0]) == 2 else list(maps)

def late(backbone, *, classes, pixel_norm, neck, **options):
    return Detector(backbone, neck or Maps(backbone.features), Late(), pixel_norm=pixel_norm, classes=classes)

def register():
    flyspeck.register_backbone("fails", fails)
    flyspeck.register_backbone("no_keywords", lambda: None)
    flyspeck.register_neck("fails", fails)
    flyspeck.register_detector("fails", fails)
    flyspeck.register_detector("nothing", nothing)
    flyspeck.register_detector("late", late, levels="2-5")
    flyspeck.register_neck("late", lambda features, *, channels, num_extra, norm: Maps(features))
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


def test_parts_that_compute() -> None:
    """A head, in training and in detection, and a neck; what they raise, and what they return."""
    detector = build("late:shufflenet_v2", width=0.5, classes=("a",)).eval()
    target = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool))

    def images(side: int, count: int = 1) -> ImageBatch:
        return ImageBatch(torch.zeros(count, 3, side, side, dtype=torch.uint8), ((side, side),) * count)

    words = "plugin faulty: the detector 'late' failed in {} \\(ValueError: two lines\\); mend the plugin"
    for what, call in (
        (words.format("losses"), lambda: detector.losses(images(64), [target])),
        (words.format("detect"), lambda: detector.detect(images(64))),
        ("returns list from losses where a dictionary of scalar", lambda: detector.losses(images(32), [target])),
        ("returns list from detect where RawDetections of each image is due", lambda: detector.detect(images(32))),
    ):
        with pytest.raises(UserError, match=what) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="two"):  # no registered part
        detector.detect(images(64, 2))
    mark(detector.neck, "neck", "late")
    with pytest.raises(UserError, match="plugin faulty: the neck 'late' failed in forward"):
        detector.detect(images(64, 2))


def test_an_error_that_nothing_guards_names_the_plugin(
    faulty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(faulty))
    fails = sys.modules["faulty"].fails
    app = PlainApp(name="flyspeck")
    app.command("go")(lambda: fails())
    app.command("other")(lambda: None)
    assert run_app(app, ["go"]) == 1
    assert (
        "error: a fault of the plugin faulty: ValueError: two\\nlines; mend the plugin: see /"
        in capsys.readouterr().err
    )


def test_a_form_of_annotations_is_none_of_detections(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "x", "--model", "m", "--out", "o", "--plugin", "faulty", "--to"]
    for name in ("fails", "fiftyone"):
        assert main([*command, name]) == 2
        said = capsys.readouterr().err
        assert f"'{name}' is a form of annotations, not of detections; choose from coco, " in said
        assert said.count("\n") == 1
    with pytest.raises(UserError, match="'geojson' is a form of detections, not of annotations; choose from coco, "):
        writer_named("geojson")


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
