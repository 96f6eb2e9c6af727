"""`flyspeck alpha` from a file to json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flyspeck.cli.main import main

# The boxes of the hand-made vector V1 (see tests/data/test_fusion.py), as centre and side in two images of 128x128.
FIRST = [(10, 10, 8), (30, 10, 8), (50, 10, 7), (70, 10, 9), (90, 10, 6), (110, 30, 10), (10, 50, 8), (30, 50, 8)]
FIRST += [(20, 84, 16), (52, 84, 14), (84, 84, 18), (116, 84, 16), (24, 104, 32), (104, 104, 30)]
SECOND = [(48, 48, 64), (14, 14, 8), (14, 30, 8), (100, 20, 16), (60, 100, 16)]


@pytest.fixture
def ground_truth(tmp_path: Path) -> Path:
    boxes = [(1, *b) for b in FIRST] + [(2, *b) for b in SECOND]
    annotations = [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": 1,
            "iscrowd": 0,
            "area": s * s,
            "bbox": [x - s / 2, y - s / 2, s, s],
        }
        for i, (image, x, y, s) in enumerate(boxes)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "width": 128, "height": 128} for i in (1, 2)]
    path = tmp_path / "gt.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]})
    )
    return path


def test_json_of_the_hand_made_vector(ground_truth, capsys):
    assert main(["alpha", str(ground_truth), "--json", "--raw"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"P2": 10, "P3": 6, "P4": 2, "P5": 1, "P6": 0}
    assert found["factors"] == {"a23": 0.6, "a34": 2 / 6, "a45": 0.5}


def test_all_options_of_the_command_and_the_clamp(ground_truth, capsys):
    options = "--anchors 8,16,32,64,128 --ratios 0.5,1,2 --octaves 3 --strides 4,8,16,32,64 --size 128x128 --json"
    assert main(["alpha", str(ground_truth), *options.split(), "--count", "objects"]) == 0
    assert json.loads(capsys.readouterr().out)["factors"] == {"a23": 0.6, "a34": 0.333, "a45": 0.5}


def test_table_and_points(ground_truth, capsys):
    assert main(["alpha", str(ground_truth), "--assign", "points"]) == 0
    printed = capsys.readouterr().out
    assert "19 objects in 2 images" in printed
    assert "clamped to [0.2, 2.0]" in printed


def test_an_empty_level_is_a_warning_beside_the_json(ground_truth, capsys):
    assert main(["alpha", str(ground_truth), "--anchors", "8,500,32,64,128", "--octaves", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert "warning: no object falls on P3" in printed.err
    assert json.loads(printed.out)["factors"]["a34"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--anchors", "8,16"], "2 anchor sizes for 5 strides"),
        (["--anchors", "8,x"], "no list of numbers"),
        (["--strides", "4,8.5"], "not whole"),
        (["--ratios", "0,1"], "not positive"),
        (["--octaves", "0"], "--octaves"),
        (["--size", "128"], "no size"),
        (["--count", "objekts"], "objects"),
        (["--assign", "boxes"], "--assign"),
        (["--extra-levels", "4"], "nothing is fused"),
    ],
)
def test_wrong_options_end_in_one_line(ground_truth, capsys, options, message):
    assert main(["alpha", str(ground_truth), *options]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
