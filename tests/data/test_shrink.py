"""Shrinking: sizes, boxes and every other column in pixels, and the pixels themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.image_files import output_names, read_true, save_pixels, shrink_pixels
from flyspeck.data.images import read_image
from flyspeck.data.readers import read_annotations
from flyspeck.data.shrink import shrink, small_sizes
from flyspeck.errors import UserError


def test_sizes_by_hand() -> None:
    sizes = np.array([[512, 640], [375, 500], [101, 33], [1, 1]])
    assert_array_equal(small_sizes(sizes, factor=2), [[256, 320], [188, 250], [51, 17], [1, 1]])  # halves go up
    # 375x500 to a shorter side of 100: 500 * 100 / 375 = 133.3; smaller images stay as they are.
    assert_array_equal(small_sizes(sizes, short_side=100), [[100, 125], [100, 133], [101, 33], [1, 1]])


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 400))
def test_short_side_is_exact(height: int, width: int, side: int) -> None:
    new = small_sizes(np.array([[height, width]]), short_side=side)[0]
    assert new.min() == min(side, height, width)
    assert (new <= (height, width)).all()


@pytest.mark.parametrize(
    "options", [{}, {"factor": 2.0, "short_side": 100}, {"factor": 0.5}, {"factor": float("nan")}, {"short_side": 0}]
)
def test_impossible_options(options: dict) -> None:
    with pytest.raises(UserError):
        small_sizes(np.array([[10, 10]]), **options)


@pytest.mark.parametrize(("kind", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.uint16, 1)])
def test_whole_factors_give_block_means(kind: type, channels: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, np.iinfo(kind).max, (12, 18, channels), dtype=kind, endpoint=True)
    small = shrink_pixels(pixels, (4, 9))
    means = pixels.astype(float).reshape(4, 3, 9, 2, channels).mean((1, 3))
    assert small.dtype == kind
    assert_allclose(small, means, atol=0.51)


def test_other_factors_do_not_alias() -> None:
    # A fine chequerboard must become flat grey, not a pattern of its own.
    board = (np.indices((90, 90)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    small = shrink_pixels(board, (40, 40))
    assert abs(float(small.mean()) - 127.5) < 1
    assert float(small[4:-4, 4:-4].std()) < 5
    assert shrink_pixels(board, (90, 90)) is board


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60), np.uint8)).save(folder / "images" / "grey.png")
    Image.fromarray(rng.integers(0, 255, (41, 60, 3), np.uint8)).save(folder / "images" / "colour.png")
    Image.fromarray(rng.integers(0, 60000, (40, 60), np.uint16)).save(folder / "images" / "deep.png")
    (folder / "images" / "cut.png").write_bytes((folder / "images" / "grey.png").read_bytes()[:90])
    sizes = {"grey": (40, 60), "colour": (41, 60), "deep": (40, 60), "cut": (40, 60), "gone": (40, 60), "lie": (9, 9)}
    Image.new("L", (8, 8)).save(folder / "images" / "lie.png")
    images = [
        {"id": 10 + n, "file_name": f"images/{name}.png", "height": height, "width": width}
        for n, (name, (height, width)) in enumerate(sizes.items())
    ]
    rows = [
        {"id": 0, "image_id": 10, "bbox": [10, 20, 6, 4], "area": 20, "height": 4, "vis_ratio": 0.5, "size": 4.9},
        {"id": 5, "image_id": 11, "bbox": [-4, 10.25, 8, 41], "vis_bbox": [0, 10.25, 4, 20.5]},
        {"id": 6, "image_id": 12, "bbox": [0, 0, 60, 40], "ignore": 1},
        {"id": 7, "image_id": 13, "bbox": [0, 0, 6, 4]},
    ]
    entries = [{"category_id": 3, "iscrowd": 0, **row} for row in rows]
    content = {"images": images, "annotations": entries, "categories": [{"id": 3, "name": "p"}]}
    (folder / "gt.json").write_text(json.dumps(content))
    return folder / "gt.json"


def test_a_data_set_by_half(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    before = read_annotations(source)
    small = shrink(before, tmp_path / "out", name="a.json", factor=2, progress=lambda *d: seen.append(d))
    assert seen[-1] == (6, 6)
    back = read_annotations(tmp_path / "out" / "a.json")
    assert_array_equal(back.image_ids, [10, 11, 12])
    assert_array_equal(back.sizes, [[20, 30], [21, 30], [20, 30]])
    assert_array_equal(back.box_ids, [0, 5, 6])
    assert back.category_ids == (3,)
    # 41 rows become 21, so the second box is scaled by 21/41 upright: 10.25 -> 5.25, 41 -> 21.
    assert_allclose(back.boxes, [[5, 10, 8, 12], [-2, 5.25, 2, 26.25], [0, 0, 30, 20]], atol=1e-6)
    assert_allclose(back.area[0], 5)
    assert_allclose(back.extra["height"][0], 2)
    assert_allclose(back.extra["size"][0], 2.45)
    assert_allclose(back.extra["vis_ratio"][0], 0.5)
    assert_allclose(back.extra["vis_bbox"][1], [0, 5.25, 2, 10.5])
    assert_array_equal(back.ignore, [False, False, True])
    assert [read_image(back.path(n)).shape for n in range(3)] == [(20, 30, 1), (21, 30, 3), (20, 30, 1)]
    assert read_image(back.path(2)).dtype == np.uint16
    assert_array_equal(read_image(back.path(0)), shrink_pixels(read_image(before.path(0)), (20, 30)))
    assert [Path(problem.split(":")[0]).name for problem in small.problems] == ["cut.png", "gone.png", "lie.png"]
    assert "is 8x8 px, the annotations say 9x9" in small.problems[2]


def test_a_pixel_of_a_smaller_image_covers_more_ground(source: Path, tmp_path: Path) -> None:
    """What is not known of an image is left out of the file, not written as a number that JSON has not."""
    known = read_annotations(source)
    metres = np.full(len(known), np.nan)
    metres[0] = 0.1
    smaller = shrink(
        replace(known, image_extra={"metres_per_pixel": metres}), tmp_path / "small", name="s.json", factor=2
    )
    assert_allclose(smaller.image_extra["metres_per_pixel"][0], 0.2, rtol=0.02)
    images = json.loads((tmp_path / "small" / "s.json").read_text())["images"]
    assert ["metres_per_pixel" in image for image in images] == [True] + [False] * (len(images) - 1)


def test_two_processes_write_the_same(source: Path, tmp_path: Path) -> None:
    content = json.loads(source.read_text())
    content["images"] = [{**content["images"][0], "id": n, "file_name": f"images/{n}.png"} for n in range(9)]
    for n in range(9):
        Image.fromarray(np.full((40, 60), n, np.uint8)).save(source.parent / "images" / f"{n}.png")
    source.write_text(json.dumps({**content, "annotations": []}))
    table = read_annotations(source)
    for workers in (1, 2):
        shrink(table, tmp_path / f"{workers}", name="a.json", short_side=10, workers=workers)
    one, two = (sorted(p for p in (tmp_path / f"{w}").rglob("*") if p.is_file()) for w in (1, 2))
    assert len(one) == 10
    assert [a.read_bytes() for a in one] == [b.read_bytes() for b in two]


def test_refusals(source: Path, tmp_path: Path) -> None:
    table = read_annotations(source)
    with pytest.raises(UserError, match="written over themselves"):
        shrink(table, source.parent, name="b.json", factor=2)
    first = json.loads(source.read_text())["images"][0]["file_name"]
    (source.parent / "elsewhere").mkdir()
    (source.parent / first).rename(source.parent / "elsewhere" / "first.png")
    # Any of them, not the first alone.
    names = ["elsewhere/first.png", *table.file_names[1:]]
    with pytest.raises(UserError, match=r"written over themselves \("):
        shrink(replace(table, file_names=tuple(names)), source.parent, name="b.json", factor=2)
    with pytest.raises(UserError, match="no image could be read"):
        shrink(table.select_images([3, 4]), tmp_path / "out", name="b.json", factor=2)


def test_webp_keeps_grey_grey(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    grey = np.asarray(Image.fromarray(rng.integers(0, 255, (12, 16), np.uint8)).resize((64, 48)))
    Image.fromarray(grey).save(tmp_path / "lossy.webp", quality=80)
    assert read_true(tmp_path / "lossy.webp").shape == (48, 64, 1)
    save_pixels(grey[..., None], tmp_path / "exact.webp")
    assert_array_equal(read_true(tmp_path / "exact.webp")[..., 0], grey)
    colour = rng.integers(0, 255, (8, 8, 3), np.uint8)
    save_pixels(colour, tmp_path / "colour.webp")
    assert_array_equal(read_true(tmp_path / "colour.webp"), colour)
    with pytest.raises(UserError, match="WebP holds 8 bits"):
        save_pixels(np.zeros((4, 4, 1), np.uint16), tmp_path / "deep.webp")


def test_names_to_write() -> None:
    names = output_names(["images/a.jpg", "images/a.png", "../../etc/b.png", "/x/A.png", "s/a.jpg"], ".png")
    assert names == ["a.png", "a_.png", "etc/b.png", "x/A.png", "s/a.png"]
    assert len({name.lower() for name in output_names(["a.jpg", "A.jpg", "a.JPG"])}) == 3


@pytest.mark.parametrize("to", ["voc", "labelme"])
def test_names_that_no_file_can_have_are_written_under_others(tmp_path: Path, to: str) -> None:
    assert output_names(["..", "/", "a\0.png", "a_.png", "."], ".xml") == [
        *("image.xml", "image_.xml", "a_.xml", "a__.xml", "image__.xml"),
    ]
    images = [
        {"id": n, "file_name": name, "width": 9, "height": 9} for n, name in enumerate(("..", "a\0.png", "b.png"), 1)
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "p"}]}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    assert (
        main(["data", "convert", str(tmp_path / "gt.json"), "--to", to, "--out", str(out), "--allow-references"]) == 0
    )
    assert sorted(path.stem for path in out.rglob("*") if path.is_file()) == ["a_", "b", "image"]


@pytest.mark.parametrize("to", ["coco", "yolo", "voc", "cvat", "label-studio", "labelme", "fiftyone"])
@pytest.mark.parametrize("name", ["/", ".", "..", "a\0.png", "a/" * 300 + "a.png", "x" * 300])
def test_no_name_of_an_image_ends_in_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, name: str
) -> None:
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    images = [{"id": 1, "file_name": name, "width": 9, "height": 9}]
    content = {"images": images, "annotations": [entry], "categories": [{"id": 1, "name": "p"}]}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    out = tmp_path / ("out" if to in ("yolo", "voc", "labelme") else "out.json")
    code = main(["data", "convert", str(tmp_path / "gt.json"), "--to", to, "--out", str(out), "--allow-references"])
    assert code in (0, 2), capsys.readouterr().err
