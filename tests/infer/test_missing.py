"""Nothing is found in what a file does not have: every way to say so, through every reader, with and without a place on Earth."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from spots import Spots, geotiff

from flyspeck.data.bands import PixelRule
from flyspeck.data.nodata import is_nodata
from flyspeck.infer import opening, raster
from flyspeck.infer.missing import filled, hidden, shown, trimmed
from flyspeck.infer.predictor import Predictor, Result
from flyspeck.infer.raster import RasterioSource
from flyspeck.infer.source import open_source
from flyspeck.infer.tiff_windows import TifffileSource
from flyspeck.infer.vips_windows import VipsSource
from flyspeck.infer.whole import open_whole
from flyspeck.infer.windows import OpenOptions, Source

PLACE = (0.1, 0, 500000, 0, -0.1, 4000000)
SEEN = [4.0, 20.0, 8.0, 24.0]  # a spot that is there
GONE = (40, 20)  # the corner of one that is not
EDGE = 30  # columns from here on are missing
READERS: dict[str, Callable[..., Source]] = {
    "rasterio": RasterioSource,
    "tifffile": TifffileSource,
    "pyvips": VipsSource,
    "whole": open_whole,
}


def scene(top: int = 250, ground: int = 60, dtype: str = "uint8", bands: int = 3) -> np.ndarray:
    """`(48, 64, bands)`: ground, and two spots."""
    pixels = np.full((48, 64, bands), ground, dtype)
    for x, y in ((4, 20), GONE):
        pixels[y : y + 4, x : x + 4] = top
    return pixels


def alpha(path: Path, **place: object) -> None:
    pixels = np.concatenate([scene(), np.full((48, 64, 1), 255, np.uint8)], axis=2)
    pixels[:, EDGE:, 3] = 0
    geotiff(path, pixels, photometric="RGB", alpha="YES", **place)  # pyright: ignore[reportArgumentType]


def grey_alpha(path: Path, **place: object) -> None:
    pixels = np.concatenate([scene(bands=1), np.full((48, 64, 1), 255, np.uint8)], axis=2)
    pixels[:, EDGE:, 1] = 0
    geotiff(path, pixels, alpha="YES", **place)  # pyright: ignore[reportArgumentType]


def white_nodata(path: Path, **place: object) -> None:
    pixels = scene()
    pixels[:, EDGE:] = 255
    geotiff(path, pixels, nodata=255, photometric="RGB", **place)  # pyright: ignore[reportArgumentType]


def wide_nodata(path: Path, **place: object) -> None:
    pixels = scene(64000, 15000, "uint16", 1)
    pixels[:, EDGE:] = 65535
    geotiff(path, pixels, nodata=65535, **place)  # pyright: ignore[reportArgumentType]


def float_nodata(path: Path, **place: object) -> None:
    pixels = scene(250, 60, "float32")
    pixels[:, EDGE:] = 3.4e38
    geotiff(path, pixels, nodata=float(np.float32(3.4e38)), **place)  # pyright: ignore[reportArgumentType]


def not_a_number(path: Path, **place: object) -> None:
    pixels = scene(250, 60, "float32", 1)
    pixels[:, EDGE:] = np.nan
    geotiff(path, pixels, **place)  # pyright: ignore[reportArgumentType]


def internal_mask(path: Path, **place: object) -> None:
    import rasterio

    geotiff(path, scene(), photometric="RGB", **place)  # pyright: ignore[reportArgumentType]
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(np.arange(64)[None] < np.full((48, 1), EDGE))


def mask_beside(path: Path, **place: object) -> None:
    import rasterio

    geotiff(path, scene(), photometric="RGB", **place)  # pyright: ignore[reportArgumentType]
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(np.arange(64)[None] < np.full((48, 1), EDGE))
    assert path.with_name(path.name + ".msk").is_file()


KINDS = [alpha, grey_alpha, white_nodata, wide_nodata, float_nodata, not_a_number, internal_mask, mask_beside]


def found_in(
    path: Path, opened: Callable[..., Source], monkeypatch: pytest.MonkeyPatch, tile: int | None = 24
) -> Result:
    options = OpenOptions(channels=3, value_range=(0, 255) if "f" in path.stem else None)
    monkeypatch.setattr(
        "flyspeck.infer.reading.open_source", lambda image, options, name: opened(image, options, name=name)
    )
    predictor = Predictor(Spots(), tile=tile, overlap=8 if tile else 0, options=options)
    (result,) = predictor.stream([path])
    assert result.problem is None, result.problem
    assert not result.holes
    return result


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("placed", [True, False], ids=["placed", "not placed"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_nothing_is_found_in_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable, placed: bool, reader: str
) -> None:
    for package in ("rasterio", "tifffile", "pyvips"):
        pytest.importorskip(package)
    path = tmp_path / ("f.tif" if kind in (float_nodata, not_a_number) else "a.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rasterio's, on writing a file without a place
        kind(path, transform=PLACE if placed else (1, 0, 0, 0, 1, 0), crs="EPSG:32633" if placed else None)
    if kind is mask_beside and reader != "rasterio":  # GDAL's alone to read: the rule refuses it
        monkeypatch.setattr(raster, "has_rasterio", lambda: False)
        with pytest.raises(opening.UserError, match=r"its mask a\.tif\.msk: not read without GDAL.*install.*rasterio"):
            open_source(path)
        return
    for tile in (24, None):
        result = found_in(path, READERS[reader], monkeypatch, tile)
        assert result.detections.boxes.tolist() == [SEEN]
    assert found_in(path, READERS[reader], monkeypatch).num_empty > 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_of_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    there = np.full((48, 64, 1), 255, np.uint8)
    there[:, EDGE:] = 0
    pixels = np.concatenate([scene(), there], axis=2)
    image = Image.fromarray(pixels, "RGBA")
    if mode == "P":
        image = Image.fromarray(np.where(there[:, :, 0] > 0, pixels[:, :, 0] // 100, 3).astype(np.uint8), "P")
        image.putpalette([60, 60, 60, 0, 0, 0, 250, 250, 250, 255, 255, 255])
        image.save(tmp_path / "a.png", transparency=3)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    result = found_in(tmp_path / "a.png", open_source, monkeypatch)
    assert result.detections.boxes.tolist() == [SEEN]


def test_a_box_that_a_network_draws_into_the_missing_part_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Everywhere(Spots):
        def _see(self, window: np.ndarray):  # pyright: ignore[reportIncompatibleMethodOverride]
            found = super()._see(window)
            more = [[2, 2, 8, 8], [33, 30, 39, 36], [27, 40, 31, 44]]  # there; missing; three of its four columns there
            boxes = np.concatenate([found.boxes, np.array(more, np.float32)])
            return type(found)(boxes, np.full(len(boxes), 0.9), np.zeros(len(boxes), int), found.image_size, ("spot",))

    white_nodata(tmp_path / "a.tif", transform=PLACE, crs="EPSG:32633")
    (result,) = Predictor(Everywhere(), options=OpenOptions(channels=3)).stream([tmp_path / "a.tif"])
    assert sorted(result.detections.boxes.tolist()) == [[2, 2, 8, 8], SEEN, [27, 40, EDGE, 44]]
    assert result.num_hidden == 1


def test_an_object_that_meets_a_border_is_found_and_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind it a value that a fill could draw on for ever; in whole images and in tiles, for every place at the border."""
    for left in range(EDGE - 4, EDGE):  # the spot has 4 columns, of which 4 to 1 are there
        pixels = np.full((48, 64, 3), 60, np.uint8)
        pixels[30:34, left : left + 4] = 250
        pixels[:, EDGE:] = 255
        path = tmp_path / f"a{left}.tif"
        geotiff(path, pixels, PLACE, "EPSG:32633", nodata=255, photometric="RGB")
        for tile in (24, None):
            found = found_in(path, open_source, monkeypatch, tile).detections.boxes.tolist()
            assert found == [[left, 30, EDGE, 34]], (left, tile)


