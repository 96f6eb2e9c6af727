"""`flyspeck benchmark`: every engine measured part by part on the same images, and what cannot run says why."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from tiny_exports import CLASSES, Exports

from flyspeck.cli import benchmark as command
from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.export import benchmark
from flyspeck.export.benchmark import PARTS, EngineResult, build_engines, check_engines, measure
from flyspeck.export.check_images import named_set, run_sets
from flyspeck.models.detector import Detector
from flyspeck.train.build import load_described
from flyspeck.types import Detections


@pytest.fixture(autouse=True)
def traced_once(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of the one detector of these tests is there already: to trace it takes nearly all of the time."""

    def there(detector: Detector, *, bits: int = 8) -> tuple[object, dict[float, object]]:
        assert (detector.classes, bits) == (CLASSES, 8)
        return copy.deepcopy(exports.core), {}

    monkeypatch.setattr(benchmark, "traced", there)


def run(*arguments: object) -> int:
    """Exit code of `flyspeck benchmark`."""
    return main(["benchmark", *map(str, arguments)])


def test_engines_take_turns_and_find_the_same(
    exports: Exports, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("matplotlib")
    asked = ("--engines", "eager,onnx,openvino", "--limit", 2, "--rounds", 1, "--scales", "0.5,1", "--score", 0.02)
    assert run(exports.run, *asked, "--out", tmp_path / "o") == 0
    told = json.loads((tmp_path / "o" / "benchmark.json").read_text())
    assert [e["engine"] for e in told["engines"]] == ["eager", "onnx", "openvino"]
    eager, *others = told["engines"]
    for engine in told["engines"]:
        assert engine["total_ms"] > 0
        assert set(engine["ms"]) == set(PARTS)
        assert engine["ms"]["forward"] > 0
        # 96x128 images at 1.5 are 144x192; tiles of 64x96 that share 28 px: 4 rows of 3 for each of the two images.
        assert engine["tiles"] == 24
        assert [point["scale"] for point in engine["curve"]] == [0.5, 1]
    for engine in others:
        assert engine["metrics"].keys() == eager["metrics"].keys()
        for name, value in eager["metrics"].items():
            assert_allclose(engine["metrics"][name], value, atol=1e-6)
    said = capsys.readouterr().out
    assert "2 images of run's validation set" in said
    assert "1.00x" in said
    pixels = np.asarray(Image.open(tmp_path / "o" / "benchmark.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # lines were drawn


def test_images_without_annotations_have_times_only(
    exports: Exports, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(folder / "a.png")
    asked = ("--engines", "eager", "--rounds", 1, "--on", folder, "--out", tmp_path / "o")
    assert run(exports.run, *asked) == 0
    told = json.loads((tmp_path / "o" / "benchmark.json").read_text())
    assert told["engines"][0]["metrics"] == {}
    assert not (tmp_path / "o" / "benchmark.png").exists()
    assert "–" in capsys.readouterr().out


def test_what_is_asked_wrongly(exports: Exports, capsys: pytest.CaptureFixture[str]) -> None:
    for asked, line in (
        (("--engines", "eager,onx"), "no engine 'onx'"),
        (("--scales", "0,1"), "'0,1' has a number that is not positive"),
        (("--scales", "big"), "'big' is no list of numbers"),
        (("--on", "nowhere"), "no such images or annotations"),
    ):
        assert run(exports.run, *asked) == 2
        said = capsys.readouterr().err
        assert line in said
        assert "Traceback" not in said
    with pytest.raises(UserError, match="no engine"):
        check_engines(["eager", "openvin"])


def test_an_engine_that_is_not_installed_is_a_line_and_no_end(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(path: Path, **_: object) -> None:
        raise UserError("openvino is not installed", fix="pip install 'flyspeck[export]'")

    monkeypatch.setattr(benchmark, "open_exported", absent)
    detector, description = load_described(exports.run)
    images = run_sets(exports.run)[1].spread(1)
    lines: list[str] = []
    built = build_engines(detector, description, ["eager", "openvino"], images, num_tiles=1, say=lines.append)
    assert built["openvino"] == "openvino is not installed"
    options = {"score": 0.02, "rounds": 1, "batch_size": 1, "scales": (), "say": lines.append}
    rows = measure(built, images, description, **options)  # type: ignore[arg-type]
    assert [row.problem for row in rows] == ["", "openvino is not installed"]
    text = command.table(rows)
    assert "openvino          openvino is not installed" in text
    assert rows[1].to_dict()["problem"] == "openvino is not installed"


def test_no_onnx_at_all(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(detector: object, **_: object) -> None:
        raise UserError("onnx is not installed", fix="pip install 'flyspeck[export]'")

    monkeypatch.setattr(benchmark, "traced", absent)
    detector, description = load_described(exports.run)
    nothing = named_set(exports.run.parent / "run" / "val.json", detector.classes)
    built = build_engines(detector, description, ["onnx", "eager"], nothing, num_tiles=1, say=lambda line: None)
    assert built["onnx"] == "onnx is not installed"
    assert callable(built["eager"])


def test_parts_are_the_work_that_they_name(exports: Exports, tmp_path: Path) -> None:
    # A model of known cost: every call sleeps 2 ms a window. Its time must come out as forward, and in no other part.
    import time

    class Slow:
        classes = ("dot", "dash")

        def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
            time.sleep(0.002 * len(windows))
            return [Detections.empty((w.shape[0], w.shape[1])) for w in windows]

    images = run_sets(exports.run)[1].spread(2)
    _, description = load_described(exports.run)
    options = {"score": 0.02, "rounds": 1, "batch_size": 4, "scales": (), "say": lambda line: None}
    (row,) = measure({"slow": Slow()}, images, description, **options)  # type: ignore[arg-type]
    assert row.parts["forward"] >= 2 * 12  # at least, as sleep promises; 12 tiles an image
    assert row.total >= 2 * 12
    assert row.metrics["recall_all"] == 0
    assert isinstance(row, EngineResult)
