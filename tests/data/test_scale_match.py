"""Scale Match: histograms and quantiles by hand, what each method does to sizes, caps, and files that agree with their boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from typer.testing import CliRunner

import flyspeck.data.scale_match_files as files
from flyspeck.cli.data import app
from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.data.scale_match import (
    SizeHistogram,
    SizeMatchRule,
    match_report,
    matched_table,
    object_sizes,
    plan_match,
    rectified_histogram,
    wasserstein,
)
from flyspeck.data.scale_match_files import draw_histograms, padded, resize_objects, scale_match
from flyspeck.errors import UserError


def write_set(folder: Path, boxes_of: list[list[list[float]]], *, size: tuple[int, int] = (80, 60)) -> Annotations:
    """A COCO set with grey images of `size` (width, height) whose boxes (xywh) are white; a fifth value: an ignore region."""
    folder.mkdir(parents=True, exist_ok=True)
    images, entries = [], []
    for number, boxes in enumerate(boxes_of):
        pixels = np.full((size[1], size[0]), 60, np.uint8)
        for x, y, w, h, *flag in boxes:
            pixels[round(y) : round(y + h), round(x) : round(x + w)] = 250
            row = {"id": len(entries) + 1, "image_id": number, "category_id": 1, "bbox": [x, y, w, h]}
            entries.append({**row, "ignore": 1} if flag else row)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "p"}]}
    (folder / "gt.json").write_text(json.dumps(content))
    return read_annotations(folder / "gt.json")


def squares(*sides: float) -> list[list[float]]:
    return [[5 + 12 * i, 6, side, side] for i, side in enumerate(sides)]


# --- histograms and distances ------------------------------------------------------------------------------------------


def test_the_rectified_histogram_by_hand() -> None:
    sizes = np.array([1.0, 10, 11, 12, 13, 14, 15, 16, 17, 500])
    # Tails of 20 %: one object below, one above; between 10 and 17 two bins of 3.5 px, with 4 objects each.
    found = rectified_histogram(sizes, bins=4, tails=0.2)
    assert_allclose(found.edges, [1, 10, 13.5, 17, 500])
    assert_allclose(found.share, [0.1, 0.4, 0.4, 0.1])
    # A plain histogram of four bins would put nine of ten into the first.
    plain = rectified_histogram(sizes, bins=4, tails=0.0)
    assert plain.share[1] == 0.9 or plain.share[:2].sum() == 0.9
    one = rectified_histogram(np.array([7.0]), bins=3)
    assert one.edges[0] <= 7 <= one.edges[-1]
    assert one.share.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="no sizes"):
        rectified_histogram(np.zeros(0))


def test_samples_follow_the_shares() -> None:
    histogram = SizeHistogram(np.array([0.0, 1, 3, 10]), np.array([0.5, 0.0, 0.5]))
    drawn = histogram.sample(np.random.default_rng(0), 4000)
    assert ((drawn < 1) | (drawn >= 3)).all()
    assert (drawn < 1).mean() == pytest.approx(0.5, abs=0.03)
    assert drawn[drawn >= 3].mean() == pytest.approx(6.5, abs=0.2)


def test_monotone_mapping_by_hand() -> None:
    histogram = SizeHistogram(np.array([2.0, 4, 12]), np.array([0.5, 0.5]))
    source = np.array([10.0, 20, 30, 40])
    # They lie at 1/8, 3/8, 5/8 and 7/8 of the source; half of the target lies between 2 and 4, half between 4 and 12.
    assert_allclose(histogram.mapped(np.array([10.0, 20, 30, 35, 40]), source), [2.5, 3.5, 6, 8, 10])
    # Beyond what the source has, its ends; equal ones share their middle: 1/3.
    assert_allclose(histogram.mapped(np.array([1.0, 99]), source), [2.5, 10])
    assert_allclose(histogram.mapped(np.array([10.0]), np.array([10.0, 10, 30])), [2 + 2 * 2 / 3])


def slow_wasserstein(a: list[float], b: list[float]) -> float:
    """Of samples of one size: the mean distance of the sorted ones."""
    return float(np.mean([abs(x - y) for x, y in zip(sorted(a), sorted(b), strict=True)]))


@given(st.lists(st.tuples(st.floats(0.5, 100), st.floats(0.5, 100)), min_size=1, max_size=12))
def test_wasserstein_equals_the_mean_distance_of_sorted_samples(pairs: list[tuple[float, float]]) -> None:
    a, b = (list(part) for part in zip(*pairs, strict=True))
    assert wasserstein(np.array(a), np.array(b)) == pytest.approx(slow_wasserstein(a, b), abs=1e-9)
    assert wasserstein(np.array(a * 3), np.array(b)) == pytest.approx(slow_wasserstein(a, b), abs=1e-9)
    assert wasserstein(np.array(a), np.array(a)) == 0
    with pytest.raises(ValueError, match="not empty"):
        wasserstein(np.array(a), np.zeros(0))


@given(st.integers(0, 1000))
def test_mapping_keeps_the_order_and_reaches_the_target(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = np.exp(rng.normal(3, 0.8, 400)), np.exp(rng.normal(2, 0.5, 300))
    mapped = rectified_histogram(target).mapped(source, source)
    order = np.argsort(source)
    assert (np.diff(mapped[order]) >= -1e-9).all()
    assert wasserstein(mapped, target) < 0.15 * wasserstein(source, target)


# --- plans -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Annotations:
    """Fifty objects of 4 to 8 px."""
    return write_set(tmp_path / "target", [squares(4, 5, 6, 7, 8)] * 10)


@pytest.mark.parametrize("method", ["sm", "msm", "sm+"])
def test_each_method_brings_the_sizes_nearer(tmp_path: Path, target: Annotations, method: str) -> None:
    rng = np.random.default_rng(1)
    images = [[[4, 4, s, s], [40, 20, 1.2 * s, s]] for s in rng.uniform(10, 30, 40)]
    source = write_set(tmp_path / "source", images)
    rule = SizeMatchRule(method=method)  # type: ignore[arg-type]
    plan = plan_match(source, target, rule)
    after = matched_table(source, plan)
    report = match_report(source, target, after, plan, rule)
    assert report["wasserstein_px"]["after"] < 0.35 * report["wasserstein_px"]["before"]
    assert report["wasserstein_log2"]["after"] < 0.35 * report["wasserstein_log2"]["before"]
    assert report["capped"] == 0
    if method == "sm+":
        assert_array_equal(plan.new_sizes, source.sizes)
    else:
        # An image keeps its shape, and its boxes their place in it.
        assert_allclose(plan.new_sizes / source.sizes, (plan.new_sizes / source.sizes)[:, :1].repeat(2, 1), atol=0.05)
        share = after.boxes / np.tile(plan.new_sizes[after.image_index][:, ::-1], 2)
        assert_allclose(share, source.boxes / np.tile(source.sizes[source.image_index][:, ::-1], 2), atol=1e-9)


def test_monotone_match_keeps_the_order_of_images_and_is_the_same_every_time(
    tmp_path: Path, target: Annotations
) -> None:
    source = write_set(tmp_path / "source", [squares(s) for s in (10, 14, 20, 28)])
    first = plan_match(source, target, SizeMatchRule(seed=0))
    mean = object_sizes(matched_table(source, first))[1]
    assert (np.diff(mean) > 0).all()
    assert_array_equal(first.new_sizes, plan_match(source, target, SizeMatchRule(seed=1)).new_sizes)
    drawn = [plan_match(source, target, SizeMatchRule(method="sm", seed=s)).new_sizes for s in (0, 0, 1)]
    assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_enlargement_is_capped_and_told(tmp_path: Path, target: Annotations) -> None:
    source = write_set(tmp_path / "source", [squares(1), squares(4), squares(8)])
    plan = plan_match(source, target, SizeMatchRule(max_scale=2.0))
    assert plan.capped == 1  # 1 px becomes 4, 4 px 6, 8 px 8
    assert plan.wanted == pytest.approx(4, abs=0.1)
    assert plan.new_sizes.max() <= 160
    tight = plan_match(source, target, SizeMatchRule(max_scale=9, max_side=100))
    assert tight.new_sizes.max() <= 100
    assert tight.capped >= 1
    each = plan_match(source, target, SizeMatchRule(method="sm+", max_scale=2.0))
    assert each.capped == 1
    assert each.factor.max() == 2.0


def test_sets_without_boxes_are_refused(tmp_path: Path, target: Annotations) -> None:
    empty = write_set(tmp_path / "empty", [[]])
    with pytest.raises(UserError, match="the target has no boxes to take sizes from"):
        plan_match(target, empty, SizeMatchRule())
    with pytest.raises(UserError, match="the source has no boxes to match"):
        plan_match(empty, target, SizeMatchRule())
    only_ignored = write_set(tmp_path / "ignored", [[[5, 5, 9, 9, 1]]])
    with pytest.raises(UserError, match="the target has no boxes"):
        plan_match(target, only_ignored, SizeMatchRule())
    huge = write_set(tmp_path / "huge", [[[2, 2, 70, 2]]])
    report = [huge, target, matched_table(huge, plan_match(huge, target, SizeMatchRule()), min_side=30)]
    with pytest.raises(UserError, match="no object is left"):
        match_report(report[0], report[1], report[2], plan_match(huge, target, SizeMatchRule()), SizeMatchRule())


@pytest.mark.parametrize(
    "wrong",
    [{"method": "msn"}, {"bins": 2}, {"tails": 1.0}, {"max_scale": 0}, {"probability": 1.5}, {"max_side": 0}],
)
def test_rules_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(UserError):
        SizeMatchRule(**wrong)


def test_images_without_objects_get_the_median_and_ignore_regions_follow(tmp_path: Path, target: Annotations) -> None:
    source = write_set(tmp_path / "source", [squares(12), [], squares(12), [[10, 10, 20, 20, 1], [40, 40, 12, 12]]])
    plan = plan_match(source, target, SizeMatchRule())
    assert_array_equal(plan.new_sizes[1], plan.new_sizes[0])
    after = matched_table(source, plan)
    ratio = plan.new_sizes[3, 1] / 80
    region = after.boxes[after.ignore]
    assert_allclose(region, [[10 * ratio, 10 * plan.new_sizes[3, 0] / 60, 30 * ratio, 30 * plan.new_sizes[3, 0] / 60]])


def test_objects_that_get_too_small_are_dropped(tmp_path: Path) -> None:
    target = write_set(tmp_path / "target", [squares(2, 2, 2)])
    source = write_set(tmp_path / "source", [[[4, 4, 40, 40], [50, 20, 4, 4]]])
    plan = plan_match(source, target, SizeMatchRule())
    after = matched_table(source, plan, min_side=1.0)
    assert after.num_boxes == 1
    assert match_report(source, target, after, plan, SizeMatchRule())["dropped"] == 1


# --- images ----------------------------------------------------------------------------------------------------------


def white_boxes(path: Path) -> np.ndarray:
    """Bounding box xyxy of the bright pixels of a written image."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    y, x = np.nonzero(pixels > 150)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


