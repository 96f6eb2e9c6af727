"""Copies lie where their boxes say, overlap nothing they should not, and come from whom they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.data.copy_paste import CopyPaste, blend, cut_out, paste_sources
from flyspeck.types import Sample, Targets


def painted(height, width, boxes, *, labels=None, ignore=None, dtype=torch.uint8, channels=1):
    """Black but for the boxes; box number n has the value 100 + 10 n (of 255)."""
    pixels = torch.zeros(channels, height, width, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[:, y1:y2, x1:x2] = 100 + 10 * min(number, 15)
    if dtype == torch.float32:
        pixels = pixels.to(torch.float32) / 255
    num = len(boxes)
    targets = Targets(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels or [0] * num, dtype=torch.int64),
        ignore=torch.tensor(ignore or [False] * num, dtype=torch.bool),
    )
    return Sample(pixels, targets, 1)


def only(sample):
    return lambda rng, index=None: sample


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    tall=st.integers(1, 8),
    wide=st.integers(1, 8),
    channels=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    most=st.sampled_from([1, 5]),
)
def test_copies_lie_under_their_boxes(seed, tall, wide, channels, dtype, most):
    giver = painted(20, 20, [(6, 5, 6 + wide, 5 + tall)], labels=[4], dtype=dtype, channels=channels)
    empty = painted(60, 70, [], dtype=dtype, channels=channels)
    step = CopyPaste(probability=1.0, max_objects=most)
    # An empty image has nothing of its own to copy, so that the other one always gives.
    result = step(empty, np.random.default_rng(seed), only(giver))
    boxes = result.targets.boxes
    assert 1 <= len(boxes) <= most
    assert result.targets.labels.unique().tolist() == [4]
    assert not result.targets.ignore.any()
    bright = giver.pixels.max()
    for x1, y1, x2, y2 in boxes.int().tolist():
        assert (x2 - x1, y2 - y1) == (wide, tall)
        # Opaque inside; only a later copy's border may shade it, where the two touch.
        inside = result.pixels[:, y1:y2, x1:x2] == bright
        assert inside.all() if len(boxes) == 1 else result.pixels[:, y1:y2, x1:x2].min() > 0
    assert empty.pixels.max() == 0


@pytest.mark.parametrize("at", [(0, 5), (16, 5)])
def test_a_mirrored_copy_lies_under_its_mirrored_box(at):
    """At the side of its image an object has surroundings on one side only: mirrored, it lies elsewhere in its patch.

    Its left column is brighter, so that the mirrored copies can be told: they are half of all.
    """
    x, y = at
    giver = painted(20, 20, [(x, y, x + 4, y + 6)])
    giver.pixels[:, y : y + 6, x] = 250
    empty, rng = painted(60, 70, []), np.random.default_rng(0)
    step, mirrored = CopyPaste(probability=1.0, max_objects=1), 0
    for _ in range(400):
        result = step(empty, rng, only(giver))
        ((x1, y1, x2, y2),) = result.targets.boxes.int().tolist()
        seen = result.pixels[0, y1:y2, x1:x2]
        original = giver.pixels[0, y : y + 6, x : x + 4]
        turned = bool(seen[0, 0] != 250)
        assert_close(seen, original.flip(1) if turned else original, rtol=0, atol=0)
        mirrored += turned
    assert mirrored / 400 == pytest.approx(0.5, abs=0.125)  # five standard errors


def test_how_often_how_many_and_whose():
    """A sixth gets nothing; the rest 1 to 4 copies, each number as often; half are the image's own."""
    own, other = painted(200, 200, [(9, 9, 12, 12)], labels=[0]), painted(40, 40, [(9, 9, 12, 12)], labels=[1])
    step, rng = CopyPaste(probability=5 / 6, max_objects=4), np.random.default_rng(0)
    counts, givers = [], []
    for _ in range(1500):
        result = step(own, rng, only(other))
        labels = result.targets.labels[1:].tolist()
        counts.append(len(labels))
        assert len(set(labels)) <= 1  # all copies of one image come from one giver
        givers += labels[:1]
    shares = np.bincount(counts, minlength=5) / 1500
    assert len(shares) == 5
    # Five standard errors of a share of 5/24; a copy or two found no free place.
    assert shares == pytest.approx([1 / 6] + [5 / 24] * 4, abs=0.055)
    assert np.mean(givers) == pytest.approx(0.5, abs=0.075)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.floats(0, 0.5))
