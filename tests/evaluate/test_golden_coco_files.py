"""Every value of every golden case in COCO files, by Python and by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from golden_rows import differences, expected
from numpy.testing import assert_allclose

from flyspeck.cli.main import main
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import DetectionTable, evaluate, protocol_named
from flyspeck.evaluate.ap import average_precision, prepare
from flyspeck.evaluate.protocols import APProtocol

CASES = [
    *("tiny_a", "tiny_b", "tiny_c", "coco_multi", "ped_mr_a", "ped_mr_b", "quirk_area_field", "quirk_crowd_iod"),
    *(
        "quirk_id0",
        "quirk_ignore_multi",
        "quirk_maxdets",
        "quirk_mr_negindex",
        "quirk_mr_perfect",
        "quirk_out_of_range",
    ),
]


@pytest.mark.parametrize("case", CASES)
def test_values(shared: Path, case: str) -> None:
    folder = shared / "golden" / case
    annotations = read_annotations(folder / "gt.json", for_evaluation=True)
    detections = DetectionTable.from_coco(folder / "det.json", annotations)
    for protocol, rows in expected(folder).items():
        wrong = differences(evaluate(annotations, detections, protocol).rows, rows)
        assert not wrong, (protocol, wrong[:5])


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("ped")])
def test_counts(shared: Path, case: str) -> None:
    """Counts of ground truths, TP, FP and ignored detections: a value can be right by luck, counts hardly."""
    folder = shared / "golden" / case
    annotations = read_annotations(folder / "gt.json", for_evaluation=True)
    detections = DetectionTable.from_coco(folder / "det.json", annotations)
    for block in json.loads((folder / "expected_counts.json").read_text()):
        protocol = protocol_named(block["protocol"])
        if not isinstance(protocol, APProtocol):
            continue
        counts = average_precision(prepare(annotations, detections, protocol), protocol).counts
        names = [area.name for area in protocol.bins]
        for want in block["counts"]:
            at = (protocol.ious.index(want["iou"]), annotations.category_ids.index(want["category_id"]))
            found = counts[at][names.index(want["area"])].tolist()
            assert found == [want[name] for name in ("n_gt", "n_gt_ignored", "tp", "fp", "det_ignored")], want


@pytest.mark.parametrize("case", ["tiny_a", "tiny_b", "tiny_c"])
def test_curves(shared: Path, case: str) -> None:
    folder = shared / "golden" / case
    annotations = read_annotations(folder / "gt.json", for_evaluation=True)
    detections = DetectionTable.from_coco(folder / "det.json", annotations)
    blocks = json.loads((folder / "expected_curves.json").read_text())
    for name in dict.fromkeys(block["protocol"] for block in blocks):
        protocol = protocol_named(name)
        if not isinstance(protocol, APProtocol):
            continue
        precision = average_precision(prepare(annotations, detections, protocol), protocol).precision
        areas = [area.name for area in protocol.bins]
        for want in (block for block in blocks if block["protocol"] == name):
            at = (protocol.ious.index(want["iou"]), slice(None))
            label = annotations.category_ids.index(want["category_id"])
            found = precision[at][:, label, areas.index(want["area"])]
            assert_allclose(found, np.array(want["precision_101"]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_command_line(shared: Path, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "golden" / case
    for protocol, rows in expected(folder).items():
        out = tmp_path / "f.json"
        files = ["--gt", str(folder / "gt.json"), "--dt", str(folder / "det.json")]
        assert main(["eval", "--protocol", protocol, *files, "--out", str(out)]) == 0
        written = json.loads(out.read_text())
        assert written["protocol"] == protocol
        assert all(row["protocol"] == protocol for row in written["rows"])
        assert not differences(written["rows"], rows)
        assert capsys.readouterr().out.startswith(f"{protocol}: ")
