"""A data set that is converted to COCO json scores as in its own files: difficult and invalid boxes stay ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import dota, visdrone, voc, widerface

from flyspeck.data.readers import read_annotations
from flyspeck.data.writers import write_coco
from flyspeck.evaluate import evaluate
from flyspeck.evaluate.detections import DetectionTable

PROTOCOLS = (
    "voc_devkit_py",
    "mmdet2_eval_map",
    "dota_v1.0_task2",
    "dota_v1.5_task2",
    "flyspeck",
    "tinybenchmark_ap",
    "visdrone",
)
SETS: dict[str, tuple[Callable[[Path], None], str]] = {
    "voc": (voc.write, "VOCdevkit/VOC2007"),
    "dota": (dota.write, "val"),
    "wider": (widerface.write, "wider_face_split/wider_face_train_bbx_gt.txt"),
    "visdrone": (visdrone.write, "VisDrone2019-DET-val"),
}


@pytest.mark.parametrize("name", SETS)
def test_a_converted_set_scores_as_its_own_files(name: str, tmp_path: Path) -> None:
    write, place = SETS[name]
    write(tmp_path)
    own = read_annotations(tmp_path / place)
    assert own.ignore.any(), "the set marks some of its boxes"
    write_coco(own, tmp_path / "converted.json")
    converted = read_annotations(tmp_path / "converted.json", for_evaluation=True)
    # Every object that is to be found but the last: a marked one that counted would lower the recall further.
    rows = np.flatnonzero(~own.ignore)[:-1]
    found = DetectionTable.from_columns(
        image_index=own.image_index[rows],
        boxes=own.boxes[rows],
        scores=0.9 - 0.001 * np.arange(len(rows)),
        labels=own.labels[rows],
    )
    for protocol in PROTOCOLS:
        before, after = evaluate(own, found, protocol).rows, evaluate(converted, found, protocol).rows
        assert [row["value"] for row in after] == pytest.approx([row["value"] for row in before], nan_ok=True), protocol
