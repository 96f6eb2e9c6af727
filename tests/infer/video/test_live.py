from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rtsp_serving import SIZE as SERVED
from rtsp_serving import RtspServer, number_of
from video_making import job, moving, rows, spots, write

from flyspeck.errors import UserError
from flyspeck.infer.job_video import Limit, told_name
from flyspeck.infer.video.live import LiveReader, file_name, is_live, public_name
from flyspeck.infer.video.reader import VideoReader
from flyspeck.types import Detections

pytest.importorskip("av")
pytest.importorskip("trackers")


def test_a_slow_detector_gets_new_frames_and_drops_old_ones() -> None:
    """50 frames a second come, 5 a second are taken, for 3 s: a queue would be 130 frames behind, and grow."""
    with RtspServer(rate=50) as server:
        reader, behind, times = LiveReader(server.url), [], []
        begun = time.monotonic()
        for frame in reader.frames():
            behind.append(max(server.sent) - number_of(np.asarray(frame.image)))
            times.append((number_of(np.asarray(frame.image)), frame.seconds))
            time.sleep(0.2)
            if time.monotonic() - begun > 3:
                break
        reader.close()
    assert reader.info.size == SERVED
    assert len(behind) > 5
    assert np.median(behind) <= 5, behind
    assert max(behind[-3:]) < 30, "it did not grow"
    assert reader.arrived > 4 * reader.taken
    assert "dropped" in reader.line()
    # Times are the stamps of the frames that were taken, not a count of them.
    first = times[0]
    for number, seconds in times:
        assert seconds - first[1] == pytest.approx((number - first[0]) / 50, abs=0.02)


def test_a_job_over_a_stream_writes_whole_files(tmp_path: Path) -> None:
    said: list[str] = []
    with RtspServer(rate=25) as server:
        url = server.url.replace("rtsp://", "rtsp://me:secret@")
        summary = job(url, tmp_path / "o", limit=Limit(frames=20), said=said, formats=("csv", "coco"))
        assert "secret" not in "".join(said)
        with pytest.raises(UserError, match="a stream cannot be resumed"):
            job(url, tmp_path / "o", resume=True)
        with pytest.raises(UserError, match="holds results of an earlier prediction"):
            job(url, tmp_path / "o")
    assert summary.images == 20
    assert any("frames came, 20 used" in line for line in said)
    (film,) = (tmp_path / "o").glob("*.tracked.mp4")
    assert film.name.startswith("127_0_0_1_")
    reader = VideoReader(film)
    frames = list(reader.frames())
    reader.close()
    assert len(frames) == 20
    assert not reader.troubles
    table = {int(line["frame"]): float(line["seconds"]) for line in rows(tmp_path / "o" / "tracks.csv")}
    assert [f.seconds for f in frames] == pytest.approx([table[k] - table[1] for k in range(1, 21)], abs=1e-3)
    assert all("secret" not in path.read_text(errors="ignore") for path in (tmp_path / "o").rglob("*.*"))


@pytest.mark.slow
def test_a_stream_that_breaks_is_asked_for_again() -> None:
    with RtspServer(rate=25, drop_after=60) as server:
        reader, seen = LiveReader(server.url, silence=3, patience=20), []
        for frame in reader.frames():
            seen.append((number_of(np.asarray(frame.image)), frame.seconds))
            if reader.lost and seen[-1][0] > 75:
                break
        reader.close()
        assert server.clients == 2
    assert reader.lost == 1
    assert not reader.troubles
    assert "lost 1 time" in reader.line()
    seconds = [s for _, s in seen]
    assert seconds == sorted(seconds)
    gap = max(later - before for before, later in pairwise(seconds))
    assert gap > 0.3, "time goes on while the stream is away"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stall_after", "frames"])
def test_a_stream_that_stays_away_ends_the_job_with_what_came(how: str) -> None:
    """It falls silent with the connection open, or ends; it is asked for again, for 2 s."""
    with RtspServer(rate=25, **{how: 60}) as server:
        reader = LiveReader(server.url, silence=1, patience=2)
        count = sum(1 for _ in reader.frames())
        reader.close()
    assert 5 < count <= 60
    assert "the stream was lost at" in reader.troubles
    assert "did not come back within 2 s" in reader.troubles


def test_what_is_no_stream_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        port = silent.getsockname()[1]
        with pytest.raises(UserError, match="no stream that can be read") as caught:
            LiveReader(f"rtsp://me:secret@127.0.0.1:{port}/cam?token=secret", silence=0.5)
    assert f"rtsp://127.0.0.1:{port}/cam" in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="no stream that can be read"):
        LiveReader(f"rtsp://127.0.0.1:{port}/cam", silence=0.5)  # nobody is there now
    with pytest.raises(UserError, match="give at least 1"):
        LiveReader("rtsp://127.0.0.1/cam", every=0)


