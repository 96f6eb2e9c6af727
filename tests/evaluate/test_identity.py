"""Ground truth that is broken, and detections whose ids mean other files than the ground truth's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flyspeck.cli.main import main

BOX = {"category_id": 1, "bbox": [10, 10, 8, 8]}
TRUTH = {
    "images": [
        {"id": n, "file_name": f"images/{name}.jpg", "width": 64, "height": 48} for n, name in ((1, "b"), (2, "a"))
    ],
    "categories": [{"id": 1, "name": "p"}],
    "annotations": [{**BOX, "id": 1, "image_id": 1, "area": 64, "iscrowd": 0}],
}


@pytest.fixture
def score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(
        truth: dict[str, Any], listing: list[dict[str, Any]] | None, image_id: int, *more: str
    ) -> tuple[int, str, str]:
        (tmp_path / "gt.json").write_text(json.dumps(truth))
        (tmp_path / "detections.json").write_text(json.dumps([{**BOX, "image_id": image_id, "score": 0.9}]))
        if listing is not None:
            (tmp_path / "images.json").write_text(json.dumps({"images": listing, "categories": []}))
        asked = (
            "--gt",
            str(tmp_path / "gt.json"),
            "--dt",
            str(tmp_path / "detections.json"),
            "--protocol",
            "coco_bbox",
        )
        code = main(["eval", *asked, *more])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_ids_that_agree_are_ids(score: Callable[..., tuple[int, str, str]]) -> None:
    for listing in (None, [{"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": "images/a.jpg"}]):
        code, out, err = score(TRUTH, listing, 1)
        assert code == 0
        assert "100.0" in out
        assert "joined" not in err


def test_a_folder_that_was_numbered_otherwise_is_joined_by_name(score: Callable[..., tuple[int, str, str]]) -> None:
    listing = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    code, out, err = score(TRUTH, listing, 2)
    assert code == 0
    assert "100.0" in out
    assert "joined by file name, 2 of 2 images" in err


def test_detections_of_other_files_are_refused(score: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = score(TRUTH, [{"id": 1, "file_name": "x.jpg"}], 1)
    assert code == 2
    assert "image id 1 is 'x.jpg' here and 'images/b.jpg' in the ground truth" in err


def test_a_name_that_could_be_two_files_is_refused(score: Callable[..., tuple[int, str, str]]) -> None:
    images = [{**image, "file_name": f"{image['id']}/c.jpg"} for image in TRUTH["images"]]
    code, _, err = score({**TRUTH, "images": images}, [{"id": 7, "file_name": "c.jpg"}], 7)
    assert code == 2
    assert "could be 2 images" in err


def test_broken_ground_truth_is_refused_unless_allowed(score: Callable[..., tuple[int, str, str]]) -> None:
    broken = {**BOX, "id": 2, "image_id": 1, "bbox": [float("nan"), 1, 2, 3], "area": 6, "iscrowd": 0}
    truth = {**TRUTH, "annotations": [*TRUTH["annotations"], broken]}
    code, _, err = score(truth, None, 1)
    assert code == 2
    assert "1 broken entries in the ground truth; the first: gt.json: annotation 2" in err
    code, _, err = score(truth, None, 1, "--max-broken-share", "0.5")
    assert code == 0
    assert "annotation 2" in err
