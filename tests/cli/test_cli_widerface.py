"""WIDER FACE from end to end: images to a submission at one and at several scales, and the benchmark's AP of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate.widerface import read_wider_submission, read_wider_truth
from flyspeck.train.build import build_detector, describe_model
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """TinaFace with random weights."""
    torch.manual_seed(0)
    config = ModelConfig(
        name="tinaface:mobilenet_v2", width=0.25, channels=8, norm="gn", min_score=0.0, max_detections=20
    )
    statistics = {"classes": ("face",), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    detector = build_detector(config, **statistics)
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run" / "best.safetensors", detector.state_dict(), describe_model(config, **statistics))
    return tmp_path / "run"


def cell(*items: object) -> np.ndarray:
    """A MATLAB cell array (n, 1)."""
    column = np.empty((len(items), 1), dtype=object)
    for row, item in enumerate(items):
        column[row, 0] = item
    return column


@pytest.fixture
def widerface(tmp_path: Path) -> Path:
    """`images/EVENT/NAME.jpg`, and the four files of the benchmark; of three faces one is easy, two are medium."""
    savemat = pytest.importorskip("scipy.io", reason="needs scipy (extra matlab)").savemat
    rng = np.random.default_rng(0)
    for name in ("0--Parade/a", "0--Parade/b", "1--Shop/c"):
        path = tmp_path / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (64, 96, 3), np.uint8)).save(path)
    folder = tmp_path / "ground_truth"
    folder.mkdir()
    faces = cell(
        cell(np.array([[4.0, 4, 30, 40], [50, 20, 12, 15]]), np.zeros((0, 4))), cell(np.array([[9.0, 8, 6, 7]]))
    )
    head = {"event_list": cell("0--Parade", "1--Shop"), "file_list": cell(cell("a", "b"), cell("c"))}
    savemat(folder / "wider_face_val.mat", {**head, "face_bbx_list": faces})
    for setting, first, last in (("easy", [1], []), ("medium", [1, 2], []), ("hard", [1, 2], [1])):
        listed = cell(cell(np.array(first), np.zeros((0, 1))), cell(np.array(last)))
        savemat(folder / f"wider_{setting}_val.mat", {"gt_list": listed})
    return folder


@pytest.mark.parametrize("views", [[], ["--scales", "0.5,1,2", "--flip"]])
def test_from_images_to_the_benchmarks_metrics(
    run_folder: Path, widerface: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], views: list[str]
) -> None:
    out = tmp_path / "found"
    asked = ["--tile", "off", "--score", "0", "--to", "widerface", "--draw", "0", *views]
    assert (
        main(["predict", str(widerface.parent / "images"), "--model", str(run_folder), "--out", str(out), *asked]) == 0
    )
    found = read_wider_submission(out / "widerface", read_wider_truth(widerface))
    assert found.notes == ()  # every image has its file, sorted
    assert set(found.image_index.tolist()) == {0, 1, 2}
    assert (np.diff(found.scores)[np.diff(found.image_index) == 0] <= 0).all()
    capsys.readouterr()
    files = ["--gt", str(widerface), "--dt", str(out / "widerface")]
    assert main(["eval", *files, "--protocol", "widerface_val"]) == 0
    said = capsys.readouterr().out
    assert all(setting in said for setting in ("easy", "medium", "hard"))


def test_the_settings_are_read_as_the_benchmark_reads_them(widerface: Path) -> None:
    ours = read_annotations(widerface / "wider_face_val.mat", for_evaluation=True)
    theirs = read_wider_truth(widerface)
    assert_array_equal(ours.boxes, theirs.boxes)
    for name in ("kept_easy", "kept_medium", "kept_hard"):
        assert_array_equal(ours.extra[name], theirs.extra[name])


def test_the_benchmarks_own_files_are_read_alike(shared: Path) -> None:
    pytest.importorskip("scipy.io", reason="needs scipy (extra matlab)")
    folder = shared / "golden" / "wider_gt"
    ours, theirs = read_annotations(folder / "wider_face_val.mat", for_evaluation=True), read_wider_truth(folder)
    assert_array_equal(ours.boxes, theirs.boxes)
    for name in ("kept_easy", "kept_medium", "kept_hard"):
        assert_array_equal(ours.extra[name], theirs.extra[name])
        assert ours.extra[name].any()
