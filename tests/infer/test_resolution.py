"""Ground resolution: what a pixel covers, and rasters shown to a detector at the metres a pixel of its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from spots import geotiff, spots_model, spotted

from flyspeck.cli.main import main
from flyspeck.data.ground import GroundResolution, measured_ground
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.geo import GeoReference
from flyspeck.infer.job import predict
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.resolution import described_resolution, resolution_rule
from flyspeck.projection import metres_per_pixel

pyproj = pytest.importorskip("pyproj")
pytest.importorskip("rasterio")

TENTH = GroundResolution(0.1, 0.1, 0.1, images=3)


def utm(metres: float) -> GeoReference:
    return GeoReference((metres, 0, 500000.0, 0, -metres, 4000000.0), "EPSG:32633")


def test_metres_by_hand() -> None:
    # On the central meridian UTM shortens by 0.9996.
    assert metres_per_pixel(utm(0.1).transform, "EPSG:32633", (400, 300)) == pytest.approx([0.1 / 0.9996] * 2, rel=1e-5)
    # A degree of longitude on the equator of WGS 84 is 2 pi 6378137 / 360 m; of latitude there 110574 m.
    across, down = metres_per_pixel((1e-6, 0, 10, 0, -1e-6, 0), "EPSG:4326", (2, 2)) or (0, 0)
    assert across == pytest.approx(0.111319, abs=1e-6)
    assert down == pytest.approx(0.110574, abs=1e-6)
    # Web Mercator at 60 degrees north stretches by 1 / cos 60 = 2 on the sphere, a little less on the ellipsoid.
    y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(10, 60)[1]
    across, down = metres_per_pixel((1, 0, 1113194, 0, -1, y), "EPSG:3857", (100, 100)) or (0, 0)
    assert across == pytest.approx(0.5, rel=0.005)
    assert down == pytest.approx(0.5, rel=0.005)
    # Half a US survey foot.
    feet = metres_per_pixel((0.5, 0, 980000, 0, -0.5, 200000), "EPSG:2263", (100, 100))
    assert feet == pytest.approx([0.1524] * 2, rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    metres=st.floats(0.01, 30), angle=st.floats(0, 6.28), mirrored=st.booleans(),
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
)  # fmt: skip
def test_turns_and_mirrors_change_nothing(metres: float, angle: float, mirrored: bool, size: tuple[int, int]) -> None:
    c, s, flip = metres * np.cos(angle), metres * np.sin(angle), 1 if mirrored else -1
    found = metres_per_pixel((c, -s * flip, 500000.0, s, c * flip, 4000000.0), "EPSG:32633", size)
    assert found == pytest.approx([metres / 0.9996] * 2, rel=5e-4)


def test_what_has_no_place_has_no_metres() -> None:
    assert metres_per_pixel((1, 0, 1e12, 0, -1, 1e12), "EPSG:32633", (10, 10)) is None


@pytest.mark.parametrize(
    ("asked", "own", "factor", "said"),
    [
        (None, 0.1, 1, ""), (None, 0.12, 1, ""), (None, 0.081, 1, ""),
        (None, 0.05, 0.5, "seen at 0.5 times its size (--resolution native leaves it)"),
        (None, 0.2, 2.0, "seen at 2 times its size"),
        (None, 1.0, 1, "10 times coarser, too much to enlarge it (--resolution trained does)"),
        ("native", 0.05, 1, "2 times finer"), ("native", 0.3, 1, "3 times coarser"), ("native", 0.1, 1, ""),
        ("trained", 1.0, 10.0, "seen at 10"), ("trained", 0.11, 1.1, "seen at 1.1"),
        ("0.3", 0.1, 1 / 3, "seen at 0.3"), (0.3, 0.1, 1 / 3, "seen at 0.3"),
    ],
)  # fmt: skip
def test_what_is_done_and_said(asked: Any, own: float, factor: float, said: str) -> None:
    rule = resolution_rule(asked, TENTH, scale=None, rescales=True)
    found, line = rule.of(utm(own * 0.9996), (100, 100), name="a.tif")
    assert found == pytest.approx(factor, rel=1e-3)
    assert said in line
    assert (said == "") == (line == "")


def test_a_range_of_the_training_counts_as_known() -> None:
    wide = GroundResolution(0.2, 0.1, 0.5, images=30)
    rule = resolution_rule(None, wide, scale=None, rescales=True)
    for own in (0.085, 0.1, 0.3, 0.6):
        assert rule.of(utm(own * 0.9996), (100, 100), name="a") == (1.0, "")
    factor, line = rule.of(utm(0.05 * 0.9996), (100, 100), name="a")
    assert factor == pytest.approx(0.25, rel=1e-3)
    assert "trained at 0.1 to 0.5 m a pixel (median 0.2)" in line


@pytest.mark.parametrize(
    ("asked", "trained", "scale", "enlarge", "said"),
    [
        ("fine", TENTH, None, {}, "'fine' is no ground resolution; native, trained, auto, or metres"),
        ("-1", TENTH, None, {}, "no ground resolution"), ("nan", TENTH, None, {}, "no ground resolution"),
        ("trained", None, None, {}, "does not know the metres a pixel of its training"),
        ("trained", TENTH, 2.0, {}, "a scale and a ground resolution"), ("0.1", TENTH, 2.0, {}, "a scale and"),
        ("trained", TENTH, None, {"short_side": 800}, "brings every image to one size itself"),
        ("0.1", TENTH, None, {"squeeze": [300, 300]}, "brings every image to one size itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(asked: Any, trained: Any, scale: Any, enlarge: dict, said: str) -> None:
    description = {"enlarge": enlarge, **({} if trained is None else {"metres_per_pixel": trained.to_dict()})}
    with pytest.raises(UserError, match=said):
        described_resolution(description, asked, scale=scale)


def test_images_that_do_not_say_it() -> None:
    bare = GeoReference((1, 0, 0, 0, -1, 0), None)
    for geo in (None, bare):
        assert resolution_rule(None, TENTH, scale=None, rescales=True).of(geo, (9, 9), name="a") == (1.0, "")
        with pytest.raises(
            UserError, match=r"^a: does not say how many metres a pixel covers \(--resolution trained\)"
        ):
            resolution_rule("trained", TENTH, scale=None, rescales=True).of(geo, (9, 9), name="a")
    # A scale that is given is the user's own answer; a model that does not know has nothing to say.
    assert resolution_rule(None, TENTH, scale=1.0, rescales=True).rule is None
    assert resolution_rule(None, None, scale=None, rescales=True).of(utm(5), (9, 9), name="a") == (1.0, "")


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(0.2, 3), size=st.tuples(st.integers(40, 400), st.integers(40, 400)))
def test_tiles_cover_the_image_in_its_own_pixels(factor: float, size: tuple[int, int]) -> None:
    predictor = Predictor(lambda windows: [], tile=64, overlap=8)
    tiles, seen = predictor.tiles_of(size, factor)
    again, same = Predictor(lambda windows: [], tile=64, overlap=8, scale=factor).tiles_of(size)
    assert tiles.tolist() == again.tolist()
    assert seen == same
    assert tiles[:, 2:].max(0).tolist() == [size[1], size[0]]


def test_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told = {"metres_per_pixel": TENTH.to_dict()}
    seen, model = spots_model(monkeypatch, tmp_path, **told)
    # 0.05 m: an object of 0.8 m is 16 px; the detector is shown 8.
    places = [(32, 48), (160, 96)]
    geotiff(tmp_path / "a.tif", spotted((200, 240), places, side=16), utm(0.05 * 0.9996).transform, "EPSG:32633")
    sizes: list[int] = []
    plain = seen._see
    monkeypatch.setattr(seen, "_see", lambda window: sizes.append(int((window[:, :, 0] > 200).sum())) or plain(window))
    argv = ["predict", str(tmp_path / "a.tif"), "--model", str(model), "--out", str(tmp_path / "found"), "--draw", "0"]
    assert main([*argv, "--tile", "off"]) == 0
    said = capsys.readouterr().err
    assert "note: a.tif: 0.05 m a pixel, trained at 0.1 m a pixel: seen at 0.5 times its size" in said
    assert sizes == [2 * 8 * 8]
    found = json.loads((tmp_path / "found/detections.json").read_text())
    assert [d["bbox"] for d in found] == [[x, y, 16, 16] for x, y in places]  # in pixels of the file
    with pytest.raises(UserError, match="was made with resolution"):
        predict(
            tmp_path / "a.tif",
            model=model,
            out=tmp_path / "found",
            tile="off",
            draw=0,
            resolution="native",
            resume=True,
        )
    assert main([*argv, "--tile", "off", "--resolution", "native", "--overwrite"]) == 0
    assert "trained at 0.1 m a pixel: 2 times finer" in capsys.readouterr().err
    assert sizes[-1] == 2 * 16 * 16
    assert main([*argv, "--resolution", "trained", "--scale", "2", "--overwrite"]) == 2


def written_set(folder: Path, metres: list[float], crs: str | None) -> Path:
    images = []
    for number, one in enumerate(metres, 1):
        geotiff(folder / f"{number}.tif", np.full((40, 50), 60, np.uint8), utm(one).transform, crs)
        images.append({"id": number, "file_name": f"{number}.tif", "width": 50, "height": 40})
    box = {"id": 1, "image_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "category_id": 1, "iscrowd": 0}
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "a"}]}
    (folder / "set.json").write_text(json.dumps(content))
    return folder / "set.json"


def test_a_training_set_says_it_by_its_geotiffs(tmp_path: Path) -> None:
    table = read_annotations(written_set(tmp_path, [0.1, 0.2, 0.4], "EPSG:32633"))
    found = measured_ground(table)
    assert found is not None
    assert (found.median, found.lowest, found.highest) == pytest.approx((0.2, 0.1, 0.4), rel=1e-3)
    assert found.images == 3
    assert GroundResolution.of({"metres_per_pixel": found.to_dict()}) == found
    assert measured_ground(table, stated=0.3) == GroundResolution(0.3, 0.3, 0.3, images=0)
    assert GroundResolution.of({}) is None
    assert measured_ground(read_annotations(written_set(tmp_path, [0.1], None))) is None
    Image.new("L", (50, 40)).save(tmp_path / "1.tif")
    assert measured_ground(read_annotations(written_set(tmp_path, [], None))) is None


def test_dota_says_it_in_its_headers(tmp_path: Path) -> None:
    (tmp_path / "labelTxt").mkdir()
    (tmp_path / "images").mkdir()
    for name, gsd in (("a", "0.15"), ("b", "null"), ("c", "0.3")):
        text = f"imagesource:GoogleEarth\ngsd:{gsd}\n1 1 5 1 5 5 1 5 ship 0\n"
        (tmp_path / "labelTxt" / f"{name}.txt").write_text(text)
        Image.new("RGB", (20, 20)).save(tmp_path / "images" / f"{name}.png")
    found = measured_ground(read_annotations(tmp_path))
    assert found == GroundResolution(pytest.approx(0.225), 0.15, 0.3, images=2)  # type: ignore[arg-type]