def test_addresses() -> None:
    assert is_live("rtsp://host/cam")
    assert is_live("RTSPS://host/cam")
    assert not is_live("a.mp4")
    assert not is_live(Path("rtsp:/host"))
    assert public_name("rtsp://me:pass@cam.local:8554/live/1?token=x") == "rtsp://cam.local:8554/live/1"
    assert public_name("rtsp://[::1") == "rtsp://"
    assert file_name("rtsp://me:pass@cam.local:8554/live/1") == "cam_local_8554_live_1"
    assert told_name("rtsp://me:pass@cam.local/live") == "rtsp://cam.local/live"


@given(st.text(max_size=8), st.text(max_size=8))
def test_no_address_shows_its_password(user: str, path: str) -> None:
    from urllib.parse import quote

    url = f"rtsp://{quote(user, safe='')}:S3CRET@host/{quote(path)}?key=S3CRET"
    assert "S3CRET" not in public_name(url)
    assert "S3CRET" not in file_name(url)
    assert file_name(url).replace("_", "").replace("-", "").isalnum()


def test_stamps_that_leave_the_clock_are_brought_back() -> None:
    reader = object.__new__(LiveReader)
    reader._origin, reader._last = None, 0.0
    wall = [(0, 0.0), (90, 1.0), (None, 1.5), (180, 2.0), (90_000, 3.0), (90_090, 4.0), (0, 5.0)]
    from fractions import Fraction

    told = [reader._seconds(SimpleNamespace(pts=pts, time_base=Fraction(1, 90)), at) for pts, at in wall]
    assert told == pytest.approx([0, 1, 1.5, 2, 3, 4, 5])


# ---- stopped from outside

RUNNING = """
import sys
sys.path.insert(0, sys.argv[3])
from video_making import job
from itertools import pairwise
from pathlib import Path
job(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.slow  # another process that imports the tracker
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_stopped_leaves_whole_files(tmp_path: Path, how: signal.Signals) -> None:
    with RtspServer(rate=25) as server:
        arguments = [sys.executable, "-c", RUNNING, server.url, str(tmp_path / "o"), str(Path(__file__).parent)]
        process = subprocess.Popen(arguments, env=dict(os.environ), stderr=subprocess.PIPE)
        table = tmp_path / "o" / "tracks.csv"
        for _ in range(600):
            if table.is_file() and table.read_text().count("\n") > 20:
                break
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(how)
        assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1]
    (film,) = (tmp_path / "o").glob("*.tracked.mp4")
    reader = VideoReader(film)
    count = len(list(reader.frames()))
    reader.close()
    assert count == max(int(line["frame"]) for line in rows(table))
    assert rows(tmp_path / "o" / "counts.csv")


# ---- against a server of another make

SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer(); server.set_service("0"); server.set_address("127.0.0.1")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(f"( filesrc location={sys.argv[1]} ! qtdemux ! h264parse config-interval=-1 ! rtph264pay name=pay0 pt=96 )")
factory.set_shared(True)
server.get_mount_points().add_factory("/cam", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@pytest.fixture
def gstreamer(tmp_path: Path) -> Iterator[str]:
    """The address of GStreamer's RTSP server, which serves a video of 8 s."""
    python = "/usr/bin/python3"
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    bare = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if shutil.which(python) is None or subprocess.run([python, "-c", check], capture_output=True, env=bare).returncode:
        pytest.skip(
            "no RTSP server of GStreamer (Debian: gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good, -bad, python3-gi)"
        )
    path = write(tmp_path / "served.mp4", moving(200, step=0.5), options={"bf": "0", "g": "10"})
    process = subprocess.Popen([python, "-c", SERVER, str(path)], stdout=subprocess.PIPE, text=True, env=bare)
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    assert port, "the server did not start"
    yield f"rtsp://127.0.0.1:{port}/cam"
    process.terminate()
    process.wait(timeout=10)
    process.stdout.close()


@pytest.mark.slow
def test_the_server_of_gstreamer(gstreamer: str, tmp_path: Path) -> None:
    def slow(windows: list[np.ndarray]) -> list[Detections]:
        time.sleep(0.2)
        return spots(windows)

    said: list[str] = []
    summary = job(gstreamer, tmp_path / "o", model=slow, limit=Limit(seconds=4), said=said)
    assert 8 <= summary.images <= 21  # 5 a second of 25
    line = next(one for one in said if "frames came" in one)
    assert int(line.split(", ")[2].split()[0]) > 20, line
    lines = rows(tmp_path / "o" / "tracks.csv")
    assert len({one["track"] for one in lines}) == 1
    # The spot moves by half a pixel a frame of 1/25 s: its place tells which frame was seen, its time when.
    places = np.array([[float(one["seconds"]), float(one["x1"])] for one in lines])
    slope = np.polyfit(places[:, 0], places[:, 1], 1)[0]
    assert slope == pytest.approx(12.5, rel=0.1)
