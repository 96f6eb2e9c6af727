"""A set is measured whole and in tiles: the same pixels, the same detections, and what cannot be read is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.data.enlarge import Enlarge
from flyspeck.errors import UserError
from flyspeck.train import detecting
from flyspeck.train.detecting import detect_all, planned
from flyspeck.train.viewing import Viewing
from flyspeck.types import Detections, ImageBatch

ndimage = pytest.importorskip("scipy.ndimage", reason="needs scipy (extra matlab)")


class Rectangles(nn.Module):
    """Finds the boxes around what is bright on dark ground, to the pixel; keeps what it was shown."""

    divisor, smallest_side = 32, 32

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shown: list[ImageBatch] = []

    def detect(self, images: ImageBatch) -> list[Detections]:
        self.shown.append(images)
        return [self._of(p[:, :h, :w], (h, w)) for p, (h, w) in zip(images.pixels, images.sizes, strict=True)]

    def _of(self, pixels: torch.Tensor, size: tuple[int, int]) -> Detections:
        bright = pixels[0].numpy() > (0.5 if pixels.is_floating_point() else 120)
        parts = [] if bright.all() else ndimage.find_objects(ndimage.label(bright)[0])
        found = np.array([[x.start, y.start, x.stop, y.stop] for y, x in parts], np.float32).reshape(-1, 4)
        return Detections(found, np.full(len(found), 0.9), np.zeros(len(found)), size, ("a",))


def table_of(
    folder: Path, images: dict[str, np.ndarray], sizes: dict[str, tuple[int, int]] | None = None
) -> Annotations:
    """A table of the images, which are written; `sizes` (H, W) where the table says others."""
    folder.mkdir(exist_ok=True)
    for name, pixels in images.items():
        write(folder / name, pixels)
    stated = [(sizes or {}).get(name, pixels.shape[:2]) for name, pixels in images.items()]
    return Annotations(
        image_ids=np.arange(10, 10 + len(images)),
        file_names=tuple(images),
        sizes=np.array(stated, np.int64),
        image_index=np.zeros(0, np.int64),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, np.int64),
        area=np.zeros(0),
        ignore=np.zeros(0, bool),
        crowd=np.zeros(0, bool),
        box_ids=np.zeros(0, np.int64),
        classes=("a",),
        category_ids=(1,),
        root=folder,
    )


def write(path: Path, pixels: np.ndarray) -> None:
    if path.suffix == ".tif":
        import tifffile

        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    else:
        Image.fromarray(pixels).save(path)


def scattered(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Grey, dark, with bright rectangles of 1 to 8 px a side in cells of 16 px."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width), 20, np.uint8)
    for y in range(0, height - 16, 16):
        for x in range(0, width - 16, 16):
            high, wide = rng.integers(1, 9, 2)
            top, left = rng.integers(2, 6, 2)
            pixels[y + top : y + top + high, x + left : x + left + wide] = 220
    return pixels


def found_by(model: Rectangles, table: Annotations, viewing: Viewing) -> list[Detections]:
    return detect_all(model, table, viewing=viewing, accelerator=Accelerator(cpu=True))


GREY = Viewing(rule=PixelRule(channels=1))
TILED = replace(GREY, tile=(96, 128), overlap=32)


@pytest.mark.parametrize(
    "enlarge", [Enlarge(), Enlarge(2.0), Enlarge(4.0), Enlarge(short_side=300), Enlarge(short_side=300, long_side=310)]
)
def test_tiles_and_whole_images_agree(tmp_path: Path, enlarge: Enlarge) -> None:
    table = table_of(
        tmp_path, {"a.png": scattered(150, 230), "b.png": scattered(100, 90, 1), "c.png": scattered(230, 97, 2)}
    )
    whole = found_by(Rectangles(), table, replace(GREY, enlarge=enlarge))
    model = Rectangles()
    tiled = found_by(model, table, replace(TILED, enlarge=enlarge))
    assert max(batch.pixels.shape[2] * batch.pixels.shape[3] for batch in model.shown) <= 96 * 128
    for one, other, key, size in zip(whole, tiled, table.image_ids, table.sizes, strict=True):
        assert one.image_id == other.image_id == key
        assert one.image_size == other.image_size == tuple(size)
        assert len(one) == len(other) > 1
        apart = np.abs(one.boxes[:, None] - other.boxes[None]).max(2)
        # A pixel that the network sees: a window is resampled to whole pixels, as the image is.
        pixel = 1.2 / enlarge.scale(one.image_size) if enlarge.changes else 0
        assert max(apart.min(0).max(), apart.min(1).max()) <= pixel


def test_boxes_of_the_whole_image_are_the_rectangles(tmp_path: Path) -> None:
    """By hand: a square of 4 px at (100, 60), in tiles of 96x128 in the second column, the first row."""
    pixels = np.full((96, 200), 20, np.uint8)
    pixels[60:64, 100:104] = 220
    table = table_of(tmp_path, {"a.png": pixels})
    for viewing in (GREY, TILED, replace(TILED, enlarge=Enlarge(2.0))):
        (found,) = found_by(Rectangles(), table, viewing)
        np.testing.assert_allclose(found.boxes, [[100, 60, 104, 64]], atol=0.51 * viewing.enlarge.changes)


READINGS: dict[str, tuple[Callable[[np.random.Generator], np.ndarray], str, PixelRule]] = {
    "grey": (lambda rng: rng.integers(0, 256, (70, 90), np.uint8), "png", PixelRule(channels=1)),
    "grey for a colour detector": (lambda rng: rng.integers(0, 256, (70, 90), np.uint8), "png", PixelRule(channels=3)),
    "colour for a grey detector": (
        lambda rng: rng.integers(0, 256, (70, 90, 3), np.uint8),
        "png",
        PixelRule(channels=1),
    ),
    # What is wholly transparent is missing in a window (`flyspeck.infer.missing`), black in a whole image.
    "alpha": (lambda rng: rng.integers(1, 256, (70, 90, 4), np.uint8), "png", PixelRule(channels=3)),
    "alpha as a band": (lambda rng: rng.integers(0, 256, (70, 90, 4), np.uint8), "png", PixelRule(channels=4)),
    "16 bits": (lambda rng: rng.integers(0, 65536, (70, 90), np.uint16), "png", PixelRule(channels=1)),
    "12 bits": (
        lambda rng: rng.integers(0, 4096, (70, 90), np.uint16),
        "png",
        PixelRule(channels=1, value_range=((0.0, 4095.0),)),
    ),
    "bands": (
        lambda rng: rng.integers(0, 4096, (70, 90, 5), np.uint16),
        "tif",
        PixelRule(channels=2, bands=(4, 2), value_range=((0.0, 4095.0), (100.0, 3000.0)), bits=8),
    ),
    "float": (
        lambda rng: rng.normal(0, 1, (70, 90, 2)).astype(np.float32),
        "tif",
        PixelRule(channels=2, value_range=((-2.0, 2.0),), of="float32"),
    ),
}


@pytest.mark.parametrize("enlarge", [Enlarge(), Enlarge(squeeze=(64, 96))], ids=["as it is", "squeezed"])
@pytest.mark.parametrize("kind", READINGS)
def test_windows_hold_the_pixels_of_whole_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, enlarge: Enlarge
) -> None:
    """What a recipe says of bands, values and sizes is done to a large file, read by windows, as to a small one."""
    make, ending, rule = READINGS[kind]
    table = table_of(tmp_path, {f"a.{ending}": make(np.random.default_rng(3))})
    shown = []
    for limit in (10**9, 0):
        monkeypatch.setattr(detecting, "FILE_PIXELS", limit)
        model = Rectangles()
        found_by(model, table, Viewing(rule=rule, enlarge=enlarge))
        (batch,) = model.shown
        shown.append(batch)
    assert shown[0].sizes == shown[1].sizes
    assert shown[0].pixels.dtype == shown[1].pixels.dtype
    # Grey of colours is made before the resampling of a whole image, after it in a window: rounding, thrice.
    atol = 2.0 if kind == "colour for a grey detector" and enlarge.changes else 0.0
    torch.testing.assert_close(shown[0].pixels.float(), shown[1].pixels.float(), atol=atol, rtol=0)


def test_batches_hold_images_of_one_size_and_so_many_pixels(tmp_path: Path) -> None:
    images = {f"{i}.png": np.zeros((40 + i % 2 * 40, 90), np.uint8) for i in range(9)}
    table = table_of(tmp_path, images)
    model = Rectangles()
    # 64x96 and 96x96 as the network takes them; 20,000 pixels are three of the first and two of the second.
    viewing = replace(GREY, pixels_at_once=20_000)
    found = found_by(model, table, viewing)
    assert [one.image_id for one in found] == list(range(10, 19))
    assert [tuple(batch.pixels.shape) for batch in model.shown] == [
        (3, 1, 64, 96),
        (2, 1, 64, 96),
        (2, 1, 96, 96),
        (2, 1, 96, 96),
    ]
    assert replace(viewing, batch_size=1).at_once((64, 96)) == 1
    assert viewing.at_once((4096, 4096)) == 1
    plan = planned(table, viewing, model)
    shares = [plan.share(rank, 3) for rank in range(3)]
    assert sorted(row for share in shares for rows in share.batches for row in rows) == list(range(9))


@pytest.mark.parametrize("viewing", [GREY, TILED], ids=["whole", "tiled"])
@pytest.mark.parametrize("fault", ["cut", "missing", "size"])
def test_an_image_that_cannot_be_used_is_named(tmp_path: Path, viewing: Viewing, fault: str) -> None:
    """A metric over the other images would be another metric."""
    stated = {"b.png": (149, 230)} if fault == "size" else None
    table = table_of(tmp_path, {name: scattered(150, 230) for name in ("a.png", "b.png", "c.png")}, stated)
    if fault == "cut":
        (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:400])
    elif fault == "missing":
        (tmp_path / "b.png").unlink()
    model = Rectangles().train()
    with pytest.raises(UserError) as caught:
        found_by(model, table, viewing)
    assert "b.png" in str(caught.value)
    assert model.training


class NotFinite(Rectangles):
    def _of(self, pixels: torch.Tensor, size: tuple[int, int]) -> Detections:
        found = super()._of(pixels, size)
        return replace(found, boxes=np.where(np.arange(len(found))[:, None] == 1, np.nan, found.boxes))


@pytest.mark.parametrize("viewing", [GREY, TILED], ids=["whole", "tiled"])
def test_boxes_that_are_not_finite_are_an_error_that_names_the_image(tmp_path: Path, viewing: Viewing) -> None:
    table = table_of(tmp_path, {"a.png": scattered(150, 230)})
    with pytest.raises(UserError, match=r"a\.png.*not finite"):
        found_by(NotFinite(), table, viewing)


def test_weights_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    model = Rectangles()
    with torch.no_grad():
        model.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"weights are not finite \(weight\)"):
        found_by(model, table_of(tmp_path, {"a.png": scattered(40, 40)}), GREY)


def test_how_far_it_has_come_is_told_by_pixels(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"a.png": scattered(90, 110), "b.png": scattered(160, 220), "c.png": scattered(90, 110)})
    told: list[Any] = []
    detect_all(
        Rectangles(), table, viewing=replace(TILED, batch_size=2), accelerator=Accelerator(cpu=True), tell=told.append
    )
    # 160x220 are 2 x 2 tiles of 96x128 that share 32 px or more, beside twice 9900 pixels.
    total = 4 * 96 * 128 + 2 * 90 * 110
    shares = [one.share for one in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[1] == pytest.approx(9900 / total)
    assert shares[-1] == pytest.approx(1)
    assert [(one.images, one.of_images) for one in (told[0], told[1], told[-1])] == [(0, 3), (1, 3), (3, 3)]
    assert max(one.tiles for one in told) == 4
    assert "2 of 3 images, 4 of 4 tiles of the next" in [one.words for one in told]
