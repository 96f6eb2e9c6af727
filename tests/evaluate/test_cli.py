"""The command as a user starts it, and its options beyond the numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from golden_rows import differences, expected

from flyspeck.cli.main import main
from flyspeck.evaluate import PROTOCOLS


def files(shared: Path, case: str = "tiny_a") -> list[str]:
    folder = shared / "golden" / case
    return ["--gt", str(folder / "gt.json"), "--dt", str(folder / "det.json")]


@pytest.mark.parametrize("protocol", ["tinybenchmark_ap", "tinybenchmark_mr"])
def test_in_a_process_of_its_own(shared: Path, tmp_path: Path, protocol: str) -> None:
    out = tmp_path / "f.json"
    line = [sys.executable, "-W", "error", "-m", "flyspeck.cli.main", "eval", "--protocol", protocol, *files(shared)]
    done = subprocess.run([*line, "--out", str(out)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not differences(json.loads(out.read_text())["rows"], expected(shared / "golden" / "tiny_a")[protocol])


def test_evaluation_needs_no_torch(shared: Path) -> None:
    code = (
        "import sys; from flyspeck.cli.main import main; "
        f"code = main(['eval', '--why', *{files(shared)!r}]); sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_list_names_every_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}: " in text for name in PROTOCOLS)


def test_bins_max_dets_and_iou(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.json"
    more = ["--bins", "2,8,12,20,32", "--max-dets", "100", "--iou", "0.25,0.5", "--out", str(out)]
    assert main(["eval", "--protocol", "tinybenchmark_ap", *files(shared), *more]) == 0
    written = json.loads(out.read_text())
    name = "tinybenchmark_ap[iou=0.25,0.5; maxDets=100; bins=2,8,12,20,32]"
    assert written["protocol"] == name
    assert written["definition"]["max_dets"] == [100]
    assert {row["iou"] for row in written["rows"]} == {0.25, 0.5}
    assert [row["area"] for row in written["rows"] if row["metric"] == "AP"][1:5] == ["2-8", "8-12", "12-20", "20-32"]
    assert capsys.readouterr().out.startswith(f"{name}: ")


def test_why_intervals_and_comparison(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.json"
    other = files(shared)[-1]
    more = ["--why", "--bootstrap", "30", "--against", other, "--out", str(out)]
    assert main(["eval", *files(shared), *more]) == 0
    written = json.loads(out.read_text())
    assert {row["area"] for row in written["why"]["errors"]} == {
        "all",
        "tiny",
        "tiny1",
        "tiny2",
        "tiny3",
        "small",
        "above32",
    }
    assert all(row["p_value"] == 1.0 for row in written["comparison"] if row["value"] >= 0)
    assert all(row["low"] <= row["high"] for row in written["intervals"] if row["value"] >= 0)
    text = capsys.readouterr().out
    for words in ("errors at IoU 0.5", "optimal LRP", "recall at false positives", "label noise", "paired comparison"):
        assert words in text


def test_recall_by_tile_border(shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / "merge_a"
    out = tmp_path / "f.json"
    line = ["--gt", folder / "merged_gt.json", "--dt", folder / "det.json", "--merge-from", folder / "corner_gt.json"]
    assert main(["eval", *map(str, line), "--why", "--out", str(out)]) == 0
    rows = [row for row in json.loads(out.read_text())["why"]["borders"] if row["area"] == "all"]
    assert sum(row["n_gt"] for row in rows) == 244


def test_why_needs_a_protocol_of_ours(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--protocol", "coco_bbox", *files(shared), "--why"]) == 2
    assert "use --protocol flyspeck" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--bins", "nan,3"],
        ["--bins", "8,2"],
        ["--iou", "0.5,0.5"],
        ["--merge-kernel", "gpu"],
        ["--bootstrap", "-3"],
        ["--against", "nowhere.json"],
        ["--tiles", "nowhere.json"],
    ],
)
def test_impossible_options(shared: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *files(shared), *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_tables_name_sizes_and_quirks(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--protocol", "aitod", *files(shared, "tiny_b"), "--per-class"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "sizes in px: all 0+, verytiny 0-8, tiny 8-16, small 16-32, medium 32+" in lines[0]
    assert lines[1].startswith("quirks of the reference: the annotation with id 0")
    head = "px objects AP@0.50:0.95 AP@0.5 AP@0.75 AR1@0.50:0.95 AR100@0.50:0.95 AR1500@0.50:0.95"
    assert lines[2].split() == head.split()
    assert [line.split()[0] for line in lines[3 : lines.index("")]] == [
        "all",
        "verytiny",
        "tiny",
        "small",
        "medium",
        "sea_person",
        "earth_person",
    ]
