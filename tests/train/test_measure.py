"""The flat names under which training keeps a protocol's numbers."""

from __future__ import annotations

import json

import pytest

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.train.measure import metrics_of
from flyspeck.train.progress import headline


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    """One image with an 8 px object of each of two classes."""
    path = tmp_path_factory.mktemp("gt") / "gt.json"
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": k, "bbox": [20 * k, 0, 8, 8], "area": 64, "iscrowd": 0}
            for k in (1, 2)
        ],
    }
    path.write_text(json.dumps(content))
    return read_annotations(path, for_evaluation=True)


@pytest.mark.parametrize(
    ("protocol", "names"),
    [
        ("flyspeck", {"ap50_all", "ap50_tiny", "ap_tiny1", "ar75_small"}),
        ("coco_bbox", {"ap_all", "ap50_all", "aps_all", "ar100_all"}),
        ("aitod", {"ap_all", "ap50_all", "ap_verytiny", "ar_tiny", "ar1500_all"}),
        ("tinybenchmark_mr", {"mr50_tiny1", "mr25_all"}),
    ],
)
def test_names(annotations: Annotations, protocol: str, names: set[str]) -> None:
    """Nothing of one class, no threshold or area twice."""
    result = evaluate(annotations, DetectionTable.empty(), protocol)
    metrics = metrics_of(result)
    assert names <= set(metrics)
    assert not any("per_class" in name or "5050" in name or "tiny_tiny" in name for name in metrics)
    overall = [row for row in result.rows if "category_id" not in row and row["value"] is not None]
    assert len(metrics) == len(overall)


def test_the_line_of_an_epoch_is_readable() -> None:
    """However many sizes, thresholds and factors there are, it is one line, the metric that picks the checkpoint first."""
    sizes = ("all", "tiny", "tiny1", "tiny2", "tiny3", "small", "reasonable")
    metrics = {
        f"{kind}_{size}{at}": 0.5 for at in ("", "@0.25", "@mean") for kind in ("ap50", "ap", "ar50") for size in sizes
    }
    line = headline({**metrics, "ap50_tiny1": -1.0, "ap50_tiny@mean": 0.412}, first="ap50_tiny@mean")
    assert line.startswith("ap50_tiny@mean 41.2, ap50_all 50.0, ap50_tiny 50.0, ap50_tiny1 none")
    assert line.endswith("% …")
    assert len(line) < 140
    assert headline({}) == ""
    assert headline({"mr_all": 0.25}) == "mr_all 25.0 %"
