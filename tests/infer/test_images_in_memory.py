"""Every form that a program holds an image in, with one meaning, and one line for each that has none."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flyspeck.errors import UserError
from flyspeck.infer.inputs import items_of
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.source import open_source
from flyspeck.infer.windows import OpenOptions
from flyspeck.types import Detections

RED = np.zeros((20, 30, 3), np.uint8)
RED[..., 0], RED[5, 7, 1] = 200, 90


class Seen:
    """A model that keeps the windows it is given."""

    def __init__(self) -> None:
        self.windows: list[np.ndarray] = []

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        self.windows += windows
        return [Detections.empty(w.shape[:2]) for w in windows]


def seen(image: Any, *, options: OpenOptions | None = None, **asked: Any) -> list[np.ndarray]:
    model = Seen()
    Predictor(model, options=options or OpenOptions(channels=3)).predict(image, **asked)
    return model.windows


def png(pixels: np.ndarray = RED) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


CHW = np.ascontiguousarray(RED.transpose(2, 0, 1))
FORMS: dict[str, Any] = {
    "array": RED,
    "channels first": CHW,
    "a view that is not contiguous": np.asfortranarray(RED),
    "float": RED / 255,
    "float32": (RED / 255).astype(np.float32),
    "tensor": torch.from_numpy(CHW),
    "tensor, channels last": torch.from_numpy(RED),
    "float tensor": torch.from_numpy(CHW).float() / 255,
    "tensor with a gradient": (torch.from_numpy(CHW).float() / 255).requires_grad_(),
    "float64 tensor": torch.from_numpy(CHW).double() / 255,
    "bytes": png(),
    "bytearray": bytearray(png()),
    "memoryview": memoryview(png()),
    "Pillow": Image.fromarray(RED),
    "Pillow, palette": Image.fromarray(RED).quantize(8).convert("P"),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_show_the_same_pixels(form: str) -> None:
    for given_, count in ((FORMS[form], 1), ([FORMS[form], RED], 2), (iter([FORMS[form]]), 1)):
        windows = seen(given_)
        assert len(windows) == count
        assert np.array_equal(windows[0], RED), form
        assert windows[0].dtype == np.uint8


def test_files_folders_patterns_and_open_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "deep/b.png", "deep/[c].png"):
        (tmp_path / name).write_bytes(png())
    assert len(seen(tmp_path)) == len(seen(str(tmp_path))) == 3
    assert len(seen(f"{tmp_path}/*.png")) == 1
    assert len(seen(f"{tmp_path}/**/*.png")) == 3
    assert len(seen(tmp_path / "deep" / "[c].png")) == 1  # a file of that name goes before the pattern
    assert len(seen([tmp_path / "a.png", tmp_path / "deep"])) == 3
    with (tmp_path / "a.png").open("rb") as file:
        assert np.array_equal(seen(file)[0], RED)
    with (tmp_path / "a.png").open("rb") as file:
        called = [result.item.image_id for result in Predictor(Seen()).stream([tmp_path, file, RED])]
    assert called == [*(str(tmp_path / name) for name in ("a.png", "deep/[c].png", "deep/b.png", "a.png")), None]
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as packed:
        packed.write(tmp_path / "a.png", "a.png")
    with zipfile.ZipFile(tmp_path / "z.zip") as packed, packed.open("a.png") as file:
        assert np.array_equal(seen(file)[0], RED)


def test_a_pillow_image_is_its_file(tmp_path: Path) -> None:
    """Orientation, transparency, palettes and 16 bits as the file of the same image gives them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    see_through = np.dstack([RED, np.full(RED.shape[:2], 255, np.uint8)])
    see_through[:10, :, 3] = 0
    grey16 = (np.arange(600, dtype=np.uint16) * 100).reshape(20, 30)
    for name, image, kind in (
        ("turned", Image.fromarray(RED), "PNG"),
        ("alpha", Image.fromarray(see_through), "PNG"),
        ("grey", Image.fromarray(RED).convert("L"), "PNG"),
        ("one bit", Image.fromarray(RED).convert("1"), "PNG"),
        ("16 bits", Image.fromarray(grey16), "PNG"),
        ("cmyk", Image.fromarray(RED).convert("CMYK"), "TIFF"),
    ):
        path = tmp_path / f"{name}.{kind.lower()}"
        image.save(path, kind, **({"exif": exif} if name == "turned" else {}))
        with Image.open(path) as opened:
            (from_file,), (from_image,) = seen(path), seen(opened)
        assert from_file.dtype == from_image.dtype, name
        assert np.array_equal(from_file, from_image), name
    assert seen(tmp_path / "turned.png")[0].shape == (30, 20, 3)


