from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_making import CODECS, SIZE, moving, scene, write

from flyspeck.errors import UserError
from flyspeck.infer.naming import is_video
from flyspeck.infer.video.pixels import Orientation
from flyspeck.infer.video.reader import Clock, VideoReader, frame_names

pytest.importorskip("av")

IRREGULAR = [0, 0.1, 0.2, 1.2, 5.0]
NOISE = [np.random.default_rng(k).integers(0, 255, (48, 64, 3), np.uint8) for k in range(30)]


def read(path: Path, **options: int) -> tuple[list[float], VideoReader, list[np.ndarray]]:
    reader = VideoReader(path, **options)
    frames = list(reader.frames())
    reader.close()
    return [frame.seconds for frame in frames], reader, [np.asarray(frame.image) for frame in frames]


@pytest.mark.parametrize("ending", CODECS)
def test_a_whole_file_of_any_container_has_all_frames_and_no_trouble(tmp_path: Path, ending: str) -> None:
    times, reader, images = read(write(tmp_path / f"a{ending}", moving(12)))
    assert times == pytest.approx([k / 25 for k in range(12)], abs=1e-3)  # from 0, though some begin elsewhere
    assert not reader.troubles
    assert str(reader.troubles) == ""
    assert reader.notes == []
    for k, image in enumerate(images):
        x = np.nonzero(image[22, :, 0] > 150)[0]
        assert abs(x.min() - (10 + 3 * k)) <= 2


