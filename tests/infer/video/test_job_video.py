from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_making import SIZE, job, moving, rows, scene, spots, write

from flyspeck.errors import UserError
from flyspeck.infer.job_video import Limit
from flyspeck.infer.outputs import WRITERS
from flyspeck.infer.video.reader import VideoReader
from flyspeck.infer.video.zones import parse_zones
from flyspeck.types import Detections

pytest.importorskip("av")
pytest.importorskip("trackers")
IRREGULAR = [0, 0.1, 0.2, 1.2, 5.0]
STILL = scene([[10, 10, 16, 16], [60, 40, 66, 46]])


def boxes(folder: Path) -> np.ndarray:
    lines = rows(folder / "tracks.csv")
    return np.array([[float(line[c]) for c in ("frame", "x1", "y1", "x2", "y2")] for line in lines])


def frames(path: Path) -> list[Any]:
    reader = VideoReader(path)
    found = list(reader.frames())
    reader.close()
    return found


def test_a_video_on_its_side_has_the_boxes_of_the_upright_one(tmp_path: Path) -> None:
    images = [scene([[20 + 2 * k, 20, 30 + 2 * k, 26]]) for k in range(4)]
    upright = write(tmp_path / "upright.mp4", images, pixels="yuv444p")
    phone = write(tmp_path / "phone.mp4", [np.rot90(i, 1) for i in images], rotation=-90, pixels="yuv444p")
    for path in (upright, phone):
        job(path, tmp_path / path.stem)
    assert np.abs(boxes(tmp_path / "phone") - boxes(tmp_path / "upright")).max() <= 1  # what the codec does
    for path in (upright, phone):
        assert frames(tmp_path / path.stem / f"{path.stem}.tracked.mp4")[0].image.shape == (*SIZE, 3)


def test_times_in_the_table_and_in_the_written_video(tmp_path: Path) -> None:
    path = write(tmp_path / "vfr.mp4", [STILL] * 5, times=IRREGULAR)
    job(path, tmp_path / "o")
    lines = rows(tmp_path / "o" / "tracks.csv")
    assert [line["seconds"] for line in lines] == [s for s in ("0", "0.1", "0.2", "1.2", "5") for _ in range(2)]
    assert [f.seconds for f in frames(tmp_path / "o" / "vfr.tracked.mp4")] == pytest.approx(IRREGULAR, abs=1e-4)


def test_how_far_a_video_is_counts_the_frames_that_are_looked_at(tmp_path: Path) -> None:
    path, told = write(tmp_path / "long.mp4", [STILL] * 25), []
    job(path, tmp_path / "o", every=4, draw=False, progress=told.append)
    steps = [one for one in told if one.step == "detecting" and one.share is not None]
    assert [one.words for one in steps] == [f"{k} of 7 frames" for k in range(1, 8)]
    assert steps[0].share == pytest.approx(1 / 7)


def test_the_same_tracks_on_all_frames_of_a_still_video(tmp_path: Path) -> None:
    job(write(tmp_path / "still.mp4", [STILL] * 3), tmp_path / "o")
    by_frame = [[line["track"] for line in rows(tmp_path / "o" / "tracks.csv") if line["frame"] == f] for f in "123"]
    assert by_frame[0] == by_frame[1] == by_frame[2]
    assert len(set(by_frame[0])) == 2
    first = frames(tmp_path / "o" / "still.tracked.mp4")[0].image
    assert np.abs(first.astype(int) - STILL).max() > 100, "outlines are drawn on the first frame"