def test_what_is_missing_gets_the_mean_of_what_is_near() -> None:
    values = np.array([[[10, 1], [20, 3], [255, 255]]], np.uint8)
    there = np.array([[True, True, False]])
    pixels, seen = shown(values, PixelRule(), there)
    assert_array_equal(pixels, [[[10, 1], [20, 3], [15, 2]]])  # of one block: the mean of what is there
    assert seen is not None
    assert_array_equal(seen, there)
    assert (filled(values, np.ones(values.shape, bool)) == 0).all()
    # Of a pixel that lacks one band, that band is filled, and the pixel is there.
    few = np.array([[[0.0, 1.0], [1.0, np.nan]]], np.float32)
    pixels, seen = shown(few, PixelRule(value_range=((0, 1),), bits=8), None)
    assert_array_equal(pixels, [[[0, 255], [255, 255]]])
    assert seen is None


@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=40)
def test_filling_is_within_what_is_there_and_changes_none_of_it(seed: int, share: float, high: int, wide: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(20, 255, (high, wide, 2)).astype(np.uint8)
    lacking = (
        np.repeat(rng.random((high, wide, 1)) < share, 2, axis=2) if seed % 2 else rng.random((high, wide, 2)) < share
    )
    found = filled(pixels, lacking)
    for band in range(2):
        kept = pixels[:, :, band][~lacking[:, :, band]]
        assert_array_equal(found[:, :, band][~lacking[:, :, band]], kept)
        if kept.size:
            assert kept.min() <= found[:, :, band].min() <= found[:, :, band].max() <= kept.max()
        else:
            assert (found[:, :, band] == 0).all()


def test_filling_is_what_loops_over_blocks_find() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (20, 27, 1)).astype(np.uint8)
    gone = np.zeros((20, 27), bool)
    gone[:, 14:], gone[3:5, 2:9], gone[12:, :6] = True, True, True
    found = filled(pixels, gone[:, :, None])[:, :, 0]
    sums, counts = pixels[:, :, 0] * ~gone, ~gone * 1.0

    def around(sums: np.ndarray, counts: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = -(-sums.shape[0] // block), -(-sums.shape[1] // block)
        blocks = np.zeros((2, rows, columns))
        for y, x in np.ndindex(*sums.shape):
            blocks[:, y // block, x // block] += sums[y, x], counts[y, x]
        if rows * columns > 1:
            wider = around(blocks[0], blocks[1], 2)
            blocks += 4 * np.stack([wider[0] / wider[1], np.ones((rows, columns))])
        out = np.zeros((2, *sums.shape))
        for y, x in np.ndindex(*sums.shape):
            v, u = (y + 0.5) / block - 0.5, (x + 0.5) / block - 0.5
            for j, i in np.ndindex(2, 2):
                row, column = int(np.floor(v)) + j, int(np.floor(u)) + i
                share = (1 - abs(v - row)) * (1 - abs(u - column))
                out[:, y, x] += share * blocks[:, min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)]
        return out[0], out[1]

    total, number = around(sums.astype(float), counts, 8)
    assert np.abs(found - np.where(gone, total / number, pixels[:, :, 0])).max() <= 0.51


def test_a_window_filled_is_within_the_values_of_what_is_there(tmp_path: Path) -> None:
    white_nodata(tmp_path / "a.tif", transform=PLACE, crs="EPSG:32633")
    with open_source(tmp_path / "a.tif") as source:
        pixels, there = source.window(0, 0, 64, 48, (24, 32))
        assert there is not None
        assert_array_equal(there, np.broadcast_to(np.arange(32) < EDGE // 2, (24, 32)))
        assert 60 <= pixels[:, EDGE // 2 + 2 :].min() <= pixels[:, EDGE // 2 + 2 :].max() < 70


@given(
    box=st.tuples(*[st.floats(-5, 25)] * 2, *[st.floats(0.1, 20)] * 2),
    seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
)
def test_hidden_counts_the_pixels_of_a_box(box: tuple[float, ...], seed: int, share: float) -> None:
    there = np.random.default_rng(seed).random((16, 20)) >= share
    x, y, w, h = box
    corners = np.array([[x, y, x + w, y + h]])
    xs = [k for k in range(20) if round(x) <= k < round(x + w)]
    ys = [k for k in range(16) if round(y) <= k < round(y + h)]
    if not xs or not ys or x < 0 or y < 0 or x + w > 20 or y + h > 16:
        return
    cx, cy = int(np.floor(x + w / 2)), int(np.floor(y + h / 2))
    xs, ys = sorted({*xs, cx}), sorted({*ys, cy})
    cells = [there[k, j] for k in ys for j in xs]
    assert hidden(corners, there)[0] == (not there[cy, cx] and 2 * sum(not cell for cell in cells) >= len(cells))


@given(
    box=st.tuples(*[st.floats(-5, 25)] * 2, *[st.floats(0.1, 20)] * 2),
    seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
)
def test_a_box_ends_where_its_pixels_do(box: tuple[float, ...], seed: int, share: float) -> None:
    there = np.random.default_rng(seed).random((16, 20)) >= share
    x, y, w, h = box
    corners = np.array([[x, y, x + w, y + h]])
    (kept,) = trimmed(corners, there)
    met = [
        (j, k)
        for k in range(16)
        for j in range(20)
        if there[k, j] and j + 1 > x and j < x + w and k + 1 > y and k < y + h
    ]
    if hidden(corners, there)[0] or not met or x < 0 or y < 0 or x + w > 20 or y + h > 16:
        return
    xs, ys = [j for j, _ in met], [k for _, k in met]
    assert_array_equal(kept, [max(x, min(xs)), max(y, min(ys)), min(x + w, max(xs) + 1), min(y + h, max(ys) + 1)])


@pytest.mark.parametrize(
    ("dtype", "nodata", "values", "expected"),
    [
        ("uint8", 255.0, [254, 255], [False, True]),
        ("uint8", -9999.0, [241, 0], [False, False]),  # -9999 modulo 256 is 241
        ("int16", -9999.0, [-9999, 0], [True, False]),
        ("float32", float("nan"), [np.nan, 0], [True, False]),
        ("float32", -3.40282e38, [-3.4028234663852886e38, 0], [True, False]),
        ("float32", 0.1, [0.1, 0.2], [True, False]),
        ("float32", float("-inf"), [-np.inf, 0], [True, False]),
        ("float32", float("inf"), [1, 0], [False, False]),
        ("float32", -1.7976931348623157e308, [-3.4028234663852886e38, 0], [False, False]),
        ("uint16", float("nan"), [0, 1], [False, False]),
        ("uint16", float("inf"), [0, 1], [False, False]),
    ],
)
def test_no_data_is_compared_in_the_type_of_the_values(
    dtype: str, nodata: float, values: list[float], expected: list[bool]
) -> None:
    assert_array_equal(is_nodata(np.array(values, dtype), nodata), expected)