@pytest.mark.parametrize(("ending", "codec"), [(e, c) for e, c in CODECS.items() if e not in (".flv", ".mpg")])
def test_times_are_those_at_which_frames_are_shown(tmp_path: Path, ending: str, codec: str) -> None:
    # AVI cannot say when a frame is shown, only when it is decoded; without B-frames that is the same.
    times, reader, _ = read(write(tmp_path / f"a{ending}", moving(5), times=IRREGULAR, rate=10, codec=codec))
    assert times == pytest.approx(IRREGULAR, abs=2e-3)
    assert not reader.troubles
    assert float(reader.info.rate) < 30  # by which a tracker counts: not the 600 of an AVI's grid


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".avi", ".ts"])
def test_frames_that_are_stored_out_of_order_are_told_in_order(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", moving(20), codec="libx264", options={"bf": "3", "b_strategy": "0"})
    times, reader, images = read(path)
    assert times == pytest.approx([k / 25 for k in range(20)], abs=1e-3)
    assert not reader.troubles
    left = [int(np.nonzero(image[22, :, 0] > 150)[0].min()) for image in images]
    assert left == sorted(left)
    assert len(set(left)) == 20


def test_every_third_frame_keeps_its_time(tmp_path: Path) -> None:
    reader = VideoReader(write(tmp_path / "a.mp4", moving(5), times=IRREGULAR), every=3)
    frames = list(reader.frames())
    assert [(f.image_id, f.name, f.seconds) for f in frames] == [(1, "a.mp4#000001", 0.0), (2, "a.mp4#000002", 1.2)]
    reader.close()


def test_a_file_with_an_edit_list_has_no_more_than_it_shows(tmp_path: Path) -> None:
    """Its index counts frames that are only there to decode others."""
    import av

    whole = write(tmp_path / "a.mp4", moving(30), options={"g": "10", "bf": "0"})
    with av.open(str(whole)) as source, av.open(str(tmp_path / "b.mp4"), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:  # 0.2 s, half a group of frames, lie before 0
                packet.pts, packet.dts, packet.stream = packet.pts - 2560, packet.dts - 2560, copy
                out.mux(packet)
    times, reader, _ = read(tmp_path / "b.mp4")
    assert len(times) == 25
    assert times[0] == 0
    assert not reader.troubles


@pytest.mark.parametrize(
    ("ending", "codec", "container", "promised"),
    [
        (".mp4", "libx264", {"movflags": "faststart"}, 30),
        (".mov", "mjpeg", {"movflags": "faststart"}, 30),
        (".mkv", "ffv1", {}, 30),
        (".webm", "libvpx", {}, 30),
        (".avi", "mjpeg", {}, 30),
        (".gif", "gif", {}, None),
        (".mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}, 0),
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_was_cut_says_how_much_is_missing(
    tmp_path: Path, ending: str, codec: str, container: dict[str, str], promised: int | None, share: float
) -> None:
    options = {} if codec != "libx264" else {"g": "10", "bf": "0"}
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write(tmp_path / f"a{ending}", NOISE, codec=codec, container=container, options=options, pixels=pixels)
    assert not read(path)[1].troubles, "whole"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    times, reader, _ = read(path)
    troubles = reader.troubles
    assert 1 < len(times) < 30
    assert troubles
    assert "is cut off" in str(troubles)
    if promised:
        assert troubles.promised == promised
        assert troubles.missing == promised - len(times)
        assert f"{len(times)} came, {30 - len(times)} are missing" in str(troubles)
    elif promised is None:
        assert troubles.missing is None
    else:
        assert (troubles.missing or 0) > 0


def test_a_file_without_its_index_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving(12))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match="its index is missing: the recording or the copy was cut off"):
        VideoReader(path)


def test_a_frame_that_cannot_be_decoded_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    import av

    path = write(tmp_path / "a.mov", moving(12), codec="png", pixels="rgb24")
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    at = content.index(packets[6])
    path.write_bytes(content[:at] + b"\0" * len(packets[6]) + content[at + len(packets[6]) :])
    reader = VideoReader(path)
    frames = list(reader.frames())
    reader.close()
    assert [f.image_id for f in frames] == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert [f.seconds for f in frames][5:7] == pytest.approx([0.2, 0.28], abs=1e-3)
    assert str(reader.troubles) == "frame 7 (0.240 s) cannot be decoded"


def test_a_frame_that_the_decoder_patched_up_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", NOISE, options={"g": "10", "bf": "0"})
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 3000] = np.random.default_rng(1).integers(0, 255, 3000, np.uint8).tobytes()
    path.write_bytes(content)
    times, reader, _ = read(path)
    named = [number for number, _ in reader.troubles.damaged] + [number for number, _ in reader.troubles.lost]
    assert len(times) + len(reader.troubles.lost) == 30
    assert named
    assert all(10 < number < 21 for number in named)
    assert "frame" in str(reader.troubles)


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".avi", ".ts", ".webm", ".gif", ".flv"])
def test_damage_anywhere_is_frames_or_one_line(tmp_path: Path, ending: str) -> None:
    """Bytes changed, cut, doubled and left out at random: frames in the order of time, or a UserError, never anything else."""
    content = write(tmp_path / f"a{ending}", NOISE[:8], options={}, sound=ending in (".mp4", ".flv")).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(12):
        damaged = bytearray(content)
        for kind in rng.choice(["flip", "cut", "zero", "double", "leave out"], int(rng.integers(1, 5))):
            at, length = int(rng.integers(0, len(damaged) or 1)), int(rng.integers(1, 300))
            if kind == "flip":
                damaged[at : at + 1] = bytes([int(rng.integers(256))])
            elif kind == "cut":
                del damaged[at:]
            elif kind == "zero":
                damaged[at : at + length] = bytes(len(damaged[at : at + length]))
            elif kind == "double":
                damaged[at:at] = damaged[at : at + length]
            else:
                del damaged[at : at + length]
        path = tmp_path / f"b{ending}"
        path.write_bytes(damaged)
        try:
            times, reader, _ = read(path)
        except UserError:
            continue
        assert times == sorted(times)
        assert bool(reader.troubles) == bool(str(reader.troubles))


def test_recordings_that_are_joined_are_no_damage(tmp_path: Path) -> None:
    part = write(tmp_path / "a.ts", moving(10), options={"bf": "0"}).read_bytes()
    (tmp_path / "b.ts").write_bytes(part + part)
    times, reader, _ = read(tmp_path / "b.ts")
    assert times == pytest.approx([k / 25 for k in range(20)], abs=1e-3)
    assert not reader.troubles
    assert reader.notes == ["its times go back 1 time: they are told as if they went on"]


