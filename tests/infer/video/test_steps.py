from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_making import moving, write

from flyspeck.infer.video.reader import VideoReader
from flyspeck.infer.video.steps import Steps

pytest.importorskip("av")


def note(times: list[float]) -> str:
    steps = Steps()
    for number, seconds in enumerate(times, start=1):
        steps.add(number, seconds)
    return steps.note()


def without(count: int, gone: set[int], period: float = 0.04) -> list[float]:
    return [round(k * period, 3) for k in range(count) if k not in gone]


def test_holes_in_a_steady_rate_are_told() -> None:
    assert note(without(100, set())) == ""
    told = note(without(100, {30, 31}))
    assert (
        told
        == "its frames are 0.040 s apart, but 0.120 s before frame 31: frames may be missing there, or none were recorded"
    )
    assert "0.080 s before frame 81" in note(without(100, {80}))
    assert "0.080 s before frame 5" in note(without(12, {4}))
    assert "and 2 more" in note(without(1000, {50, 150, 250, 350, 450}))
    assert "0.067 s before frame 41" in note(without(90, {40}, 1 / 30)), "though Matroska rounds to milliseconds"


def test_a_rate_that_varies_has_no_holes() -> None:
    assert note([0, 0.1, 0.2, 1.2, 5.0]) == ""
    assert note(np.cumsum(np.random.default_rng(0).uniform(0.02, 0.2, 200)).tolist()) == ""
    assert note(without(200, set(range(0, 200, 7)))) == "", "every seventh is left out: a rate of its own"
    assert note([0.0]) == note([]) == ""


@given(st.lists(st.floats(0, 1e6, allow_nan=False), max_size=80).map(sorted))
def test_any_times_are_taken(times: list[float]) -> None:
    assert "\n" not in note(times)


def test_damage_that_the_demuxer_passes_over_is_told(tmp_path: Path) -> None:
    """A cluster of a Matroska file is overwritten: its frames are gone, and neither demuxer nor decoder says so."""
    path = write(
        tmp_path / "a.mkv", moving(40, step=2), options={"bf": "0", "g": "10"}, container={"cluster_time_limit": "200"}
    )
    content = bytearray(path.read_bytes())
    clusters = [k for k in range(len(content)) if content[k : k + 4] == b"\x1f\x43\xb6\x75"]
    assert len(clusters) > 4
    content[clusters[3] : clusters[4]] = bytes(clusters[4] - clusters[3])
    path.write_bytes(content)
    reader = VideoReader(path)
    count = sum(1 for _ in reader.frames())
    reader.close()
    assert count < 40
    assert reader.troubles or any("frames may be missing there" in one for one in reader.notes)
