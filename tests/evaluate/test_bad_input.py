"""Every mistake in the files gets one line that says what, where and what to do; exit code 2 where it is the user's."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables_by_hand import found, truth

from flyspeck.cli.main import main
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.evaluate import DetectionTable, evaluate, protocol_named
from flyspeck.evaluate.checks import suspicions

GT = {
    "images": [{"id": 14, "file_name": "a.jpg", "width": 640, "height": 512}],
    "categories": [{"id": 3, "name": "person"}],
    "annotations": [{"id": 1, "image_id": 14, "category_id": 3, "bbox": [10, 10, 9, 9], "area": 81, "iscrowd": 0}],
}
DET: dict[str, Any] = {"image_id": 14, "category_id": 3, "bbox": [10, 10, 9, 9], "score": 0.9}


@pytest.fixture
def score(tmp_path: Path) -> Callable[..., int]:
    """Write ground truth and detections, and run the command."""

    def run(detections: Any, *more: str, text: str | None = None) -> int:
        gt, dt = tmp_path / "gt.json", tmp_path / "dt.json"
        gt.write_text(json.dumps(GT))
        dt.write_text(json.dumps(detections) if text is None else text)
        out = str(tmp_path / "f.json")
        return main(["eval", "--gt", str(gt), "--dt", str(dt), "--out", out, *more])

    return run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": float("nan")}, "not finite numbers"),
        ({"score": "high"}, "not finite numbers"),
        ({"score": 90.0}, "outside [0, 1], the first is detection 1: 90; divide percents by 100"),
        ({"score": -0.1}, "outside [0, 1]"),
        (
            {"image_id": 99},
            "on images that the ground truth does not have, the first is detection 1 with image_id 99",
        ),
        ({"image_id": "14a"}, "does not have, the first is detection 1 with image_id '14a'"),
        ({"score": 10**400}, "not finite numbers"),
        ({"bbox": [1, 2, 3, 10**400]}, "four finite numbers"),
        ({"image_id": None}, "does not have"),
        ({"bbox": [1, 2, 3]}, "detection 1 has the bbox [1, 2, 3]"),
        ({"bbox": [1, 2, float("inf"), 4]}, "four finite numbers"),
        ({"bbox": [50, 50, -20, 9]}, "negative width or height"),
        ({"bbox": None}, "detection 1 has the bbox None"),
    ],
)
def test_one_bad_detection(
    score: Callable[..., int], capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    assert score([DET, DET | change]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "dt.json" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("name", ["image_id", "category_id", "bbox", "score"])
def test_missing_field(score: Callable[..., int], capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert score([DET, {key: value for key, value in DET.items() if key != name}]) == 2
    assert f"detection 1 has no {name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"image_id": 1,', "not valid json"),
        (json.dumps(GT), "ground-truth file"),
        ('{"a": 1}', "a list of detections"),
    ],
)
def test_wrong_files(score: Callable[..., int], capsys: pytest.CaptureFixture[str], text: str, words: str) -> None:
    assert score(None, text=text) == 2
    assert words in capsys.readouterr().err


def test_any_score_allows_logits(score: Callable[..., int]) -> None:
    assert score([DET | {"score": -3.0}], "--any-score") == 0


def test_unknown_category_is_said_and_counts_for_nothing(
    score: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert score([DET, DET | {"category_id": 8}, DET | {"category_id": "boat"}]) == 0
    assert "2 of 3 detections have a category that the ground truth does not have" in capsys.readouterr().err


def test_empty_list_scores_zero(score: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for protocol in ("flyspeck", "coco_bbox", "tinybenchmark_ap"):
        assert score([], "--protocol", protocol) == 0
        rows = json.loads((tmp_path / "f.json").read_text())["rows"]
        assert next(row["value"] for row in rows if row["metric"] == "AP") == 0.0
        assert "no detections" in capsys.readouterr().err


def test_nothing_in_a_bin_is_a_dash(
    score: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert score([DET], "--protocol", "tinybenchmark_ap") == 0
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert next(r["value"] for r in rows if r["metric"] == "AP" and r["area"] == "reasonable") == -1.0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("reasonable"))
    assert line.split()[1:3] == ["32+", "0"]
    assert set(line.split()[3:]) == {"—"}


def test_missing_paths_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--gt", "nowhere.json", "--dt", "x.json"]) == 2
    assert "--gt nowhere.json: no such file or folder" in capsys.readouterr().err
    assert main(["eval"]) == 2
    assert "give --gt and --dt" in capsys.readouterr().err
    assert main(["eval", "--gt", "a", "--dt", "b", "--protocol", "coco_box"]) == 2
    assert "did you mean 'coco_bbox'?" in capsys.readouterr().err
    assert main(["eval", "--gt", "a", "--dt", "b", "--bins", "2,eight"]) == 2
    assert "--bins: '2,eight' is no list of numbers" in capsys.readouterr().err
    assert main(["eval", "--gt", "a", "--dt", "b", "--protocol", "coco_bbox", "--bins", "2,8"]) == 2
    assert "'coco_bbox' is fixed" in capsys.readouterr().err


@pytest.fixture
def spread() -> Any:
    """60 objects all over a 640x512 image."""
    rng = np.random.default_rng(0)
    xywh = np.concatenate([rng.uniform(0, 1, (60, 2)) * [600, 480], rng.uniform(4, 30, (60, 2))], 1)
    return truth([(0, 0, box.tolist()) for box in xywh])


def detected(xywh: np.ndarray) -> DetectionTable:
    return found([(0, 0, box.tolist(), 0.5) for box in xywh])


def test_right_boxes_raise_no_suspicion(spread: Any) -> None:
    assert suspicions(spread, detected(spread.extra["xywh"]), protocol_named("flyspeck")) == ()


def test_corners_given_as_sizes(spread: Any) -> None:
    (note,) = suspicions(spread, detected(spread.boxes), protocol_named("flyspeck"))
    assert "seems to hold corners" in note


@pytest.mark.parametrize(("factor", "words"), [(2.0, "larger copy"), (0.5, "smaller copy"), (1 / 640, "shares")])
def test_pixels_of_another_size(spread: Any, factor: float, words: str) -> None:
    (note,) = suspicions(spread, detected(spread.extra["xywh"] * factor), protocol_named("flyspeck"))
    assert words in note


def test_id_zero_is_said(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "golden" / "quirk_id0"
    for protocol, said in (("tinybenchmark_ap", True), ("coco_bbox", True), ("flyspeck", False)):
        assert (
            main(["eval", "--protocol", protocol, "--gt", str(folder / "gt.json"), "--dt", str(folder / "det.json")])
            == 0
        )
        assert ("annotation with id 0" in capsys.readouterr().err) is said


def test_detections_of_an_unknown_image_object() -> None:
    from flyspeck.types import Detections

    stray = Detections(np.zeros((1, 4)), np.ones(1), np.zeros(1), (9, 9), image_id=77)
    with pytest.raises(UserError, match="77"):
        DetectionTable.from_list([stray], truth([]))


# --- WIDER FACE ---------------------------------------------------------------------------------------------------------


def wider_zip(source: Path, target: Path, change: Callable[[str, list[str]], list[str] | None]) -> Path:
    """A copy of a submission with the lines of each file changed; None drops the file."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            lines = change(name, old.read(name).decode().splitlines())
            if lines is not None:
                new.writestr(name, "\n".join(lines))
    return target