@pytest.mark.parametrize("ending", [e for e in CODECS if e not in (".gif", ".flv")])
def test_a_video_of_one_frame(tmp_path: Path, ending: str) -> None:
    times, reader, _ = read(write(tmp_path / f"a{ending}", moving(1)))
    assert times == [0]
    assert 0 < reader.info.rate <= 1000
    assert not reader.troubles


# ---- which way up


def asymmetric() -> np.ndarray:
    """A frame whose corners differ, so that each of the eight ways to turn or mirror it is another image."""
    image = scene([[10, 10, 50, 30], [10, 30, 20, 60]])
    image[70:90, 90:120] = (250, 30, 30)
    return image


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("transpose", [False, True])
def test_a_stored_frame_is_shown_as_its_matrix_says(tmp_path: Path, transpose: bool, flips: tuple[bool, bool]) -> None:
    upright = asymmetric()
    down, right = (-1 if flip else 1 for flip in flips)
    # A pixel (p, q) is shown at (a p + c q, b p + d q): this matrix turns what is stored into what is upright.
    a, b, c, d = (0, down, right, 0) if transpose else (right, 0, 0, down)
    turned = upright[::down, ::right]
    stored = turned.swapaxes(0, 1) if transpose else turned
    matrix = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], np.int32)
    path = write(tmp_path / "a.mp4", [stored] * 2, matrix=matrix.tolist(), pixels="yuv444p")
    reader = VideoReader(path)
    assert reader.info.size == SIZE
    for frame in reader.frames():
        assert np.abs(np.asarray(frame.image).astype(int) - upright).mean() < 2  # what the codec does
    reader.close()
    assert Orientation.from_matrix(matrix) == Orientation(transpose, *flips)


@given(st.booleans(), st.booleans(), st.booleans())
def test_an_orientation_keeps_every_pixel(transpose: bool, rows: bool, columns: bool) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    shown = Orientation(transpose, rows, columns).apply(pixels)
    assert shown.shape[:2] == Orientation(transpose, rows, columns).size((4, 2))
    assert sorted(shown.reshape(-1, 3).tolist()) == sorted(pixels.reshape(-1, 3).tolist())
    assert shown.flags["C_CONTIGUOUS"]


def test_a_turn_by_other_than_a_quarter_is_said(tmp_path: Path) -> None:
    _, reader, images = read(write(tmp_path / "a.mp4", [asymmetric()], rotation=30))
    assert reader.notes == ["it asks to be turned by other than a quarter, which is not done"]
    assert images[0].shape == (*SIZE, 3)
    assert Orientation.from_matrix(np.zeros(9, np.int32)) is None


@pytest.mark.parametrize(
    ("ending", "codec", "pixels"),
    [
        (".mp4", "libx264", "yuv420p10le"),
        (".mkv", "ffv1", "gray"),
        (".mkv", "ffv1", "gray16le"),
        (".mkv", "ffv1", "yuv444p16le"),
        (".mov", "png", "rgb48be"),
        (".avi", "rawvideo", "bgr24"),
        (".mp4", "libx264", "yuvj444p"),
    ],
)
def test_pixel_formats(tmp_path: Path, ending: str, codec: str, pixels: str) -> None:
    path = write(tmp_path / f"a{ending}", [scene([[10, 20, 50, 60]])] * 2, codec=codec, pixels=pixels)
    _, reader, images = read(path)
    assert images[1].dtype == np.uint8
    assert images[1].shape == (*SIZE, 3)
    assert np.abs(images[1].astype(int) - scene([[10, 20, 50, 60]])).mean() < 6
    assert not reader.troubles


def test_transparency_is_laid_on_black(tmp_path: Path) -> None:
    image = np.full((*SIZE, 4), 200, np.uint8)
    image[:, :64, 3], image[:, 64:, 3] = 0, 255
    _, _, images = read(write(tmp_path / "a.mov", [image], codec="png", pixels="rgba"))
    assert images[0][:, :64].max() == 0
    assert images[0][:, 64:].min() == 200


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (33, 21), (17, 64)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    _, reader, images = read(write(tmp_path / "a.mkv", [image] * 3, codec="ffv1", pixels="yuv444p"))
    assert reader.info.size == size
    assert [one.shape for one in images] == [(*size, 3)] * 3


