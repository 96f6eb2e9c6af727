"""A detector as a LiteRT file: the same boxes from the command line, in float32; INT8 with its loss. Slow."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_exports import write_run

from flyspeck.cli.main import main
from flyspeck.errors import install
from flyspeck.infer.engines import open_exported
from flyspeck.infer.litert_model import ENTRY

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/exported_files.md"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcos:resnet18", "faster_rcnn:resnet18"])
def test_a_file_finds_the_same_boxes_and_int8_says_its_loss(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra litert", exc_type=ImportError)
    head = {"depth": 1} if name.startswith("fcos") else {"hidden": 16}
    run = write_run(tmp_path / "run", name, norm="bn", head=head)
    out = tmp_path / "model.tflite"
    assert main(["export", str(run), "--to", "litert", "--out", str(out)]) == 0, capfd.readouterr()
    assert "WITHOUT a partner" not in capfd.readouterr().out
    told = json.loads(zipfile.ZipFile(out).read(ENTRY))
    assert told["parity"]["boxes"] > 50
    assert told["parity"]["box_px"] < 0.05
    images = str(next(tmp_path.glob("run/val0.png")))
    found = []
    for model, folder in ((str(run), "a"), (str(out), "b")):
        assert main(["predict", images, "--model", model, "--out", str(tmp_path / folder), "--score", "0.02"]) == 0
        found.append(len(json.loads((tmp_path / folder / "detections.json").read_text())))
    assert found[0] == pytest.approx(found[1], rel=0.2)  # windows at the border are padded otherwise
    assert main(["predict", images, "--model", str(out), "--out", str(tmp_path / "c"), "--tile", "640x640"]) == 2
    assert "tiles of 640x640 for a model that takes 64x96" in capfd.readouterr().err
    _page_program_agrees(out, told)
    assert main(["export", str(run), "--to", "litert", "--out", str(out), "--int8", "--calibration-tiles", "4"]) == 0
    assert json.loads(zipfile.ZipFile(out).read(ENTRY))["precision"] == "int8"
    assert re.search(r"INT8 finds [1-9]\d* boxes where float32 finds", capfd.readouterr().out)


def _page_program_agrees(path: Path, told: dict[str, object]) -> None:
    """The program of the page, on one window."""
    window = np.random.default_rng(0).integers(0, 255, (1, *told["size"], told["channels"]), np.uint8)  # type: ignore[misc]
    text = PAGE.read_text(encoding="utf-8").partition("## LiteRT: networks and a plan")[2]
    program = text.partition("```python\n")[2].partition("```")[0].replace("mine.tflite", str(path))
    names = {"window": window}
    exec(program, names)
    expected = open_exported(path).run(window)
    for one, other in zip((names["boxes"], names["scores"], names["labels"], names["counts"]), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_without_the_package_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    command = ["export", "somewhere", "--to", "litert", "--out"]
    assert main([*command, str(tmp_path / "model.tflite")]) == 2
    assert f"this needs the package 'litert-torch'; {install('litert')}" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "model.onnx")]) == 2
    assert "end it with .tflite" in capsys.readouterr().err
    assert main(["export", "somewhere", "--out", str(tmp_path / "model.onnx"), "--tile", "64x64"]) == 2
    assert "onnx takes every size" in capsys.readouterr().err