def test_unsorted_wider_rows(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference's silently wrong values for reversed files, as its description gives them, and a warning."""
    golden = shared / "golden"
    dt = wider_zip(golden / "wider_a" / "det.zip", tmp_path / "d.zip", lambda _, lines: [*lines[:2], *lines[:1:-1]])
    out = tmp_path / "f.json"
    files = ["--gt", str(golden / "wider_gt"), "--dt", str(dt), "--out", str(out)]
    assert main(["eval", "--protocol", "widerface_val", *files]) == 0
    assert "not sorted by falling score" in capsys.readouterr().err
    values = {row["setting"]: round(row["value"], 3) for row in json.loads(out.read_text())["rows"]}
    assert values == {"easy": 0.232, "medium": 0.344, "hard": 0.411}


def test_wider_submission_with_a_file_missing(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = shared / "golden"
    name = "0--Parade/0_Parade_marchingband_1_465.txt"
    dt = wider_zip(golden / "wider_a" / "det.zip", tmp_path / "d.zip", lambda n, lines: None if n == name else lines)
    assert main(["eval", "--protocol", "widerface_val", "--gt", str(golden / "wider_gt"), "--dt", str(dt)]) == 2
    assert f"1 of 3226 images have no file, the first is {name}" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"no matlab here", b"", b"\x00" * 200])
