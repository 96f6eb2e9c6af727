"""Rows of the annotation table against slow twins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from flyspeck.data.annotations import Annotations


def table(counts: list[int]) -> Annotations:
    """Images with so many boxes each; the box n of image p is at x = p, y = n."""
    index = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(c) for c in counts]) if counts else np.zeros(0)
    size = len(index)
    return Annotations(
        image_ids=np.arange(len(counts)) * 10,
        file_names=tuple(f"{n}.png" for n in range(len(counts))),
        sizes=np.full((len(counts), 2), 50),
        image_index=index.astype(np.int64),
        boxes=np.stack([index, number, index + 1, number + 1], 1).astype(np.float64),
        labels=np.zeros(size, np.int64),
        area=np.ones(size),
        ignore=np.zeros(size, bool),
        crowd=np.zeros(size, bool),
        box_ids=np.arange(size),
        classes=("a",),
        category_ids=(1,),
        extra={"pair": np.stack([index, number], 1)},
        image_extra={"weight": np.arange(len(counts))},
    )


counts_and_rows = st.lists(st.integers(0, 4), max_size=6).flatmap(
    lambda counts: st.tuples(
        st.just(counts), st.lists(st.integers(0, max(0, len(counts) - 1)), max_size=8 if counts else 0)
    )
)


@given(counts_and_rows)
def test_images_in_any_order_and_more_than_once(case: tuple[list[int], list[int]]) -> None:
    counts, rows = case
    chosen = table(counts).select_images(rows)
    assert chosen.image_ids.tolist() == [10 * row for row in rows]
    assert chosen.file_names == tuple(f"{row}.png" for row in rows)
    expected = [(place, row, n) for place, row in enumerate(rows) for n in range(counts[row])]
    assert_array_equal(chosen.image_index, [place for place, _, _ in expected])
    assert chosen.boxes[:, :2].tolist() == [[row, n] for _, row, n in expected]
    assert chosen.extra["pair"].tolist() == [[row, n] for _, row, n in expected]
    assert_array_equal(chosen.image_extra["weight"], rows)
    assert [s.stop - s.start for s in chosen] == [counts[row] for row in rows]
    assert [chosen.of_image(place) for place in range(len(rows))] == list(chosen)


def test_masks() -> None:
    some = table([2, 0, 3]).select_images(np.array([True, False, True]))
    assert (len(some), some.num_boxes) == (2, 5)
    few = some.select_boxes(some.boxes[:, 1] > 0)
    assert_array_equal(few.image_index, [0, 1, 1])
    assert len(few) == 2


def test_a_new_label_is_the_one_that_counts() -> None:
    """An ignore region goes by the class it was annotated with, all other boxes by their labels."""
    some = replace(table([3]), labels=np.array([2, -1, -1]), extra={"category": np.array([0, 1, -1])})
    assert_array_equal(some.own_labels, [2, 1, -1])