@pytest.mark.parametrize("method", ["sm", "msm", "sm+"])
def test_written_pixels_agree_with_the_written_boxes(tmp_path: Path, target: Annotations, method: str) -> None:
    if method == "sm+":
        pytest.importorskip("cv2", reason="needs opencv (extra inpaint)")
    source = write_set(tmp_path / "source", [[[20, 16, 24, 20]], [[30, 30, 12, 12]], [[10, 10, 3, 3]]])
    out = tmp_path / "out"
    rule = SizeMatchRule(method=method)  # type: ignore[arg-type]
    written, report = scale_match(source, target, out, rule, name="gt.json")
    again = read_annotations(out / "gt.json")
    assert_allclose(again.boxes, written.boxes, atol=1e-5)
    for row in range(3):
        with Image.open(again.path(row)) as image:
            assert (image.height, image.width) == tuple(again.sizes[row])
        assert_allclose(white_boxes(again.path(row)), again.boxes[row], atol=1.5)
    assert json.loads((out / "scale_match.json").read_text()) == report
    with Image.open(out / "scale_match.png") as image:
        assert image.size == (900, 460)
    with pytest.raises(UserError, match="written over themselves"):
        scale_match(again, target, out, rule, name="gt.json")


def test_tiles_and_padding_give_images_of_one_size(tmp_path: Path, target: Annotations) -> None:
    big = write_set(tmp_path / "big", [squares(6), squares(6)], size=(150, 90))
    written, report = scale_match(
        big, target, tmp_path / "out", SizeMatchRule(), name="gt.json", size=(64, 64), overlap=8
    )
    assert len(written) > 2
    assert report["written"]["images"] == len(written)
    for row in range(len(written)):
        with Image.open(written.path(row)) as image:
            assert image.size == (64, 64)
    assert (written.boxes[:, 2:] <= 64).all()
    small = write_set(tmp_path / "small", [[[4, 4, 6, 6]]], size=(20, 16))
    written, _ = scale_match(small, target, tmp_path / "padded", SizeMatchRule(), name="gt.json", size=(64, 64))
    with Image.open(written.path(0)) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (64, 64)
    assert pixels[40:, 40:].std() == 0
    with pytest.raises(UserError, match="cannot share"):
        scale_match(small, target, tmp_path / "no", SizeMatchRule(), name="gt.json", size=(64, 64), overlap=64)