def test_a_mat_that_is_not_one(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    golden = shared / "golden"
    folder = tmp_path / "gt"
    shutil.copytree(golden / "wider_gt", folder, copy_function=shutil.copyfile)
    (folder / "wider_easy_val.mat").write_bytes(content)
    files = ["--gt", str(folder), "--dt", str(golden / "wider_a" / "det.zip")]
    assert main(["eval", "--protocol", "widerface_val", *files]) == 2
    assert "not a MATLAB file" in capsys.readouterr().err


def test_a_zip_that_is_not_one(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dt = tmp_path / "d.zip"
    dt.write_text("nothing")
    assert main(["eval", "--protocol", "widerface_val", "--gt", str(shared / "golden/wider_gt"), "--dt", str(dt)]) == 2
    assert "not a zip" in capsys.readouterr().err


# --- VOC and DOTA -------------------------------------------------------------------------------------------------------


def dota(folder: Path, label: str, result: str) -> list[str]:
    gt, dt = folder / "labelTxt", folder / "Task2"
    gt.mkdir()
    dt.mkdir()
    (gt / "P1.txt").write_text(label)
    (dt / "Task2_plane.txt").write_text(result)
    return ["eval", "--protocol", "dota_v1.0_task2", "--gt", str(gt), "--dt", str(dt)]


def test_rotated_dota_labels_and_headers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = "imagesource:x\ngsd:1\n10 10 20 20 10 30 0 20 plane 0\n"
    assert main(dota(tmp_path, label, "P1 0.9 10 10 20 20\n")) == 0
    message = capsys.readouterr().err
    assert "1 of 1 ground truths are rotated" in message
    assert "2 header lines" in message
    assert "no Task2 file for baseball-diamond" in message


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("P9 0.9 10 10 20 20\n", "line 1: image 'P9' has no ground truth"),
        ("P1 0.9 10 10 20\n", "line 1: 5 fields"),
        ("P1 0.9 10 10 20 nan\n", "not all finite numbers"),
    ],
)
def test_broken_dota_results(tmp_path: Path, capsys: pytest.CaptureFixture[str], result: str, words: str) -> None:
    assert main(dota(tmp_path, "0 0 9 0 9 9 0 9 plane 0\n", result)) == 2
    assert words in capsys.readouterr().err


def test_corners_in_the_wrong_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(dota(tmp_path, "0 0 9 0 9 9 0 9 plane 0\n", "P1 0.9 10 10 5 5\nP1 0.8 0 0 9 9\n")) == 0
    assert "1 detections have a right or lower corner before the left" in capsys.readouterr().err


def test_broken_voc_annotation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gt").mkdir()
    (tmp_path / "dt").mkdir()
    (tmp_path / "gt" / "1.xml").write_text("<annotation><object>")
    assert (
        main(["eval", "--protocol", "voc_devkit_py", "--gt", str(tmp_path / "gt"), "--dt", str(tmp_path / "dt")]) == 2
    )
    assert "1.xml: not a VOC annotation" in capsys.readouterr().err


def test_coco_files_for_protocols_with_their_own_layout(tmp_path: Path, score: Callable[..., int]) -> None:
    for protocol in (
        "voc_devkit_py",
        "mmdet2_eval_map",
        "dota_v1.0_task2",
        "widerface_val",
        "visdrone",
        "citypersons_mr",
    ):
        assert score([DET], "--protocol", protocol) == 0
    annotations = read_annotations(tmp_path / "gt.json", for_evaluation=True)
    detections = DetectionTable.from_coco(tmp_path / "dt.json", annotations)
    assert evaluate(annotations, detections, "voc_devkit_py").value(metric="mAP_area", iou=0.5) == 1.0
    # One score only: the reference's normalisation divides 0 by 0, no threshold is reached, nothing is recalled.
    assert evaluate(annotations, detections, "widerface_val").value(setting="all") == 0.0


def test_ground_truth_without_file_names(tmp_path: Path) -> None:
    """Scoring needs no images, so it needs no names of them."""
    gt, dt = tmp_path / "gt.json", tmp_path / "dt.json"
    gt.write_text(json.dumps(GT | {"images": [{"id": 14}]}))
    dt.write_text(json.dumps([DET]))
    annotations = read_annotations(gt, for_evaluation=True)
    result = evaluate(annotations, DetectionTable.from_coco(dt, annotations), "coco_bbox")
    assert result.value(metric="AP50") == pytest.approx(1.0)


@pytest.mark.parametrize(("factor", "words"), [(None, "seems to hold corners"), (2.0, "larger copy"), (1.0, "")])
def test_suspicions_without_the_images_sizes(spread: Any, factor: float | None, words: str) -> None:
    """Where no image's size is known, how far the ground truth reaches tells."""
    unsized = replace(spread, sizes=np.zeros_like(spread.sizes))
    boxes = spread.boxes if factor is None else spread.extra["xywh"] * factor
    notes = suspicions(unsized, detected(boxes), protocol_named("flyspeck"))
    assert words in " ".join(notes)
    assert bool(words) == bool(notes)
