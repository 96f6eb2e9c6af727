"""Orders of epochs: different, complete, split exactly, resumable, and repeated as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from flyspeck.data.annotations import Annotations
from flyspeck.data.sampling import EpochSampler, repeat_factors


def draws(sampler, epoch, start=0):
    sampler.load_state({"epoch": epoch, "start": start})
    return list(sampler)


def table(labels_of_images, sides=10.0, ignore=()):
    """One square box per label; `sides` is one side for all boxes, or one each."""
    counts = [len(labels) for labels in labels_of_images]
    labels = np.concatenate([np.asarray(labels, np.int64) for labels in labels_of_images])
    num = len(labels)
    side = np.broadcast_to(np.asarray(sides, float), num)
    boxes = np.stack([np.zeros(num), np.zeros(num), side, side], -1)
    ignored = np.zeros(num, bool)
    ignored[list(ignore)] = True
    return Annotations(
        image_ids=np.arange(len(counts)),
        file_names=tuple(f"{i}.png" for i in range(len(counts))),
        sizes=np.full((len(counts), 2), 64),
        image_index=np.repeat(np.arange(len(counts)), counts),
        boxes=boxes,
        labels=labels,
        area=side**2,
        ignore=ignored,
        crowd=np.zeros(num, bool),
        box_ids=np.arange(num),
        classes=("a", "b", "c"),
        category_ids=(1, 2, 3),
    )


def test_order_differs_between_epochs_and_seeds_and_repeats_itself():
    sampler = EpochSampler(50, seed=1)
    first, second = sampler.order(0), sampler.order(1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).any()
    assert (first != EpochSampler(50, seed=2).order(0)).any()
    assert_array_equal(first, EpochSampler(50, seed=1).order(0))


def test_order_leaves_the_global_state_alone():
    np.random.seed(0)  # noqa: NPY002 - the point is the global state
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    EpochSampler(50, seed=1).order(3)
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@given(num=st.integers(0, 60), world=st.integers(1, 5), batch=st.integers(1, 4), even=st.booleans())
def test_processes_share_an_epoch_exactly(num, world, batch, even):
    samplers = [EpochSampler(num, seed=0, rank=rank, world_size=world, even=even) for rank in range(world)]
    parts = [draws(sampler, 2) for sampler in samplers]
    together = [draw.index for part in parts for draw in part]
    assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
    assert len(set(together)) == len(together)
    if even:
        assert {len(part) for part in parts} == {num // world}
    else:
        assert sorted(together) == list(range(num))
    # Step for step, the processes' batches are the one process's global batch: same images, same positions.
    single = draws(EpochSampler(num, seed=0), 2)
    for step in range(num // (world * batch)):
        union = {draw for part in parts for draw in part[step * batch : (step + 1) * batch]}
        assert union == set(single[step * world * batch : (step + 1) * world * batch])


@given(num=st.integers(1, 40), start=st.integers(0, 50), world=st.integers(1, 3))
def test_resume_goes_on_where_it_stopped(num, start, world):
    for rank in range(world):
        sampler = EpochSampler(num, seed=5, rank=rank, world_size=world)
        whole = draws(sampler, 4)
        assert draws(sampler, 4, start) == whole[start:]
        assert sampler.state == {"epoch": 4, "start": start}


@given(
    repeats=st.lists(st.floats(0, 5, allow_subnormal=False), min_size=1, max_size=30),
    epoch=st.integers(0, 20),
)
def test_repeats_are_floor_or_ceil_and_the_length_is_constant(repeats, epoch):
    repeats = np.array(repeats)
    sampler = EpochSampler(len(repeats), seed=0, repeats=repeats)
    total = round(float(repeats.sum()))
    counts = np.bincount(sampler.order(epoch), minlength=len(repeats))
    assert len(sampler) == counts.sum() == total
    # The mean is scaled by total / sum so that the length is whole; each count lies within one of its scaled mean.
    scaled = repeats * (total / repeats.sum() if repeats.sum() else 0)
    assert (np.abs(counts - scaled) <= 1 + 1e-6).all()


def test_mean_of_repeats_over_epochs():
    repeats = np.array([1.0, 2.5, 0.5, 1.0])  # sum 5
    sampler = EpochSampler(4, seed=0, repeats=repeats)
    counts = sum(np.bincount(sampler.order(epoch), minlength=4) for epoch in range(2000))
    # Standard error of a Bernoulli(.5) mean over 2000 epochs is 0.011; 0.05 is more than four of them.
    assert_allclose(counts / 2000, repeats, atol=0.05)


def test_a_image_drawn_twice_has_two_positions():
    positions = [draw.position for draw in draws(EpochSampler(3, seed=0, repeats=np.full(3, 2.0)), 0)]
    assert positions == list(range(6))


def test_bad_arguments():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        EpochSampler(3, seed=0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="repeats must be 3"):
        EpochSampler(3, seed=0, repeats=np.array([1.0, np.nan, 1.0]))


def test_rare_classes_by_hand():
    # Class 0 in 4 of 4 images, class 1 in 1 of 4, class 2 nowhere; t = 0.5: sqrt(0.5 / 0.25) = 1.414 for class 1.
    annotations = table([[0], [0, 0], [0, 1], [0]])
    assert_allclose(repeat_factors(annotations, rare_below=0.5), [1, 1, 2**0.5, 1])
    assert_allclose(repeat_factors(annotations), np.ones(4))


def test_ignored_boxes_make_no_class_rare_or_image_full():
    # The only box of class 1 (row 3) is ignored; image 3 has nothing but an ignore region (row 4).
    annotations = table([[0], [0], [0, 1], [-1]], ignore=[3, 4])
    assert_allclose(repeat_factors(annotations, rare_below=0.5, empty=0.25), [1, 1, 1, 0.25])


def test_tiny_share_by_hand():
    # Image 0: one of two boxes at most 8 px; image 1: both, one of them of exactly 8; image 2: none.
    annotations = table([[0, 0], [0, 0], [0]], sides=[4, 20, 8, 2, 9])
    assert_allclose(repeat_factors(annotations, tiny_size=8, tiny_gain=2.0), [2.0, 3.0, 1.0])


def test_a_table_without_boxes():
    assert_allclose(repeat_factors(table([[], []]), rare_below=0.5, tiny_gain=1.0, empty=1.0), [1.0, 1.0])