def test_no_overlap_above_the_limit(seed, limit):
    boxes = [(x, y, x + 6, y + 6) for x in range(4, 50, 12) for y in range(4, 50, 12)]
    sample = painted(56, 56, [*boxes, (0, 30, 56, 56)], labels=[0] * 16 + [-1], ignore=[False] * 16 + [True])
    result = CopyPaste(probability=1.0, max_objects=8, max_overlap=limit)(
        sample, np.random.default_rng(seed), only(sample)
    )
    every = result.targets.boxes.numpy()
    for number in range(17, len(every)):
        shared = box_algebra.intersection(every[number : number + 1], every[:number])[0]
        area = box_algebra.area(every)
        assert (shared <= limit * np.minimum(area[number], area[:number]) + 1e-4).all()
    assert_close(result.targets.boxes[:17], sample.targets.boxes)


def test_big_ignored_and_crowded_objects_are_not_copied():
    boxes = [(0, 0, 40, 40), (60, 60, 64, 64), (80, 80, 84, 84), (85, 80, 89, 84)]
    sample = painted(100, 100, boxes, labels=[0, -1, 0, 0], ignore=[False, True, False, False])
    # 0 is bigger than 32 px, 1 is ignored, 2 and 3 stand 1 px apart: with a border of 2 each shows the other.
    assert CopyPaste()._candidates(sample).tolist() == []
    # With no border they do not.
    assert CopyPaste(border=0)._candidates(sample).tolist() == [2, 3]
    assert CopyPaste(probability=1.0)(sample, np.random.default_rng(0), only(sample)) is sample


def test_blend_by_hand():
    # A box of 1 px with a border of 2: weights 1/3, 2/3, 1, 2/3, 1/3 along each axis, their products in the plane.
    giver = painted(9, 9, [(4, 4, 5, 5)])
    patch, box = cut_out(giver, 0, 2)
    assert patch.shape == (1, 5, 5)
    assert box.tolist() == [2, 2, 3, 3]
    canvas = torch.full((1, 9, 9), 90, dtype=torch.uint8)
    blend(canvas, torch.zeros_like(patch), box, (1, 3), 2)
    # 90 * (1 - weight): along the middle row 60, 30, 0, 30, 60; in the corner 90 * (1 - 1/9) = 80.
    assert canvas[0, 3, 2:9].tolist() == [90, 60, 30, 0, 30, 60, 90]
    assert canvas[0, 1, 3] == 80
    assert (canvas != 90).sum() == 25


def test_an_object_at_the_border_of_its_image_comes_with_what_there_is():
    patch, box = cut_out(painted(9, 9, [(0, 7, 3, 9)]), 0, 2)
    assert patch.shape == (1, 4, 5)
    assert box.tolist() == [0, 2, 3, 4]


def test_boxes_between_pixels_keep_their_place():
    sample = painted(9, 9, [(2, 2, 6, 6)])
    box = torch.tensor([[2.25, 2.5, 5.5, 5.75]])
    moved = Sample(sample.pixels, Targets(box, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)), 1)
    patch, local = cut_out(moved, 0, 1)
    assert patch.shape == (1, 6, 6)
    assert local.tolist() == [1.25, 1.5, 4.5, 4.75]


def test_a_patch_bigger_than_the_image_is_left_out():
    giver, small = painted(60, 60, [(10, 10, 40, 40)]), painted(16, 16, [])
    for seed in range(20):
        assert len(CopyPaste(1.0)(small, np.random.default_rng(seed), only(giver)).targets.boxes) == 0


