"""Tile detections merged as the benchmarks merge them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fakes import tinyperson
from golden_rows import differences, expected
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from flyspeck.cli.main import main
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.evaluate import evaluate, protocol_named
from flyspeck.evaluate.layouts import read_pair
from flyspeck.evaluate.merging import merge_tiles, suppressed


@pytest.mark.parametrize("kernel", ["cpu", "cuda"])
def test_golden(shared: Path, kernel: str) -> None:
    folder = shared / "golden" / "merge_a"
    tiles = json.loads((folder / "corner_gt.json").read_text())
    merged = merge_tiles(json.loads((folder / "det.json").read_text()), tiles, kernel=kernel)  # pyright: ignore
    assert merged == json.loads((folder / f"expected_merged_{kernel}.json").read_text())
    annotations, detections = read_pair(
        folder / "merged_gt.json",
        folder / "det.json",
        protocol_named("tinybenchmark_ap"),
        merge_from=folder / "corner_gt.json",
        merge_kernel=kernel,
    )
    rows = expected(folder)
    wrong = differences(
        evaluate(annotations, detections, "tinybenchmark_ap").rows, rows[f"tinybenchmark_ap_after_merge_{kernel}"]
    )
    assert not wrong
    counts = {row["metric"]: row["value"] for row in rows[f"merge_{kernel}"]}
    assert counts["n_detections_out"] == len(detections)


def test_command_line(shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / "merge_a"
    out = tmp_path / "f.json"
    files = ["--gt", folder / "merged_gt.json", "--dt", folder / "det.json", "--merge-from", folder / "corner_gt.json"]
    assert main(["eval", "--protocol", "tinybenchmark_ap", *map(str, files), "--out", str(out)]) == 0
    rows = expected(folder)["tinybenchmark_ap_after_merge_cpu"]
    assert not differences(json.loads(out.read_text())["rows"], rows)


@pytest.mark.parametrize("moved", [False, True])
def test_tiles_cut_by_the_command(shared: Path, tmp_path: Path, moved: bool) -> None:
    """Our own corner file, beside the images or not, merges to what the benchmark's gives: its tiles are the same."""
    folder = shared / "golden" / "merge_a"
    gt = str(folder / "merged_gt.json")
    rule = ["--rule", "tinybenchmark_split_by_size", "--corners-only"]
    assert main(["data", "tile", gt, *rule, "--out", str(tmp_path / "tiles")]) == 0
    corners = tmp_path / "tiles" / "corners.json"
    if moved:
        (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
        corners = corners.rename(tmp_path / "elsewhere" / "deep" / "c.json")
    # The benchmark numbers tiles from 0, we from 1.
    theirs = {image["id"]: image for image in json.loads((folder / "corner_gt.json").read_text())["images"]}
    ours = {(i["whole"], *i["corner"]): i["id"] for i in json.loads(corners.read_text())["images"]}
    whole = {image["file_name"]: image["id"] for image in json.loads(Path(gt).read_text())["images"]}
    found = json.loads((folder / "det.json").read_text())
    for one in found:
        tile = theirs[one["image_id"]]
        one["image_id"] = ours[whole[tile["file_name"]], *tile["corner"]]
    (tmp_path / "dt.json").write_text(json.dumps(found))
    out = tmp_path / "f.json"
    line = ["eval", "--gt", gt, "--dt", str(tmp_path / "dt.json"), "--merge-from", str(corners), "--out", str(out)]
    assert main([*line, "--protocol", "tinybenchmark_ap"]) == 0
    assert not differences(json.loads(out.read_text())["rows"], expected(folder)["tinybenchmark_ap_after_merge_cpu"])


@pytest.mark.parametrize(
    ("tiles", "words"),
    [
        ([], "not a tile file"),
        ({"images": [{"id": 0}]}, "no file_name"),
        ({"images": [{"id": 0, "file_name": "img_00021.jpg"}]}, "not a tile file (KeyError: 'corner')"),
        ({"images": [{"id": 0, "file_name": "img_00021.jpg", "corner": None}]}, "not a tile file"),
        ({"images": [{"id": 0, "file_name": "x.jpg", "corner": [0, 0, 9, 9]}]}, "no whole image"),
    ],
)
def test_broken_tile_files(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiles: object, words: str
) -> None:
    folder = shared / "golden" / "merge_a"
    (tmp_path / "c.json").write_text(json.dumps(tiles))
    line = ["--gt", str(folder / "merged_gt.json"), "--dt", str(folder / "det.json")]
    assert main(["eval", *line, "--merge-from", str(tmp_path / "c.json")]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_threshold_side() -> None:
    """Two 9x9 boxes (10x10 with the extra pixel) of which one holds half of the other: IoU exactly 1/2."""
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 4]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert_array_equal(suppressed(boxes, scores, 0.5, strict=False), [False, True])
    assert_array_equal(suppressed(boxes, scores, 0.5, strict=True), [False, False])


def slow_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    removed = np.zeros(len(boxes), bool)
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    for place, i in enumerate(order):
        if removed[i]:
            continue
        for j in order[place + 1 :]:
            side = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2]) + 1
            shared = np.prod(np.maximum(side, 0))
            areas = [np.prod(boxes[k, 2:] - boxes[k, :2] + 1) for k in (i, j)]
            if shared / (areas[0] + areas[1] - shared) >= threshold:
                removed[j] = True
    return removed


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_agrees_with_slow_nms(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 15, (count, 2))
    boxes = np.concatenate([start, start + rng.integers(1, 8, (count, 2))], 1).astype(np.float32)
    scores = rng.integers(0, 6, count).astype(np.float32) / 8
    assert_array_equal(suppressed(boxes, scores, 0.5, strict=False), slow_nms(boxes, scores, 0.5))