def test_a_size_that_changes_is_said_and_read(tmp_path: Path) -> None:
    for name, size in (("a", SIZE), ("b", (48, 64))):
        write(tmp_path / f"{name}.ts", [np.full((*size, 3), 90, np.uint8)] * 5, options={"bf": "0"})
    joined = tmp_path / "c.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    times, reader, images = read(joined)
    assert [one.shape[:2] for one in images] == [SIZE] * 5 + [(48, 64)] * 5
    assert "from frame 6 on, the frames are 64x48 (width x height)" in reader.notes
    assert times == sorted(times)


# ---- what is no video


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"This is a text, and a line.\n" * 500,
        b"nonsense" * 1000,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile 'other.mp4'\n",
    ],
)
def test_what_is_no_video_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path / "other.mp4", moving(3))  # a playlist that calls itself a video must not read it
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"not a video|holds no") as caught:
        VideoReader(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_sound_alone_and_what_is_not_there(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        voice = out.add_stream("aac", rate=16_000)
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        piece.sample_rate = 16_000
        out.mux(voice.encode(piece))
        out.mux(voice.encode())
    with pytest.raises(UserError, match="holds no video"):
        VideoReader(tmp_path / "a.mp4")
    with pytest.raises(UserError, match="no such video file"):
        VideoReader(tmp_path / "b.mp4")
    with pytest.raises(UserError, match="no such video file"):
        VideoReader(tmp_path)
    with pytest.raises(UserError, match="give at least 1"):
        VideoReader(tmp_path / "a.mp4", every=0)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    path = write(tmp_path / "a.mp4", moving(2))

    def refuse(*_: object, **__: object) -> None:
        raise av.error.PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(UserError, match="not a video that can be read \\(Permission denied\\)"):
        VideoReader(path)


def test_sound_that_is_longer_than_the_video_is_no_trouble(tmp_path: Path) -> None:
    for ending in (".mp4", ".mkv", ".ts"):
        times, reader, _ = read(write(tmp_path / f"a{ending}", moving(5), sound=True))  # 0.2 s of 2.6 s
        assert len(times) == 5
        assert not reader.troubles


def test_no_rate_is_25(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from flyspeck.infer.video.reader import rate_of

    nothing = SimpleNamespace(
        average_rate=None, guessed_rate=Fraction(0), base_rate=None, index_entries=(), frames=0, duration=None
    )
    assert rate_of(nothing) == 25
    nothing.average_rate, nothing.guessed_rate = Fraction(60_000), Fraction(50)
    assert rate_of(nothing) == 50  # DV files name the unit of their stamps


# ---- the clock


def test_stamps_by_hand() -> None:
    clock = Clock(Fraction(7, 5), Fraction(10))
    told = [clock.seconds(None if s is None else Fraction(s)) for s in ("1.4", "1.5", None, "1.7", "1.65", "1.8")]
    # a frame without a stamp is a tenth later; one that is a little early waits for the one before
    assert [float(s) for s in told] == pytest.approx([0, 0.1, 0.2, 0.3, 0.3, 0.4])
    assert clock.guessed == 1
    assert clock.jumps == 0
    assert float(clock.seconds(Fraction(0))) == pytest.approx(0.5)  # another recording begins: time goes on
    assert float(clock.seconds(Fraction(1, 10))) == pytest.approx(0.6)
    assert clock.jumps == 1


@given(st.lists(st.one_of(st.none(), st.fractions(-100, 100, max_denominator=1000)), max_size=30))
def test_time_never_goes_back(stamps: list[Fraction | None]) -> None:
    clock = Clock(None, Fraction(25))
    told = [clock.seconds(stamp) for stamp in stamps]
    assert told == sorted(told)
    assert all(seconds >= 0 for seconds in told)


def test_names() -> None:
    assert is_video("x/Y.MP4")
    assert not is_video("x.png")
    names = [frame_names("a.mp4", number) for number in (*range(1, 3000), 999_999, 1_000_000, 9_999_999)]
    assert len({output for _, output in names}) == len({name for name, _ in names}) == len(names)
    assert frame_names("a.mp4", 12) == ("a.mp4#000012", "a_000012")
