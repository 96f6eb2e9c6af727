from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from odd_server import OddServer, odd_server
from video_making import job, rows, scene, write

from flyspeck.errors import UserError
from flyspeck.infer.video.files import WebVideo
from flyspeck.infer.video.reader import VideoReader
from flyspeck.infer.web import WebRule

pytest.importorskip("av")
pytest.importorskip("trackers")
QUICK = WebRule(timeout=0.3, retries=1, pause=0.01)


def noisy(count: int) -> list[np.ndarray]:
    """Two spots on noise that makes a file of several parts."""
    rng = np.random.default_rng(0)
    spot = scene([[10, 10, 16, 16], [60, 40, 66, 46]])
    return [np.maximum(spot, rng.integers(0, 90, spot.shape, np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OddServer]:
    folder = tmp_path_factory.mktemp("web")
    write(folder / "a.mp4", noisy(60), options={"bf": "0"}, container={"movflags": "faststart"})
    write(folder / "end.mp4", noisy(30))  # its index lies at its end
    write(folder / "a.mkv", noisy(30))
    content = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    (folder / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    assert len(content) > 200_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        with odd_server(folder) as server:
            yield server


@pytest.mark.parametrize("name", ["a.mp4", "end.mp4", "a.mkv"])
def test_a_video_at_an_address_is_the_same_as_on_a_disk(server: OddServer, tmp_path: Path, name: str) -> None:
    job(server.url(f"ok/{name}?token=secret"), tmp_path / "web", web=QUICK)
    job(server.folder / name, tmp_path / "disk")
    stem = name.partition(".")[0]
    for file in ("tracks.csv", "detections.csv", f"{stem}.tracked.mp4"):
        assert (tmp_path / "web" / file).read_bytes() == (tmp_path / "disk" / file).read_bytes()
    assert all("secret" not in path.read_text(errors="ignore") for path in (tmp_path / "web").rglob("*.*"))


def test_a_server_that_fails_on_the_way_costs_the_rest_and_can_be_gone_on_from(
    server: OddServer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"reading ended early|promises 60 frames|ended") as caught:
        job(server.url("early/a.mp4"), tmp_path / "o", web=QUICK)
    assert "\n" not in str(caught.value)
    came = {int(line["frame"]) for line in rows(tmp_path / "o" / "tracks.csv")}
    assert 0 < len(came) < 60
    assert came == set(range(1, len(came) + 1))
    server.mood.clear()
    job(server.url("early-twice/a.mp4"), tmp_path / "p", web=QUICK.__class__(timeout=0.3, retries=3, pause=0.01))
    assert len({line["frame"] for line in rows(tmp_path / "p" / "tracks.csv")}) == 60


def test_a_server_that_stalls_is_not_waited_for_forever(server: OddServer, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        job(server.url("stall/a.mp4"), tmp_path / "o", web=QUICK)


def test_what_is_at_an_address_and_no_whole_video(server: OddServer, tmp_path: Path) -> None:
    reader = VideoReader(server.url("ok/cut.mp4"), web=QUICK)
    count = sum(1 for _ in reader.frames())
    reader.close()
    assert f"promises 60 frames, {count} came" in str(reader.troubles)
    for address, message in (
        ("ok/list.mp4", "not a video that can be read"),
        ("404/a.mp4", "404"),
        ("whole/a.mp4", "gives no parts"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            VideoReader(server.url(address), web=QUICK)
        assert "\n" not in str(caught.value)
    assert not [path for path, _ in server.log if "a.ts" in path]


def test_what_was_never_reached_is_closed_without_a_word() -> None:
    WebVideo.__new__(WebVideo).close()  # as Python does where `__init__` ended in an error