def table(rows, num_images):
    """`rows` of (image, label, side, ignore)."""
    side = np.array([row[2] for row in rows], float)
    return Annotations(
        image_ids=np.arange(num_images),
        file_names=tuple(f"{i}.png" for i in range(num_images)),
        sizes=np.full((num_images, 2), 64),
        image_index=np.array([row[0] for row in rows], np.int64),
        boxes=np.stack([0 * side, 0 * side, side, side], -1),
        labels=np.array([row[1] for row in rows], np.int64),
        area=side**2,
        ignore=np.array([row[3] for row in rows], bool),
        crowd=np.zeros(len(rows), bool),
        box_ids=np.arange(len(rows)),
        classes=("common", "rare", "absent"),
        category_ids=(1, 2, 3),
    )


def test_sources_by_hand():
    # Image 0: three common; 1: one common, one rare; 2: only a big one and an ignored one; 3: nothing.
    rows = [(0, 0, 5, 0), (0, 0, 5, 0), (0, 0, 5, 0), (1, 0, 5, 0), (1, 1, 5, 0), (2, 1, 50, 0), (2, 1, 5, 1)]
    annotations = table(rows, 4)
    plain = paste_sources(annotations)
    assert plain.rows.tolist() == [0, 1]
    np.testing.assert_allclose(plain.probabilities, [3 / 5, 2 / 5])
    # rare_power 1: each common counts 1/4, the rare one 1: image 0 has 3/4, image 1 has 5/4.
    fair = paste_sources(annotations, rare_power=1.0)
    np.testing.assert_allclose(fair.probabilities, [3 / 8, 5 / 8])
    np.testing.assert_allclose(fair.class_weights, [1 / 4, 1, 0])
    assert paste_sources(annotations, max_size=3) is None
    assert paste_sources(table([(0, 0, 5, 1)], 1)) is None


def test_objects_of_classes_without_a_weight_are_copied_alike():
    """A set of other images than the weights were counted on may have such a class."""
    images = [painted(64, 64, [(10, 10, 15, 15), (30, 10, 35, 15)], labels=[1, 1])]
    sources = paste_sources(table([(0, 0, 5, 0), (0, 1, 50, 0)], 1), rare_power=1.0)
    assert sources.class_weights.tolist() == [1, 0, 0]
    step = CopyPaste(1.0, max_objects=1, sources=sources)
    pasted = step(painted(64, 64, []), np.random.default_rng(0), lambda rng, index=None: images[index])
    assert pasted.targets.labels.tolist() == [1]


def test_rare_classes_are_copied_as_often_as_common_ones():
    images = [
        painted(64, 64, [(10, 10, 15, 15), (30, 10, 35, 15), (10, 30, 15, 35)], labels=[0, 0, 0]),
        painted(64, 64, [(10, 10, 15, 15), (30, 10, 35, 15)], labels=[0, 1]),
    ]
    annotations = table([(0, 0, 5, 0)] * 3 + [(1, 0, 5, 0), (1, 1, 5, 0)], 2)
    step = CopyPaste(1.0, max_objects=1, sources=paste_sources(annotations, rare_power=1.0))
    empty, rng = painted(64, 64, []), np.random.default_rng(0)
    labels = [int(step(empty, rng, lambda rng, index=None: images[index]).targets.labels[0]) for _ in range(1000)]
    assert np.mean(labels) == pytest.approx(0.5, abs=0.08)  # five standard errors


def test_the_same_numbers_give_the_same_sample():
    sample = painted(64, 64, [(10, 10, 15, 15), (30, 10, 33, 15)])
    one, two = (CopyPaste(1.0)(sample, np.random.default_rng(3), only(sample)) for _ in range(2))
    assert_close(one.pixels, two.pixels)
    assert_close(one.targets.boxes, two.targets.boxes)
    assert len(one.targets.boxes) > 2


@pytest.mark.parametrize("count", [0, 800])
def test_no_box_and_800_boxes(count):
    corners = np.random.default_rng(0).integers(0, 60, (count, 2))
    sample = painted(64, 64, [(int(x), int(y), int(x) + 3, int(y) + 3) for x, y in corners])
    result = CopyPaste(1.0)(sample, np.random.default_rng(0), only(sample))
    assert len(result.targets.boxes) >= count
    assert (result.targets.boxes[:, 2:] > result.targets.boxes[:, :2]).all()
