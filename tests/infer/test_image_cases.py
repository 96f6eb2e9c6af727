"""Rasters and videos as strangers bring them, with what is expected of each: the files that lie beside the project."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from flyspeck.cli.main import main

pytest.importorskip("rasterio")
MODULE = """
import numpy as np
from scipy import ndimage

def spots(windows):
    found = []
    for window in windows:
        places = ndimage.find_objects(ndimage.label(window[:, :, CHANNEL] > 200)[0])
        found.append(np.array([[x.start, y.start, x.stop, y.stop, 0.9, 0] for y, x in places]).reshape(-1, 6))
    return found

spots.classes, spots.tile = ["spot"], (256, 256)
"""
FIRST, SECOND = [100, 50, 5, 4], [250, 150, 6, 3]


@pytest.fixture
def cases(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, colour in enumerate(("red", "green", "blue")):
        (tmp_path / f"spots_in_{colour}.py").write_text(MODULE.replace("CHANNEL", str(number)))
        # That of the test before, whose file is gone.
        monkeypatch.delitem(sys.modules, f"spots_in_{colour}", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return shared / "cases" / "images"


def predicted(file: Path, *asked: str, colour: str = "red", code: int = 0) -> list[list[float]]:
    """Boxes (x, y, width, height), by their place."""
    command = ["predict", str(file), "--model", f"spots_in_{colour}:spots", "--out", f"{file.stem}_{file.suffix[1:]}"]
    assert main([*command, "--to", "coco,geojson", *asked]) == code
    return sorted(one["bbox"] for one in results(file, "detections.json"))


def results(file: Path, name: str) -> Any:
    return json.loads(Path(f"{file.stem}_{file.suffix[1:]}", name).read_text())


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("r1a.tif", (), [FIRST]),  # the second spot is transparent
        ("r1b.tif", (), [FIRST]),
        ("r2a.tif", (), [FIRST, SECOND]),  # nothing in the collar
        ("r2b.tif", (), [FIRST, SECOND]),
        ("r3a.tif", (), [FIRST, SECOND]),  # 11 bits
        ("r3e.tif", ("--value-range", "0,255"), [FIRST, SECOND]),
        ("r3f.tif", (), [FIRST, SECOND]),
        ("r5.tif", (), [FIRST, SECOND]),
        ("r9.png", (), [FIRST, SECOND]),
    ],
)
def test_spots_of_rasters(cases: Path, name: str, asked: tuple[str, ...], expected: list[list[int]]) -> None:
    assert predicted(cases / name, *asked) == expected


def test_floats_without_a_range_are_one_line(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predicted(cases / "r3e.tif", code=2)
    assert "--value-range" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["r4.tif", "r4b.tif"])
def test_the_model_sees_red_green_blue_by_the_tags(cases: Path, name: str) -> None:
    import rasterio

    with rasterio.open(cases / name) as file:
        bands = {kind.name: file.read(number) for number, kind in enumerate(file.colorinterp, 1)}
    for colour in ("red", "green", "blue"):
        bright = (bands[colour][51, 102] > 200, bands[colour][151, 252] > 200)
        found = [spot for spot, here in zip((FIRST, SECOND), bright, strict=True) if here]
        assert predicted(cases / name, "--overwrite", colour=colour) == found


@pytest.mark.parametrize(
    ("one", "other", "asked"),
    [("a.tif", "a.jp2", ()), ("u.tif", "u.jp2", ("--bands", "3,2,1", "--value-range", "0,10200"))],
)
def test_one_image_in_two_formats(cases: Path, one: str, other: str, asked: tuple[str, ...]) -> None:
    boxes = predicted(cases / one, *asked)
    assert len(boxes) > 100
    assert predicted(cases / other, *asked) == boxes
    maps = [results(cases / name, f"geojson/{Path(name).stem}.geojson")["features"] for name in (one, other)]
    corners = [sorted(feature["geometry"]["coordinates"][0][0] for feature in features) for features in maps]
    assert_allclose(corners[0], corners[1], atol=1e-9)


def frames(file: Path) -> list[Any]:
    from flyspeck.infer.video.reader import VideoReader

    reader = VideoReader(file)
    found = list(reader.frames())
    reader.close()
    return found


def tracks(file: Path, code: int = 0) -> list[dict[str, str]]:
    out = Path(f"{file.stem}_tracks")
    command = ["predict", str(file), "--model", "spots_in_red:spots", "--out", str(out), "--to", "csv"]
    assert main(command) == code
    with (out / "tracks.csv").open(newline="") as rows:
        return list(csv.DictReader(rows))


def test_videos(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    pytest.importorskip("trackers")
    upright, phone = (frames(cases / name) for name in ("upright.mp4", "phone.mp4"))
    assert len(upright) == len(phone) == 3
    for one, other in zip(upright, phone, strict=True):  # turned by a quarter they differ by 60 and more
        assert np.abs(np.asarray(one.image, float) - np.asarray(other.image, float)).mean() < 5
    shown = [tracks(cases / name) for name in ("upright.mp4", "phone.mp4")]
    assert len(shown[1]) == pytest.approx(len(shown[0]), rel=0.05)
    assert sorted({float(row["seconds"]) for row in tracks(cases / "vfr.mp4")}) == [0, 0.1, 0.2, 1.2, 5]
    still = tracks(cases / "still.mp4")
    of_frames = [{row["track"] for row in still if row["frame"] == frame} for frame in ("1", "2", "3")]
    # What is bright changes by some grains from frame to frame; those that stay have their track from the first frame on.
    assert len(of_frames[0] & of_frames[1] & of_frames[2]) > 0.7 * len(set.union(*of_frames)) > 100
    capsys.readouterr()
    tracks(cases / "fast.mp4")
    assert "missing" not in capsys.readouterr().err
    tracks(cases / "fastcut.mp4", code=2)
    assert "it promises 10 frames, 5 came, 5 are missing" in capsys.readouterr().err
    tracks(cases / "cut.mkv", code=2)
    assert "missing" in capsys.readouterr().err
