from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from video_making import SIZE, rows, scene

from flyspeck.errors import UserError
from flyspeck.infer.reading import Result
from flyspeck.infer.video.reader import VideoFrame, VideoInfo
from flyspeck.infer.video.stills import Stills, window_around
from flyspeck.types import Detections


def frame(number: int, boxes: list[list[float]], scores: list[float], tracks: list[int]) -> Result:
    extra = {"track": np.array(tracks, np.int64)}
    found = Detections(boxes, scores, [0] * len(boxes), SIZE, ("boat, big",), extra=extra)
    return Result(VideoFrame("v", scene(boxes), number, seconds=number / 4), found)


def test_each_track_at_its_best(tmp_path: Path) -> None:
    stills = Stills(tmp_path, VideoInfo(SIZE, Fraction(4)))
    stills.add(frame(1, [[10, 20, 16, 26], [100, 60, 106, 66]], [0.5, 0.9], [0, 1_234_567]))
    stills.add(frame(2, [[40, 20, 46, 26], [90, 60, 96, 66], [1, 1, 5, 5]], [0.8, 0.4, 0.9], [0, 1_234_567, -1]))
    stills.add(frame(3, [[70, 20, 76, 26]], [0.8], [0]))  # as good as before: the first counts
    stills.close()
    table = rows(tmp_path / "stills.csv")
    assert [(r["file"], r["frame"], r["seconds"], r["score"], r["class"]) for r in table] == [
        ("stills/track-000000.png", "2", "0.5", "0.8", "boat, big"),
        ("stills/track-1234567.png", "1", "0.25", "0.9", "boat, big"),
    ]
    first = table[0]
    assert [first[k] for k in ("x1", "y1", "x2", "y2")] == ["40", "20", "46", "26"]
    # 64 px around the middle (43, 23), moved down into the frame; four times as large in the file
    assert [first[k] for k in ("crop_x1", "crop_y1", "crop_x2", "crop_y2", "factor")] == ["11", "0", "75", "64", "4"]
    pixels = np.asarray(Image.open(tmp_path / first["file"]))
    assert pixels.shape == (256, 256, 3)
    y, x = np.nonzero(pixels[:, :, 0] > 150)
    assert [x.min() // 4 + 11, y.min() // 4, (x.max() + 1) // 4 + 11, (y.max() + 1) // 4] == [40, 20, 46, 26]
    assert sorted(p.name for p in (tmp_path / "stills").iterdir()) == ["track-000000.png", "track-1234567.png"]


def test_what_is_remembered_does_not_grow(tmp_path: Path) -> None:
    stills = Stills(tmp_path, VideoInfo(SIZE, Fraction(1)))
    for k in range(1, 260):
        stills.add(frame(k, [[10, 20, 16, 26]], [0.5], [k]))
    assert len(stills._best) <= 240
    stills.close()
    assert [int(r["track"]) for r in rows(tmp_path / "stills.csv")] == list(range(1, 260))


def test_nothing_tracked_is_an_empty_table(tmp_path: Path) -> None:
    stills = Stills(tmp_path, VideoInfo(SIZE, Fraction(4)))
    stills.add(frame(1, [], [], []))
    stills.close()
    assert rows(tmp_path / "stills.csv") == []
    assert not (tmp_path / "stills").exists()


def test_a_folder_that_takes_no_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "stills").write_text("in the way")
    stills = Stills(tmp_path, VideoInfo(SIZE, Fraction(4)))
    stills.add(frame(1, [[10, 20, 16, 26]], [0.5], [1]))
    with pytest.raises(UserError, match="could not be written"):
        stills.close()


SIDE = st.floats(0.1, 300, allow_nan=False)


@given(st.floats(-50, 400), st.floats(-50, 400), SIDE, SIDE, st.integers(1, 300), st.integers(1, 300))
def test_a_crop_lies_in_the_frame_and_holds_the_object(
    x: float, y: float, wide: float, high: float, h: int, w: int
) -> None:
    x1, y1, x2, y2 = window_around(np.array([x, y, x + wide, y + high]), (h, w))
    assert 0 <= x1 < x2 <= w
    assert 0 <= y1 < y2 <= h
    if x >= 0 and x + wide <= w and y >= 0 and y + high <= h:
        assert x1 <= x + 0.5
        assert x2 >= x + wide - 0.5
        assert y1 <= y + 0.5
        assert y2 >= y + high - 0.5