def test_a_cut_video_keeps_what_came_and_says_what_is_missing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    images = [np.maximum(STILL, noise.integers(0, 90, (*SIZE, 3), np.uint8)) for _ in range(20)]
    path = write(tmp_path / "cut.mp4", images, container={"movflags": "faststart"}, options={"bf": "0"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(UserError, match=r"promises 20 frames, \d+ came, \d+ are missing") as caught:
        job(path, tmp_path / "o")
    came = len(json.loads(json.dumps([int(line["frame"]) for line in rows(tmp_path / "o" / "tracks.csv")]))) // 2
    assert 5 < came < 20
    assert f"{came} came, {20 - came} are missing; the results of the {came} frames that came are written" in str(
        caught.value
    )
    assert len(frames(tmp_path / "o" / "cut.tracked.mp4")) == came


def test_a_frame_that_the_model_refuses_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    def moody(windows: list[np.ndarray]) -> list[Detections]:
        if any(abs(int(np.nonzero(w[22, :, 0] > 150)[0].min()) - 22) < 2 for w in windows):
            raise UserError("not this one")
        return spots(windows)

    path, said = write(tmp_path / "a.mp4", moving(8)), []
    with pytest.raises(UserError, match="1 of 8 frames without a result"):
        job(path, tmp_path / "o", model=moody, said=said, formats=("coco",))
    assert any("a.mp4#000005" in line and "not this one" in line for line in said)
    images = json.loads((tmp_path / "o" / "images.json").read_text())["images"]
    assert [one["id"] for one in images] == [1, 2, 3, 4, 6, 7, 8]
    assert len(frames(tmp_path / "o" / "a.tracked.mp4")) == 8
    # Going on asks the model for that frame alone.
    asked: list[int] = []

    def willing(windows: list[np.ndarray]) -> list[Detections]:
        asked.extend(1 for _ in windows)
        return spots(windows)

    job(path, tmp_path / "o", model=willing, formats=("coco",), resume=True)
    assert len(asked) == 1
    job(path, tmp_path / "p", formats=("coco",))
    for name in ("tracks.csv", "detections.json", "images.json", "a.tracked.mp4"):
        assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "p" / name).read_bytes()


def test_every_format_has_one_entry_a_frame(tmp_path: Path) -> None:
    formats = sorted(name for name in WRITERS if name != "gpkg")
    for name in ("a.mp4", "a.mkv"):  # of one stem
        path, out = write(tmp_path / name, [STILL] * 4), tmp_path / f"o_{name}"
        job(path, out, formats=formats)
        wanted = [f"{name}#{k:06d}" for k in range(1, 5)]
        assert [one["file_name"] for one in json.loads((out / "images.json").read_text())["images"]] == wanted
        assert sorted({line["file_name"] for line in rows(out / "detections.csv")}) == wanted
        for kind in ("labels", "geojson", "widerface", "voc", "labelme"):
            assert sorted(p.stem for p in (out / kind).rglob("*.*")) == [f"a_{k:06d}" for k in range(1, 5)]
        assert len(json.loads((out / "label_studio.json").read_text())) == 4
        assert (out / "cvat.xml").read_text().count("<image ") == 4


def test_a_weak_detection_of_a_track_is_in_all_files(tmp_path: Path) -> None:
    """The score falls to 0.1 on frame 3: the track goes on there, in the table of tracks and in the formats alike."""
    calls: list[int] = []

    def fading(windows: list[np.ndarray]) -> list[Detections]:
        found = []
        for one in spots(windows):
            calls.append(1)
            scores = np.where(one.boxes[:, 0] < 30, 0.1 if len(calls) == 3 else 0.9, 0.1)
            found.append(Detections(one.boxes, scores, one.labels, one.image_size, one.classes))
        return found

    job(write(tmp_path / "a.mp4", [STILL] * 5), tmp_path / "o", model=fading)
    tracked = [(line["frame"], line["x1"]) for line in rows(tmp_path / "o" / "tracks.csv")]
    told = [(line["image_id"], line["x1"]) for line in rows(tmp_path / "o" / "detections.csv")]
    assert tracked == told
    assert [frame for frame, _ in tracked] == list("12345")  # the other one is weak on every frame: in neither


def test_a_frame_that_cannot_be_decoded_is_the_jobs_last_line(tmp_path: Path) -> None:
    import av

    path = write(tmp_path / "a.mov", [STILL] * 8, codec="png", pixels="rgb24")
    with av.open(str(path)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0) if packet.size][4]
    content = path.read_bytes()
    at = len(packet) * 4 + content.index(packet)  # all eight are equal
    path.write_bytes(content[:at] + b"\0" * len(packet) + content[at + len(packet) :])
    with pytest.raises(
        UserError, match=r"frame 5 \(0\.160 s\) cannot be decoded; the results of the 7 frames that came"
    ):
        job(path, tmp_path / "o")
    assert sorted({line["frame"] for line in rows(tmp_path / "o" / "tracks.csv")}) == list("1234678")


def test_a_size_that_changes_on_the_way(tmp_path: Path) -> None:
    for name, size in (("a", SIZE), ("b", (48, 64))):
        write(tmp_path / f"{name}.ts", [scene([[10, 10, 16, 16]], size)] * 4, options={"bf": "0"})
    joined, said = tmp_path / "c.ts", []
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    job(joined, tmp_path / "o", said=said, formats=("coco",), stills=True)
    assert "note: c.ts: from frame 5 on, the frames are 64x48 (width x height)" in said
    images = json.loads((tmp_path / "o" / "images.json").read_text())["images"]
    assert [(one["height"], one["width"]) for one in images] == [SIZE] * 4 + [(48, 64)] * 4
    assert {f.image.shape[:2] for f in frames(tmp_path / "o" / "c.tracked.mp4")} == {SIZE}
    before = (tmp_path / "o" / "tracks.csv").read_bytes()
    job(joined, tmp_path / "o", formats=("coco",), resume=True)
    assert (tmp_path / "o" / "tracks.csv").read_bytes() == before


