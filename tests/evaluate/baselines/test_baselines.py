"""Baselines: filters against slow twins, blobs that are there, the best constants by hand, nothing chosen on what is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyspeck import UserError, read_annotations
from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.baselines import Baselines, baseline_text, fit_baselines
from flyspeck.evaluate.baselines.constants import ConstantBoxes, constant_count_errors, fit_constant_boxes
from flyspeck.evaluate.baselines.filters import (
    gaussian,
    integral,
    mean,
    peaks,
    reduced,
    refined,
    response,
    running,
    window_means,
)
from flyspeck.evaluate.baselines.places import places
from flyspeck.evaluate.baselines.rule import fit_rule
from flyspeck.evaluate.protocols import INFINITE, Bin
from tiny_sets import write_set

ALL = Bin("all", 0.0, INFINITE)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Annotations, Annotations]:
    folder = tmp_path_factory.mktemp("squares")
    return tuple(  # pyright: ignore[reportReturnType]
        read_annotations(write_set(folder, n, seed=seed, name=f"{name}.json"))
        for name, n, seed in (("train", 8, 1), ("val", 6, 2))
    )


@pytest.fixture(scope="module")
def fitted(sets: tuple[Annotations, Annotations]) -> Baselines:
    return fit_baselines(sets[0])


@given(
    side=st.sampled_from([1, 3, 5, 9, 15]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_windows_are_those_of_a_loop(side: int, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    lowest, highest, middle = (np.zeros_like(image) for _ in range(3))
    padded = np.pad(image, side // 2, mode="edge")
    for y in range(height):
        for x in range(width):
            window = padded[y : y + side, x : x + side]
            lowest[y, x], highest[y, x], middle[y, x] = window.min(), window.max(), window.mean()
    np.testing.assert_array_equal(running(image, side, np.minimum), lowest)
    np.testing.assert_array_equal(running(image, side, np.maximum), highest)
    np.testing.assert_allclose(mean(image, side), middle, atol=1e-5)


def test_a_blur_has_the_width_it_was_asked_for() -> None:
    image = np.zeros((81, 81), np.float32)
    image[40, 40] = 1
    for sigma in (1.0, 2.5, 3.0, 7.0):
        blurred = gaussian(image, sigma)
        across = blurred.sum(0)
        assert blurred.sum() == pytest.approx(1, abs=1e-3)
        assert (across * (np.arange(81) - 40) ** 2).sum() ** 0.5 == pytest.approx(sigma, rel=0.16)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["top-hat", "difference of Gaussians"])
def test_a_square_is_a_peak_at_its_place(size: int, kind: str) -> None:
    image = np.full((40, 40), 7, np.float32)
    image[20 : 20 + size, 12 : 12 + size] = 57
    answer, darker = response(image, kind, size)  # pyright: ignore[reportArgumentType]
    y, x = peaks(answer, 3, 500)
    swapped = response(-image, kind, size)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(swapped[0], darker, atol=1e-4)
    np.testing.assert_allclose(swapped[1], answer, atol=1e-4)
    middle = np.array([20, 12]) + (size - 1) / 2
    assert np.abs([y[0] - middle[0], x[0] - middle[1]]).max() <= size / 2
    if kind == "top-hat":
        # All of the square stands out by 50, and nothing else does.
        whole = image - 7 if size < 5 else mean(image - 7, 3)
        np.testing.assert_allclose(answer, whole, atol=1e-5)
        assert darker.max() == 0


def test_what_fills_its_surroundings_is_no_blob() -> None:
    image = np.zeros((60, 60), np.float32)
    image[10:50, 10:50] = 9
    assert response(image, "top-hat", 8)[0].max() == 0


def test_blobs_that_are_there_are_found(sets: tuple[Annotations, Annotations], fitted: Baselines) -> None:
    found = {base.key: base for base in fitted.measure(sets[1])}
    assert list(found) == ["background", "count", "boxes", "blobs"]
    assert found["background"].ap50("all") == 0
    assert found["count"].ap50("all") is None
    blobs = found["blobs"].ap50("all")
    assert blobs is not None
    assert blobs > 0.75  # bright squares on noise: nothing but their place and side is to be told
    assert found["blobs"].count_error["all"] < 0.5 * found["background"].count_error["all"]
    objects = np.bincount(sets[1].image_index[~sets[1].ignore], minlength=len(sets[1]))
    assert found["background"].count_error["all"] == pytest.approx(objects.mean())
    text = baseline_text(list(found.values()))
    assert "blobs: local maxima of a " in text
    assert "chosen on" in text


def test_dark_objects_of_an_inverted_set_are_found(sets: tuple[Annotations, Annotations], tmp_path: Path) -> None:
    from PIL import Image, ImageOps

    for name in sets[0].file_names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        ImageOps.invert(Image.open(sets[0].root / name)).save(tmp_path / name)
    from dataclasses import replace

    dark = fit_baselines(replace(sets[0], root=tmp_path))
    assert dark.blobs.ap50 > 0.9
    # Bright and dark are not the same to the rule: what it learnt of the one is nothing in the other.
    assert fitted_on_bright(sets, replace(sets[0], root=tmp_path)) < 0.2


def fitted_on_bright(sets: tuple[Annotations, Annotations], other: Annotations) -> float:
    found = {base.key: base for base in fit_baselines(sets[0]).measure(other)}
    return found["blobs"].ap50("all") or 0.0


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    side=st.floats(0.5, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_means_in_windows_are_those_of_a_loop(height: int, width: int, side: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(height, width, 2))
    y, x = rng.uniform(-0.5, height - 0.5, 5), rng.uniform(-0.5, width - 0.5, 5)
    found = window_means(integral(image), y, x, side)
    for k in range(5):
        rows, columns = (
            slice(low := min(max(round(p + 0.5 - side / 2), 0), length - 1),
                  min(max(round(p + 0.5 + side / 2), low + 1), length))
            for p, length in ((y[k], height), (x[k], width))
        )  # fmt: skip
        np.testing.assert_allclose(found[k], image[rows, columns].mean((0, 1)), atol=1e-9)


def test_a_reduced_image_has_the_means_of_squares() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(reduced(image, 2), [[2.5, 4.5], [8.5, 10.5]])  # the last row twice
    assert reduced(image, 1) is image


@given(dy=st.floats(-0.4, 0.4), dx=st.floats(-0.4, 0.4))
def test_a_parabola_is_found_at_its_top(dy: float, dx: float) -> None:
    y, x = np.mgrid[0:9, 0:9].astype(np.float64)
    answer = 100 - 3 * (y - 4 - dy) ** 2 - 2 * (x - 5 - dx) ** 2
    fine = refined(answer, np.array([4]), np.array([5]))
    np.testing.assert_allclose(np.concatenate(fine), [4 + dy, 5 + dx], atol=1e-9)


def test_a_rule_finds_what_was_planted() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 3)) * [1, 10, 0.1] + [0, 5, 3]
    positive = np.abs(features[:, 1] - 5) < 6  # in the middle of the second: a square term
    rule = fit_rule(features, positive)
    likely = rule(features)
    assert likely[positive].mean() > likely[~positive].mean() + 0.6
    assert abs(likely.mean() - positive.mean()) < 0.01
    # Brought to one scale, and far away no surer than at the edge of what was seen.
    np.testing.assert_allclose(
        fit_rule(features * [7, 0.1, 100] - 4, positive)(features * [7, 0.1, 100] - 4), likely, atol=1e-4
    )
    assert rule(np.array([[0.0, 5000.0, 3.0]])) == pytest.approx(rule(np.array([[0.0, 50.0, 3.0]])))


def test_places_of_large_images_are_those_of_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    from flyspeck.evaluate.baselines import places as module

    # Far blobs on a plane that falls, so that no two answers are equal.
    rng = np.random.default_rng(4)
    pixels = np.mgrid[0:128, 0:160].sum(0)[:, :, None] // 3 + np.zeros((1, 1, 3), np.int64)
    for y in range(8, 120, 16):
        for x in range(8, 150, 16):
            side = int(rng.integers(2, 8))
            pixels[y : y + side, x : x + side] += rng.integers(-60, 100, 3)
    pixels = pixels.clip(0, 255).astype(np.uint8)
    whole = places(pixels, "difference of Gaussians", (4.0, 9.0), 3)
    monkeypatch.setattr(module, "WINDOW", 64)
    parts = places(pixels, "difference of Gaussians", (4.0, 9.0), 3)
    every = [np.column_stack([one.middle, one.size, one.features]) for one in (whole, parts)]
    every = [one[one[:, 3:5].max(1) > 0.2] for one in every]  # no window has room for all of the weak ones
    assert len(every[0]) > 40
    for one, other in (every, every[::-1]):
        near = np.abs(one[:, None, :3] - other[None, :, :3]).max(2).min(1) < 0.5
        assert near.all()
    assert places(pixels[:, :, :1], "top-hat", (4.0,), 3).features.shape[1] == whole.features.shape[1]


def test_nothing_is_chosen_on_the_images_that_are_measured(
    sets: tuple[Annotations, Annotations], fitted: Baselines
) -> None:
    again = fit_baselines(sets[0])
    assert again.blobs.settings == fitted.blobs.settings
    assert again.blob_score == fitted.blob_score
    # Other truth of the same images gives the same boxes.
    bare = sets[1].select_boxes(np.zeros(sets[1].num_boxes, bool))
    one, other = fitted.blobs.detect(sets[1]), fitted.blobs.detect(bare)
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.scores, other.scores)


def table(counts: list[list[int]], *, place: float = 0.0, sizes: tuple[int, int] = (50, 100)) -> Annotations:
    """Images with so many objects of each class, 4 px each, side by side from `place` on."""
    rows = [(i, k, n) for i, classes in enumerate(counts) for k, many in enumerate(classes) for n in range(many)]
    corner = np.array([[place + 5.0 * n, 10.0 * k] for _, k, n in rows]).reshape(-1, 2)
    return Annotations(
        image_ids=np.arange(len(counts)),
        file_names=tuple(f"{i}.png" for i in range(len(counts))),
        sizes=np.tile(np.array(sizes), (len(counts), 1)),
        image_index=np.array([i for i, _, _ in rows], np.int64),
        boxes=np.concatenate([corner, corner + 4], 1),
        labels=np.array([k for _, k, _ in rows], np.int64),
        area=np.full(len(rows), 16.0),
        ignore=np.zeros(len(rows), bool),
        crowd=np.zeros(len(rows), bool),
        box_ids=np.arange(1, len(rows) + 1),
        classes=tuple("ab"[: len(counts[0])]),
        category_ids=tuple(range(1, len(counts[0]) + 1)),
    )


def test_the_usual_number_by_hand() -> None:
    train, val = table([[1, 0], [3, 0], [9, 2]]), table([[5, 1], [1, 0]])
    # Medians 3 and 0: off by |3-5| + |0-1| = 3 and |3-1| = 2; with signs -3 and +2.
    assert constant_count_errors(train, val, ALL) == (2.5, -0.5)
    assert constant_count_errors(train, val, Bin("large", 400.0, INFINITE)) == (0.0, 0.0)


def test_the_usual_places_by_hand() -> None:
    # Three of four images have an object in the first place, one in the second.
    fitted = fit_constant_boxes(table([[1], [1], [2], [0]]))
    assert isinstance(fitted, ConstantBoxes)
    np.testing.assert_allclose(fitted.scores, [0.75, 0.25])
    np.testing.assert_allclose(fitted.boxes * [100, 50, 100, 50], [[0, 0, 4, 4], [5, 0, 9, 4]])
    found = fitted.detect(table([[0], [0]], sizes=(100, 200)))  # twice as large: places are shares of the image
    np.testing.assert_allclose(found.boxes[2:], [[0, 0, 8, 8], [10, 0, 18, 8]])
    assert found.image_index.tolist() == [0, 0, 1, 1]


def test_places_mean_nothing_in_images_of_several_sizes() -> None:
    one = table([[1], [1]])
    one.sizes[1] = 70, 70
    assert "2 sizes" in str(fit_constant_boxes(one))


def test_bad_input_is_one_line(sets: tuple[Annotations, Annotations], fitted: Baselines, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match="no objects"):
        fit_baselines(sets[0].select_boxes(np.zeros(sets[0].num_boxes, bool)))
    with pytest.raises(UserError, match="no class 'bird'"):
        fitted.measure(replace(sets[1], classes=("bird",)))
    with pytest.raises(UserError, match="no such image"):
        fit_baselines(replace(sets[0], root=tmp_path))