def test_strange_tile_is_an_error() -> None:
    tiles = {
        "images": [{"id": 1, "file_name": "a.jpg", "corner": [0, 0, 9, 9]}],
        "old_images": [{"id": 7, "file_name": "a.jpg"}],
    }
    with pytest.raises(UserError, match="tile 5"):
        merge_tiles([{"image_id": 5, "category_id": 1, "bbox": [0, 0, 2, 2], "score": 0.5}], tiles)


def test_whole_image_without_tile_is_an_error(shared: Path) -> None:
    folder = shared / "golden" / "merge_a"
    tiles = json.loads((folder / "corner_gt.json").read_text())
    annotations = read_annotations(folder / "merged_gt.json", for_evaluation=True)
    gone = annotations.file_names[0]
    tiles["images"] = [image for image in tiles["images"] if image["file_name"] != gone]
    with pytest.raises(UserError, match="no tile"):
        merge_tiles([], tiles)


def test_a_run_that_found_nothing_is_merged_and_scored(tmp_path: Path) -> None:
    tinyperson.write(tmp_path)
    (tmp_path / "dt.json").write_text("[]")
    whole = str(tmp_path / "annotations/task/tiny_set_test_all.json")
    corners = str(tmp_path / "annotations/corner/task/tiny_set_test_sw640_sh512_all.json")
    line = ["eval", "--gt", whole, "--dt", str(tmp_path / "dt.json"), "--out", str(tmp_path / "f.json")]
    for more in ([], ["--merge-from", corners]):
        assert main([*line, *more, "--protocol", "tinybenchmark_ap"]) == 0
        rows = json.loads((tmp_path / "f.json").read_text())["rows"]
        assert {row["value"] for row in rows if row["metric"].startswith("AP")} == {0.0, -1.0}


def tiles_of_three_images() -> dict[str, list[dict[str, object]]]:
    names = [{"id": n, "file_name": f"{n}.png"} for n in (1, 2, 3)]
    cut = [{"id": 10 * n, "file_name": f"{n}.png", "corner": [100, 50, 200, 150]} for n in (1, 2, 3)]
    return {"images": cut, "old_images": names}


def test_images_without_detections_stand_between_others() -> None:
    found = [{"image_id": n, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5} for n in (10, 30)]
    merged = merge_tiles(found, tiles_of_three_images())
    assert [(one["image_id"], one["bbox"]) for one in merged] == [(n, [101.0, 52.0, 3.0, 4.0]) for n in (1, 3)]


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_tiles_that_are_no_json(tmp_path: Path, text: str) -> None:
    from flyspeck.evaluate.merging import merge_tile_results

    gt = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    for name, content in (("gt.json", json.dumps(gt)), ("dt.json", "[]"), ("corners.json", text)):
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="not valid json"):
        merge_tile_results(tmp_path / "dt.json", tmp_path / "corners.json", read_annotations(tmp_path / "gt.json"))


def test_sides_are_counted_with_a_pixel_more() -> None:
    """[0, 3] and [1, 4] share 3 of 5 pixels a row where the last one counts (IoU .6), and 2 of 4 where it does not."""
    boxes, scores = np.array([[0, 0, 3, 9], [1, 0, 4, 9]], np.float32), np.array([0.9, 0.8], np.float32)
    assert suppressed(boxes, scores, 0.55, strict=False).tolist() == [False, True]
    assert suppressed(boxes, scores, 0.55, strict=False, pixel=0.0).tolist() == [False, False]
    assert suppressed(boxes, scores, 0.6001, strict=False).tolist() == [False, False]