def test_detections_without_a_track_are_counted_at_the_end(tmp_path: Path) -> None:
    """Spots of 6 px that move by 3 px a frame: every frame they are followed, by 30 px a step they are not."""
    path, near, far = write(tmp_path / "a.mp4", moving(21)), list[str](), list[str]()
    job(path, tmp_path / "o", said=near)
    assert not any("belong to no track" in line for line in near)
    job(path, tmp_path / "p", every=10, said=far)
    (note,) = (line for line in far if "belong to no track" in line)
    assert note.startswith("note: 3 of 3 detections")
    assert "smaller --every" in note


def test_limits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [STILL] * 10, rate=10)
    assert job(path, tmp_path / "o", limit=Limit(frames=3)).images == 3
    assert job(path, tmp_path / "p", limit=Limit(seconds=0.5)).images == 5
    assert len(frames(tmp_path / "p" / "a.tracked.mp4")) == 5


def test_counts_and_stills_of_a_video(tmp_path: Path) -> None:
    """One spot of 6 px moves by 3 px a frame from x = 13: on frame 10 it is at 40, on 11 at 43, more than 1.5 px beyond."""
    path, said = write(tmp_path / "a.mp4", moving(20)), []
    job(path, tmp_path / "o", zones=parse_zones(["40,90,40,0:gate", "500,0,500,9"], []), stills=True, said=said)
    assert any("the line 'line 2' lies outside of the frames" in line for line in said)
    (crossing,) = rows(tmp_path / "o" / "crossings.csv")
    assert (crossing["frame"], crossing["seconds"], crossing["name"], crossing["direction"]) == (
        "11",
        "0.4",
        "gate",
        "in",
    )
    table = {(r["name"], r["direction"], r["class"]): r["count"] for r in rows(tmp_path / "o" / "counts.csv")}
    assert table["gate", "in", "spot"] == table["", "new", "spot"] == "1"
    assert table["gate", "out", "*"] == table["line 2", "in", "*"] == "0"
    (still,) = rows(tmp_path / "o" / "stills.csv")
    assert (tmp_path / "o" / still["file"]).is_file()
    job(path, tmp_path / "o", overwrite=True)
    assert not (tmp_path / "o" / "stills").exists()
    assert not (tmp_path / "o" / "crossings.csv").exists()


def test_an_odd_video_is_padded_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    job(
        write(tmp_path / "a.mkv", [scene([[5, 5, 9, 9]], (33, 21))] * 3, codec="ffv1", pixels="yuv444p"),
        tmp_path / "o",
        said=said,
    )
    assert "note: a.tracked.mp4 is padded from 21x33 to 22x34 (width x height), as H.264 wants it" in said


# ---- stopping and going on

KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from video_making import job, spots
def slow(windows):
    time.sleep(0.05 * len(windows))
    return spots(windows)
