from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from video_making import scene

from flyspeck.errors import UserError
from flyspeck.infer.video import writer as module
from flyspeck.infer.video.reader import VideoInfo, VideoReader
from flyspeck.infer.video.writer import VideoWriter

pytest.importorskip("av")
TIMES = [0, 0.1, 0.2, 1.2, 5.0]


def written(
    path: Path, size: tuple[int, int], times: list[float | None], *, live: bool = False, rate: int = 10
) -> VideoWriter:
    writer = VideoWriter(path, VideoInfo(size, Fraction(rate)), live=live)
    for seconds in times:
        writer.add(np.full((*size, 3), 90, np.uint8), seconds, duration=0.3)
    writer.close()
    return writer


def read(path: Path) -> tuple[list[float], VideoInfo]:
    reader = VideoReader(path)
    times = [frame.seconds for frame in reader.frames()]
    reader.close()
    assert not reader.troubles
    return times, reader.info


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize("live", [False, True])
def test_frames_are_shown_at_their_times(
    tmp_path: Path, encoder: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ENCODERS", (encoder,))
    written(tmp_path / "a.mp4", (48, 64), [*TIMES], live=live)
    times, info = read(tmp_path / "a.mp4")
    assert times == pytest.approx(TIMES, abs=1e-4)
    # The last is shown for the 0.3 s that were asked: five frames in 5.3 s.
    assert float(info.rate) == pytest.approx(5 / 5.3, rel=1e-3)


def test_times_that_meet_and_times_that_are_not_given(tmp_path: Path) -> None:
    written(tmp_path / "a.mp4", (48, 64), [0, 0.1, 0.1, None, None])
    times, _ = read(tmp_path / "a.mp4")
    assert times == pytest.approx([0, 0.1, 0.1, 0.2, 0.3], abs=1e-4)
    assert len(set(times)) == 5


@pytest.mark.parametrize(
    ("size", "padded"), [((33, 21), (34, 22)), ((1, 1), (16, 16)), ((48, 64), (48, 64)), ((16, 17), (16, 18))]
)
def test_odd_sides_are_padded_by_their_last_row(tmp_path: Path, size: tuple[int, int], padded: tuple[int, int]) -> None:
    assert written(tmp_path / "a.mp4", size, [0.0, 0.1]).padded == padded
    reader = VideoReader(tmp_path / "a.mp4")
    images = [np.asarray(frame.image) for frame in reader.frames()]
    reader.close()
    assert images[0].shape[:2] == padded
    assert abs(int(images[0].min()) - 90) <= 4
    assert abs(int(images[0].max()) - 90) <= 4  # nothing black at the border


def test_a_frame_of_another_size_is_fitted_into_the_first_ones(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", VideoInfo((48, 64), Fraction(10)))
    writer.add(scene([], (48, 64)))
    writer.add(np.full((48, 24, 3), 250, np.uint8))  # half as wide as high: black at both sides
    writer.close()
    reader = VideoReader(tmp_path / "a.mp4")
    images = [np.asarray(frame.image) for frame in reader.frames()]
    reader.close()
    assert images[1].shape[:2] == (48, 64)
    assert images[1][:, 26:38].min() > 230
    assert images[1][:, :14].max() < 30


@pytest.mark.parametrize("rate", [1, 240, 90_000])
def test_rates_that_no_camera_has(tmp_path: Path, rate: int) -> None:
    written(tmp_path / "a.mp4", (48, 64), [0.0, 0.5, 1.0], rate=rate)
    assert read(tmp_path / "a.mp4")[0] == pytest.approx([0, 0.5, 1])


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not be written \(No such file or directory\)"):
        written(tmp_path / "nowhere" / "a.mp4", (48, 64), [0.0] * 60)
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "a.mp4").symlink_to("/dev/full")

    def fill() -> None:
        writer = VideoWriter(tmp_path / "a.mp4", VideoInfo((480, 640), Fraction(10)))
        noise = np.random.default_rng(0)
        try:
            for _ in range(20):
                writer.add(noise.integers(0, 255, (480, 640, 3), np.uint8))
        finally:
            writer.close()

    with pytest.raises(UserError, match="No space left on device"):
        fill()