def test_padding_keeps_pixels_and_mean() -> None:
    pixels = np.array([[[10], [20]], [[30], [40]]], np.uint8)
    out = padded(pixels, (3, 4))
    assert_array_equal(out[:2, :2], pixels)
    assert (out[2] == 25).all()
    assert (out[:, 2:] == 25).all()


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path, target: Annotations) -> None:
    source = write_set(tmp_path / "source", [squares(12), squares(12), squares(12)])
    source.path(1).write_bytes(b"no image")
    Image.new("L", (9, 9)).save(source.path(2))
    written, report = scale_match(source, target, tmp_path / "out", SizeMatchRule(), name="gt.json")
    assert len(written) == 1
    assert report["left_out"] == 2
    assert len(written.problems) == 2


def test_an_object_shrinks_over_an_inpainted_ground_and_grows_over_its_surroundings() -> None:
    pytest.importorskip("cv2", reason="needs opencv (extra inpaint)")
    pixels = np.full((40, 40, 1), 60, np.uint8)
    pixels[10:30, 10:30] = 250
    half = resize_objects(pixels, np.array([[10.0, 10, 30, 30]]), np.array([0.5]))
    assert (half[15:25, 15:25] == 250).all()
    assert half[:14].max() < 80  # what was white is ground now
    assert half[26:].max() < 80
    twice = resize_objects(pixels, np.array([[10.0, 10, 30, 30]]), np.array([1.5]))
    assert (twice[5:35, 5:35] == 250).all()
    assert (twice[:5] == 60).all()
    beyond = resize_objects(pixels, np.array([[10.0, 10, 30, 30]]), np.array([4.0]))
    assert (beyond == 250).all()  # clipped at the border
    with pytest.raises(UserError, match="8 bits"):
        resize_objects(pixels.astype(np.uint16), np.array([[1.0, 1, 2, 2]]), np.array([0.5]))


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_tiny_objects_and_objects_at_the_border_survive(side: int) -> None:
    pytest.importorskip("cv2", reason="needs opencv (extra inpaint)")
    pixels = np.full((20, 20, 3), 60, np.uint8)
    boxes = np.array([[0.0, 0, side, side], [20.0 - side, 20 - side, 20, 20], [9.0, 9, 9 + side, 9 + side]])
    for factor in (0.3, 0.9, 1.7):
        out = resize_objects(pixels, boxes, np.full(3, factor))
        assert out.shape == pixels.shape
        assert out.dtype == np.uint8