@given(
    height=st.integers(1, 9), width=st.integers(1, 9), channels=st.sampled_from([1, 3, 4]), first=st.booleans(),
    order=st.sampled_from(["rgb", "bgr"]), wide=st.booleans(),
)  # fmt: skip
def test_channels_are_found_wherever_they_stand(
    height: int, width: int, channels: int, first: bool, order: str, wide: bool
) -> None:
    pixels = (
        np.random.default_rng(7).integers(0, 256, (height, width, channels)).astype(np.uint16 if wide else np.uint8)
    )
    expected = pixels if order == "rgb" or channels == 1 else pixels[:, :, [2, 1, 0, 3][:channels]]
    options = OpenOptions()
    known = (1, 3, 4)
    if first and width not in known:
        pixels = pixels.transpose(2, 0, 1)
    assert np.array_equal(seen(pixels, options=options, channel_order=order)[0], expected)
    if height not in known or first:
        tensor = torch.from_numpy(np.ascontiguousarray(expected.transpose(2, 0, 1)))
        if not wide:
            assert np.array_equal(seen(tensor, options=options)[0], expected)


def test_blue_first_where_it_is_said() -> None:
    assert np.array_equal(seen(RED[..., ::-1], channel_order="bgr")[0], RED)
    assert np.array_equal(seen(png(), channel_order="bgr")[0], RED)  # a file says its own order
    assert seen(RED[..., 0], channel_order="bgr")[0].shape == (20, 30, 1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 20, 30, 3), np.uint8), "is no image; a batch: give the images of it"),
        (torch.zeros(2, 3, 20, 30), "a batch: give the images of it"),
        (np.zeros((1, 2, 20, 30, 3), np.uint8), "of shape .* is no image"),
        (np.zeros(9, np.uint8), "of shape .* is no image"),
        (np.zeros((0, 30, 3), np.uint8), "of shape .* is no image"),
        (np.zeros((20, 30, 3), np.int64), "not .* of int64"),
        (np.zeros((20, 30), bool), "not .* of bool"),
        (np.zeros((20, 30), complex), "not .* of complex"),
        (np.zeros((20, 30), object), "not .* of object"),
        (np.full((20, 30, 3), 254.0), "from 254 to 254, where 0 is black and 1 is white"),
        (np.full((20, 30, 3), -0.1), "where 0 is black"),
        (np.full((20, 30, 3), np.nan), "where 0 is black"),
        (b"", "the file is empty"),
        (b"not an image at all", "not an image of a known kind"),
        (png()[:60], "bytes 1"),
        (io.StringIO("x"), "open for text"),
        (io.BytesIO(b""), "file 1: the file is empty"),
        (7, "int is no image; give a path"),
        (None, "NoneType is no image"),
        ({"image": RED}, "dict is no image"),
        ([[RED]], "list is no image"),
        ([RED, 7], "image 2: int is no image"),
        ("no/such/*.png", "no file matches"),
        ("no/such.png", "no such image file"),
    ],
)
def test_what_is_no_image_is_one_line(image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        seen(image)
    assert "\n" not in str(caught.value)


def test_a_wrong_order_is_said() -> None:
    with pytest.raises(UserError, match="channel order of 'brg'"):
        seen(RED, channel_order="brg")
    with pytest.raises(UserError, match="not in the order BGR"):
        seen(np.zeros((20, 30, 5), np.uint8), options=OpenOptions(), channel_order="bgr")


def test_one_wrong_image_is_its_own_result() -> None:
    results = list(Predictor(Seen()).stream([RED, np.zeros((2, 2, 2, 2)), b"no", RED]))
    assert [result.problem is None for result in results] == [True, False, False, True]


@pytest.mark.parametrize(("batch_size", "readers"), [(1, 1), (8, 1), (2, 2)])
def test_a_generator_that_raises_raises_and_what_came_before_is_given(batch_size: int, readers: int) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield RED
        yield RED
        raise ZeroDivisionError("the camera is gone")

    stream = Predictor(Seen(), batch_size=batch_size, readers=readers).stream(frames())
    for _ in range(2):
        assert len(next(stream).detections) == 0
    with pytest.raises(ZeroDivisionError, match="the camera is gone"):
        next(stream)


def test_twelve_bits_are_twelve_bits_in_memory_too(tmp_path: Path) -> None:
    """A file, its Pillow image, its array and a tensor of it show the same."""
    grey = (RED[..., 0].astype(np.uint16) + np.arange(30, dtype=np.uint16)) * 16
    Image.fromarray(grey).save(tmp_path / "a.png")
    options = OpenOptions(channels=1, find_range=True)
    first = seen(tmp_path / "a.png", options=options)[0]
    assert first.dtype == np.uint8
    for form in (grey, Image.open(tmp_path / "a.png"), torch.from_numpy(grey.astype(np.int32)).to(torch.uint16)):
        assert np.array_equal(seen(form, options=options)[0], first)
    colours = np.dstack([grey, grey, grey])
    assert np.array_equal(seen(colours, options=OpenOptions(channels=3, find_range=True))[0][..., :1], first)


def test_what_is_masked_is_not_there() -> None:
    mask = np.zeros(RED.shape, bool)
    mask[:8] = True
    for form in (np.ma.MaskedArray(RED, mask), np.ma.MaskedArray(RED.transpose(2, 0, 1), mask.transpose(2, 0, 1))):
        (item,) = items_of(form)
        with open_source(item.image, OpenOptions(channels=3), name="a") as source:
            pixels, there = source.window(0, 0, 30, 20)
        assert there is not None
        assert np.array_equal(there, ~mask[..., 0])
        assert np.array_equal(pixels[8:], RED[8:])


def test_files_that_are_read_or_closed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with (tmp_path / "a.png").open("rb") as file:
        file.read()
        with pytest.raises(UserError, match=r"nothing is left to read in it; seek"):
            seen(file)
    with pytest.raises(UserError, match=r"cannot be read .*closed"):
        seen(file)


def test_a_range_is_for_floating_point_values_too() -> None:
    heat = np.linspace(-10, 40, 600, dtype=np.float64).reshape(20, 30)
    (window,) = seen(heat, options=OpenOptions(channels=1, value_range=(-10, 40)))
    assert (window.min(), window.max()) == (0, 255)


def test_a_prediction_shows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def model(windows: list[np.ndarray]) -> list[Detections]:
        return [Detections([[5, 5, 9, 9]], [0.9], [0], w.shape[:2], ("thing",)) for w in windows]

    predictor = Predictor(model)
    one = predictor(RED)
    assert len(one) == 1  # pyright: ignore[reportArgumentType]
    assert one.boxes.shape == (1, 4)  # pyright: ignore[reportAttributeAccessIssue]
    shown: list[Image.Image] = []
    monkeypatch.setattr(Image.Image, "show", lambda self, title=None: shown.append(self))
    one.show()  # pyright: ignore[reportAttributeAccessIssue]
    assert shown
    assert one._repr_png_().startswith(b"\x89PNG")  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("a.png", "a.json", "a.csv"):
        assert one.save(tmp_path / name).stat().st_size  # pyright: ignore[reportAttributeAccessIssue]
    assert [len(each) for each in predictor([RED, png()])] == [1, 1]  # pyright: ignore[reportGeneralTypeIssues]
    with pytest.raises(AttributeError):
        _ = one.nothing  # pyright: ignore[reportAttributeAccessIssue]
