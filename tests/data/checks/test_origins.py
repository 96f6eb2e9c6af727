"""What file names say: series and frames, tiles, copies; and whether the pixels bear it out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from flyspeck.data.checks.fingerprints import Fingerprints
from flyspeck.data.checks.names import Origins, chains, evidence, neighbours, origins, reach, series_of, source_of


@pytest.mark.parametrize(
    ("path", "source", "series", "frame"),
    [
        ("/d/images/1_130_90_0_04077.webp", "d/1_130_90_0_04077", "d/1_130_90_0_#", 4077),
        ("/d/train/images/M01/img000012.jpg", "d/M01/img000012", "d/M01/img#", 12),
        ("/d/val/M01/img000013.jpg", "d/M01/img000013", "d/M01/img#", 13),
        ("/d/test_GMUphoto430_jpg.webp", "d/GMUphoto430_jpg", "d/GMUphoto#_jpg", 430),
        ("/d/name.png", "d/name", "d/name", -1),
        ("/d/cat_jpg.rf.0123456789abcdef0123456789abcdef.jpg", "d/cat_jpg", "d/cat_jpg", -1),
        ("/d/P0001__1__512___1024.png", "d/P0001", "d/P#", 1),
        ("/d/P0001__0.5__0___0.png", "d/P0001", "d/P#", 1),
        ("/d/field_0_0_640_512.png", "d/field", "d/field", -1),
        ("/d/1_60_30_0_00112.png", "d/1_60_30_0_00112", "d/1_60_30_0_#", 112),  # four numbers, but no tile
    ],
)
def test_names(path: str, source: str, series: str, frame: int) -> None:
    assert source_of(path) == source
    assert series_of(source) == (series, frame)


def test_tiles_of_ours_are_known_by_their_corner() -> None:
    assert source_of("/d/whole_600_0.png", (600, 0, 1240, 512)) == "d/whole"
    assert source_of("/d/whole.png", (600, 0, 1240, 512)) == "d/whole"
    assert source_of("/d/whole_600_0.png") == "d/whole_600_0"
    found = origins(["/d/a_0_0.png", "/d/a_512_0.png", "/d/b_0_0.png"], [(0, 0, 9, 9), (512, 0, 521, 9), (0, 0, 9, 9)])
    assert_array_equal(found.whole, [0, 0, 1])


def frames(series: list[int], numbers: list[int]) -> Origins:
    count = len(series)
    return Origins(np.array(series), np.array(numbers), np.arange(count), tuple(map(str, range(max(series) + 1))))


def test_neighbours_by_hand() -> None:
    # Series 0: frames 10, 30, 51 of parts A, B, B; series 1: frame 11 of B alone; one name without a number.
    found = frames([0, 0, 0, 1, 2], [10, 30, 51, 11, -1])
    member = np.array([[True, False], [False, True], [False, True], [False, True], [True, True]])
    assert_array_equal(neighbours(found, member, 20), [[-1, 1], [0, -1], [-1, -1], [-1, -1], [-1, -1]])
    assert_array_equal(neighbours(found, member, 21), [[-1, 1], [0, 2], [-1, 1], [-1, -1], [-1, -1]])
    assert_array_equal(np.stack(chains(found, 20)), [[0], [1]])


def test_regular_steps_are_reached() -> None:
    # Every 30th frame was kept: the one before and the one after are neighbours, though 30 is more than 20.
    found = frames([0] * 4 + [1] * 4, [0, 30, 60, 150, 0, 40, 90, 91])
    assert_array_equal(reach(found, 20), [30] * 4 + [20] * 4)
    assert_array_equal(reach(found, 0), [0] * 8)
    assert_array_equal(np.stack(chains(found, 20)), [[0, 1, 6], [1, 2, 7]])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 60), st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 25),
)
def test_neighbours_are_those_of_a_loop(rows: list[tuple[int, int, bool, bool]], gap: int) -> None:
    found = frames([row[0] for row in rows], [row[1] for row in rows])
    member = np.array([row[2:] for row in rows])
    partner, far = neighbours(found, member, gap), reach(found, gap)
    for i, (series, frame, *_) in enumerate(rows):
        for part in range(2):
            away = {
                j: abs(frame - rows[j][1])
                for j in range(len(rows))
                if j != i and member[j, part] and rows[j][0] == series and frame >= 0 and rows[j][1] >= 0
            }
            best = min(away.values(), default=10**9)
            if best <= far[i]:
                assert away[int(partner[i, part])] == best
            else:
                assert partner[i, part] == -1


def prints(cells: np.ndarray) -> Fingerprints:
    count = len(cells)
    none, no = (b"",) * count, np.zeros(count, dtype=bool)
    unit = cells / np.linalg.norm(cells, axis=1, keepdims=True)
    return Fingerprints(np.zeros((count, 4), np.uint64), unit.astype(np.float16), no, no, none, none, ())


def test_the_pixels_say_whether_numbers_count_frames() -> None:
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(300, 1024)), 0)  # each frame is a little other than the one before
    found = frames([0] * 300, list(range(0, 6000, 20)))
    told = evidence(found, prints(walk))
    assert told.verdict == "frames"
    assert told.pairs == 299
    assert told.auc is not None
    assert told.auc > 0.9
    ids = evidence(found, prints(walk[rng.permutation(300)]))
    assert ids.verdict == "ids"
    assert abs((ids.auc or 0) - 0.5) < 0.1
    assert evidence(found, prints(walk[rng.permutation(300)]), frames="yes").verdict == "frames"
    assert evidence(found, prints(walk), frames="no").verdict == "off"
    assert evidence(found, None).verdict == "unknown"


def test_too_few_neighbours_leave_the_names_alone() -> None:
    found = frames([0, 0, 1], [1, 2, 5])
    assert evidence(found, prints(np.eye(3, 1024))).verdict == "unknown"
    assert evidence(frames([0, 1], [1, 2]), prints(np.eye(2, 1024))).verdict == "off"
