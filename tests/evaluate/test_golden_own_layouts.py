"""Golden cases in the layouts of VOC, DOTA and WIDER FACE, by Python and by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_rows import differences, expected

from flyspeck.cli.main import main
from flyspeck.evaluate import evaluate, protocol_named
from flyspeck.evaluate.layouts import read_pair

PAIRS = {
    "voc_a": ("voc_a/Annotations", "voc_a/results"),
    "dota_hbb_a": ("dota_hbb_a/labelTxt", "dota_hbb_a/Task2"),
    "wider_a": ("wider_gt", "wider_a/det.zip"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_values(shared: Path, case: str) -> None:
    gt, dt = (shared / "golden" / part for part in PAIRS[case])
    for name, rows in expected(shared / "golden" / case).items():
        protocol = protocol_named(name)
        annotations, detections = read_pair(gt, dt, protocol)
        wrong = differences(evaluate(annotations, detections, protocol).rows, rows, _tolerance(name))
        assert not wrong, (name, wrong[:5])


@pytest.mark.parametrize("case", PAIRS)
def test_command_line(shared: Path, case: str, tmp_path: Path) -> None:
    gt, dt = (str(shared / "golden" / part) for part in PAIRS[case])
    for name, rows in expected(shared / "golden" / case).items():
        out = tmp_path / "f.json"
        assert main(["eval", "--protocol", name, "--gt", gt, "--dt", dt, "--out", str(out)]) == 0
        assert not differences(json.loads(out.read_text())["rows"], rows, _tolerance(name))


def _tolerance(protocol: str) -> float:
    return 1e-6 if protocol == "mmdet2_eval_map" else 1e-9
