from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyspeck.errors import UserError
from flyspeck.infer.naming import is_video
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.reading import Result
from flyspeck.infer.source import Item
from flyspeck.infer.video.files import video_file
from flyspeck.infer.video.reader import VideoInfo, VideoReader
from flyspeck.infer.video.tracker import Tracker
from flyspeck.infer.video.tracks import TrackTable, draw_tracks
from flyspeck.infer.video.writer import VideoWriter
from flyspeck.types import Detections

pytest.importorskip("av")
SIZE, FRAMES = (96, 128), 12


def places(frame: int) -> np.ndarray:
    """Two 6 px objects; the first moves by 3 px a frame, the second by 4 px the other way."""
    return np.array([[10 + 3 * frame, 20, 16 + 3 * frame, 26], [100 - 4 * frame, 60, 106 - 4 * frame, 66]], float)


def write_video(path: Path, frames: int = FRAMES) -> None:
    writer = VideoWriter(path, VideoInfo(SIZE, Fraction(10), frames))
    for k in range(frames):
        pixels = np.full((*SIZE, 3), 40, np.uint8)
        for x1, y1, x2, y2 in places(k).astype(int).tolist():
            pixels[y1:y2, x1:x2] = 250
        writer.add(pixels)
    writer.close()


def bright(windows: list[np.ndarray]) -> list[Detections]:
    """Each bright spot of a frame: the two lie in different halves."""
    out = []
    for window in windows:
        boxes = []
        for top, bottom in ((0, 45), (45, 96)):
            y, x = np.nonzero(window[top:bottom, :, 0] > 150)
            if len(x):
                boxes.append([x.min(), y.min() + top, x.max() + 1, y.max() + 1 + top])
        size = (window.shape[0], window.shape[1])
        out.append(Detections(np.array(boxes).reshape(-1, 4), [0.9] * len(boxes), [0] * len(boxes), size, ("spot",)))
    return out


def test_a_video_is_written_read_and_tracked(tmp_path: Path) -> None:
    pytest.importorskip("trackers")
    path = tmp_path / "a.mp4"
    write_video(path)
    reader = VideoReader(path)
    assert reader.info.size == SIZE
    assert reader.info.rate == 10
    assert reader.info.frames == FRAMES
    tracker, table = Tracker(rate=10), TrackTable(tmp_path / "tracks.csv")
    numbers = []
    for result in Predictor(bright, batch_size=4).stream(reader.frames()):
        tracked = tracker(result.detections)
        frame = int(result.item.image_id)
        assert result.item.name == f"a.mp4#{frame:06d}"
        by_height = tracked[np.argsort(tracked.boxes[:, 1])]
        assert np.abs(by_height.boxes - places(frame - 1)).max() <= 2  # what the codec does to edges
        numbers.append(by_height.extra["track"].tolist())
        table.add(Result(result.item, tracked))
    table.close()
    reader.close()
    assert not reader.troubles
    assert len(numbers) == FRAMES
    steady = numbers[2:]
    assert all(n == steady[0] for n in steady)  # both keep their numbers though neither overlaps its last place much
    assert len(set(steady[0])) == 2
    assert min(steady[0]) >= 0
    lines = (tmp_path / "tracks.csv").read_text().splitlines()
    assert lines[0].startswith("frame,seconds,track,x1")
    assert lines[-1].startswith(f"{FRAMES},1.1,")


def test_every_other_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 5)
    reader = VideoReader(tmp_path / "a.mp4", every=2)
    assert reader.info.rate == 5
    assert [item.image_id for item in reader.frames()] == [1, 2, 3]
    reader.close()


def test_objects_further_apart_than_their_size_are_other_objects() -> None:
    pytest.importorskip("trackers")
    tracker = Tracker(rate=10)
    numbers = []
    for x in (10, 12, 14, 90, 92, 94):
        found = Detections([[x, 10, x + 4, 14]], [0.9], [0], (100, 100))
        numbers.append(tracker(found).extra["track"][0])
    assert numbers[2] >= 0
    assert numbers[5] >= 0
    assert numbers[2] != numbers[5]
    empty = tracker(Detections.empty((100, 100)))
    assert len(empty.extra["track"]) == 0


def test_drawing_keeps_the_frame_and_shows_the_boxes() -> None:
    frame = np.zeros((40, 60, 3), np.uint8)
    extra = {"track": np.array([7, -1, -1])}
    found = Detections(
        [[10, 20, 16, 26], [30, 20, 36, 26], [44, 4, 48, 8]], [0.9, 0.8, 0.1], [0] * 3, (40, 60), extra=extra
    )
    drawn = draw_tracks(frame, found, least=0.3)
    assert not frame.any()
    assert drawn[19, 12].any()
    assert drawn[19, 32].any()
    assert not drawn[3:8, 43:50].any()  # weak and in no track


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"nonsense" * 100)
    with pytest.raises(UserError, match="not a video"):
        VideoReader(tmp_path / "a.mp4")
    assert is_video("x/Y.MP4")
    assert not is_video("x.png")


def test_a_video_that_ends_in_the_middle_gives_the_frames_before(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.mkv"  # unlike mp4, readable without its end
    writer = VideoWriter(path, VideoInfo(SIZE, Fraction(10), 40))
    rng = np.random.default_rng(0)
    for _ in range(40):
        writer.add(rng.integers(0, 255, (*SIZE, 3), np.uint8))
    writer.close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader = VideoReader(path)
    frames = [item for item in reader.frames()]
    reader.close()
    assert 1 < len(frames) < 40
    assert isinstance(frames[0], Item)
    assert av.__version__


def test_a_number_stands_inside_the_frame() -> None:
    for box, inside in (
        ([10, 0, 16, 6], (slice(8, 22), slice(10, 30))),
        ([56, 30, 60, 36], (slice(14, 30), slice(40, 60))),
    ):
        found = Detections([box], [0.9], [0], (40, 60), extra={"track": np.array([123])})
        drawn = draw_tracks(np.zeros((40, 60, 3), np.uint8), found, least=0.3)
        assert (drawn[inside] > 200).all(axis=2).sum() > 4, "white letters"


def test_a_reader_is_closed_when_the_frame_that_another_thread_decodes_is_done(tmp_path: Path) -> None:
    """FFmpeg dies of a container that is closed while it reads; the frames then end."""

    class Slow:
        """The container, held up before a packet as long as it may not go."""

        def __init__(self, inner: Any) -> None:
            self.inner, self.inside, self.go, self.closed = inner, threading.Event(), threading.Event(), False

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def demux(self, stream: Any) -> Iterator[Any]:
            for packet in self.inner.demux(stream):
                if not self.go.is_set():
                    self.inside.set()
                assert self.go.wait(20)
                assert not self.closed
                yield packet

        def close(self) -> None:
            self.closed = True
            self.inner.close()

    path = tmp_path / "a.mp4"
    write_video(path, 20)
    file = video_file(path, None)
    slow = Slow(file.open())
    file.open = lambda: slow  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flyspeck.infer.video.reader.video_file", lambda *_: file)
        slow.go.set()
        reader = VideoReader(path)
        slow.go.clear()
    frames: list[Any] = []
    reading = threading.Thread(target=lambda: frames.extend(reader.frames()))
    closing = threading.Thread(target=reader.close)
    reading.start()
    assert slow.inside.wait(20)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    assert not slow.closed
    slow.go.set()
    for thread in (reading, closing):
        thread.join(20)
        assert not thread.is_alive()
    assert slow.closed
    assert len(frames) < 20