def test_without_opencv_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: Annotations
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"install 'opencv"):
        scale_match(target, target, tmp_path / "out", SizeMatchRule(method="sm+"), name="gt.json")
    assert not (tmp_path / "out").exists()
    assert files._RADIUS > 0


def test_the_image_of_the_histograms_shows_all_three() -> None:
    image = draw_histograms({"a": np.array([4.0, 4, 8]), "b": np.array([4.0]), "c": np.array([16.0, 32])})
    colors = {color for _, color in image.getcolors(1 << 20) or []}
    assert set(files._COLORS) <= colors


def test_the_verb_prints_distances_caps_and_refuses(tmp_path: Path, target: Annotations) -> None:
    write_set(tmp_path / "source", [squares(1), squares(16, 20)])
    base = ["scale-match", str(tmp_path / "source" / "gt.json"), "--target", str(tmp_path / "target" / "gt.json")]
    done = CliRunner().invoke(app, [*base, "--out", str(tmp_path / "out"), "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert "Wasserstein distance to the target:" in done.output
    assert "capped: see --max-scale" in done.output
    found = CliRunner().invoke(
        app, [*base, "--out", str(tmp_path / "two"), "--workers", "1", "--json", "--match", "sm"]
    )
    assert json.loads(found.stdout)["method"] == "sm"
    write_set(tmp_path / "none", [[]])
    wrong = CliRunner().invoke(app, [*base[:-1], str(tmp_path / "none" / "gt.json"), "--out", str(tmp_path / "x")])
    assert isinstance(wrong.exception, UserError)
    assert "no boxes to take sizes from" in str(wrong.exception)