job(Path(sys.argv[1]), Path(sys.argv[2]), model=slow, resume=Path(sys.argv[2], "tiles").exists())
"""


def start(path: Path, out: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", KILLED, str(path), str(out), str(Path(__file__).parent)]
    return subprocess.Popen(arguments, env=dict(os.environ), stderr=subprocess.PIPE)


def wait_for_frames(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    journal = out / "tiles" / "tiles-frames.jsonl"
    for _ in range(600):
        if journal.is_file() and journal.read_bytes().count(b"\n") > count:
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    raise AssertionError("no frames came")


@pytest.mark.slow  # another process that imports the tracker; the same without a kill: `test_ctrl_c_leaves_whole_files`
def test_a_killed_job_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Two objects cross, one comes late, one is away for a while: what tracks remember must be there again."""
    paths = [
        [[10 + 3 * k, 20, 16 + 3 * k, 26], [100 - 3 * k, 24, 106 - 3 * k, 30]]
        + ([[60, 70, 66, 76]] if 8 < k < 14 or k > 20 else [])
        for k in range(30)
    ]
    path = write(tmp_path / "a.mp4", [scene(p) for p in paths], options={"g": "300"})  # one key frame
    job(path, tmp_path / "whole")
    out = tmp_path / "killed"
    process = start(path, out)
    wait_for_frames(out, 9, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with (out / "tiles" / "tiles-frames.jsonl").open("ab") as file:
        file.write(b'{"frame":99,"bo')  # a line that the kill cut off
    said: list[str] = []
    job(path, out, resume=True, said=said)
    kept = next(int(line.split()[1]) for line in said if line.startswith("resumed: "))
    assert 9 <= kept < 30
    for name in ("tracks.csv", "detections.csv", "a.tracked.mp4"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_ctrl_c_leaves_whole_files(tmp_path: Path) -> None:
    calls: list[int] = []

    def stopped(windows: list[np.ndarray]) -> list[Detections]:
        calls.append(len(windows))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return spots(windows)

    # The second object comes on frame 11, so that its track is not settled when the job is stopped at 12.
    images = [STILL if k > 9 else scene([[10, 10, 16, 16]]) for k in range(30)]
    path, out, said = write(tmp_path / "a.mp4", images), tmp_path / "o", []
    with pytest.raises(KeyboardInterrupt):
        job(path, out, model=stopped, said=said)
    assert "note: stopped after 12 frames: the files are whole, --resume goes on" in said
    assert len(frames(out / "a.tracked.mp4")) == 12
    assert {int(line["frame"]) for line in rows(out / "tracks.csv")} == set(range(1, 13))
    asked: list[int] = []

    def counting(windows: list[np.ndarray]) -> list[Detections]:
        asked.extend(1 for _ in windows)
        return spots(windows)

    job(path, out, model=counting, resume=True, stills=True)
    assert len(asked) == 18
    job(path, tmp_path / "whole", stills=True)
    for name in ("tracks.csv", "counts.csv", "stills.csv", "detections.csv", "a.tracked.mp4"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_frame_is_written_waits_for_its_end(
    tmp_path: Path, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flyspeck.infer.video.counts import CountTable

    add, calls = CountTable.add, []

    def signalled(
        self: CountTable, result: Any
    ) -> None:  # the table of tracks has the frame, the written video not yet
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), how)
        add(self, result)

    monkeypatch.setattr(CountTable, "add", signalled)
    path, out = write(tmp_path / "a.mp4", [STILL] * 20), tmp_path / "o"
    before = signal.default_int_handler if how == signal.SIGINT else signal.SIG_DFL
    earlier = signal.signal(how, before)  # a shell's background job ignores the first
    try:
        with pytest.raises(KeyboardInterrupt):
            job(path, out)
        assert signal.getsignal(how) is before
    finally:
        signal.signal(how, earlier)
    told = {int(line["frame"]) for line in rows(out / "tracks.csv")}
    assert 5 <= len(told) < 20
    assert told == set(range(1, len(frames(out / "a.tracked.mp4")) + 1))


def test_going_on_with_other_settings_or_another_video_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [STILL] * 4)
    job(path, tmp_path / "o", made_with={"weights": "x"})
    with pytest.raises(UserError, match="holds results of an earlier prediction; --resume"):
        job(path, tmp_path / "o", made_with={"weights": "x"})
    with pytest.raises(UserError, match="was made with weights x, this run has y"):
        job(path, tmp_path / "o", made_with={"weights": "y"}, resume=True)
    with pytest.raises(UserError, match="was made with every 1, this run has 2"):
        job(path, tmp_path / "o", made_with={"weights": "x"}, every=2, resume=True)
    before = (tmp_path / "o" / "tracks.csv").read_bytes()
    write(path, [STILL] * 5)
    with pytest.raises(UserError, match="was made with video"):
        job(path, tmp_path / "o", made_with={"weights": "x"}, resume=True)
    assert (tmp_path / "o" / "tracks.csv").read_bytes() == before, "nothing was touched"
    assert job(path, tmp_path / "o", made_with={"weights": "y"}, overwrite=True).images == 5
    (tmp_path / "o" / "tiles" / "tiles-frames.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="not a journal of finished frames"):
        job(path, tmp_path / "o", made_with={"weights": "y"}, resume=True)


@pytest.mark.parametrize("name", ["counts.csv", "crossings.csv", "stills.csv", "stills"])
def test_what_somebody_else_wrote_is_not_overwritten(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.mp4", [STILL] * 3)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / name).write_text("mine")
    for changes in ({}, {"overwrite": True}):
        with pytest.raises(UserError, match=f"'{name}' is there, and no prediction is known to have written it"):
            job(path, tmp_path / "o", **changes)
    assert (tmp_path / "o" / name).read_text() == "mine"


def test_a_full_disk_costs_no_line_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", [STILL] * 6)
    from flyspeck.infer.growing_csv import GrowingCsv

    add, calls = GrowingCsv.add, []

    def fill(self: GrowingCsv, lines: list[str]) -> None:
        if self.path.name == "tracks.csv":
            calls.append(lines)
        if len(calls) == 4 and self.path.name == "tracks.csv":
            self._file.write(lines[0][:5])  # the disk takes a part of it
            self._file.flush()

            real = self._file

            class Full:
                def write(self, _: str) -> None:
                    raise OSError(28, "No space left on device")

                def close(self) -> None:
                    real.close()

            self._file = Full()  # pyright: ignore[reportAttributeAccessIssue]
        add(self, lines)

    monkeypatch.setattr(GrowingCsv, "add", fill)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device\)"):
        job(path, tmp_path / "o")
    lines = (tmp_path / "o" / "tracks.csv").read_text().splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("2,0.04,")
    monkeypatch.undo()
    job(path, tmp_path / "o", resume=True)
    assert len(rows(tmp_path / "o" / "tracks.csv")) == 12
