"""Every odd kind of image file, written here and read back."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageFile, ImageOps

from flyspeck.data import images
from flyspeck.data.images import read_image, read_size
from flyspeck.errors import UserError

# 2 x 3, every pixel different, so that a wrong turn shows.
GREY = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
COLOUR = np.stack([GREY, GREY + 100, 255 - GREY], -1)


def write(path, image, **options):
    image.save(path, **options)
    return path


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def mode(path):
    with Image.open(path) as image:
        return image.mode


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm", "jp2"])
def test_colour_of_lossless_formats(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = write(tmp_path / f"a.{suffix}", Image.fromarray(COLOUR), **options)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert_array_equal(pixels, COLOUR)
    assert read_size(path) == (2, 3)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


def test_grey_has_one_channel_and_repeats_to_three(tmp_path):
    path = write(tmp_path / "a.png", Image.fromarray(GREY))
    assert_array_equal(read_image(path), GREY[:, :, None])
    assert_array_equal(read_image(path, channels=3), np.repeat(GREY[:, :, None], 3, 2))


def test_colour_to_grey_is_luma(tmp_path):
    path = write(tmp_path / "a.png", Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)))
    # ITU-R 601: 0.299, 0.587, 0.114 of 255 = 76.2, 149.7, 29.1
    assert_array_equal(read_image(path, channels=1)[0, :, 0], [76, 150, 29])


def test_one_bit(tmp_path):
    bits = np.array([[0, 255, 0], [255, 255, 0]], np.uint8)
    path = write(tmp_path / "a.png", Image.fromarray(bits).convert("1"))
    assert mode(path) == "1"
    assert_array_equal(read_image(path), bits[:, :, None])


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_keeps_its_values(tmp_path, suffix):
    values = np.array([[0, 1, 255], [256, 40000, 65535]], np.uint16)
    path = write(tmp_path / f"a.{suffix}", Image.fromarray(values))
    for channels in (None, 1, 3):
        pixels = read_image(path, channels=channels)
        assert pixels.dtype == np.dtype("=u2")
        assert_array_equal(pixels, np.repeat(values[:, :, None], channels or 1, 2))


def test_big_endian_sixteen_bit_tiff(tmp_path):
    values = np.array([[1, 258], [40000, 65535]], np.uint16)
    path = tmp_path / "a.tif"
    path.write_bytes(big_endian_tiff(values))
    pixels = read_image(path)
    assert pixels.dtype == np.dtype("=u2")
    assert_array_equal(pixels[:, :, 0], values)


def big_endian_tiff(values):
    """An uncompressed one-strip Motorola-order TIFF, byte by byte."""
    height, width = values.shape
    body = values.astype(">u2").tobytes()
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    entries += struct.pack(">HHII", 279, 4, 1, len(body))
    return b"MM\0*" + struct.pack(">I", 8 + len(body)) + body + struct.pack(">H", 9) + entries + struct.pack(">I", 0)


def test_integers_beyond_sixteen_bits_are_refused_and_floats_kept(tmp_path):
    wide = write(tmp_path / "wide.tif", Image.fromarray(np.array([[0, 70000]], np.int32)))
    floats = write(tmp_path / "float.tif", Image.fromarray(np.array([[-0.5, 3]], np.float32)))
    with pytest.raises(UserError, match=r"wide\.tif: the grey values run from 0 to 70000"):
        read_image(wide)
    found = read_image(floats)
    assert found.dtype == np.float32
    assert_array_equal(found[:, :, 0], [[-0.5, 3]])


def test_palette_is_looked_up(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([9, 8, 7, 100, 0, 200, 255, 255, 0])
    image.putdata([0, 1, 2])
    path = write(tmp_path / "a.png", image)
    assert mode(path) == "P"
    assert_array_equal(read_image(path), [[[9, 8, 7], [100, 0, 200], [255, 255, 0]]])


def test_cmyk_jpeg(tmp_path):
    # C=255, M=Y=K=0 is cyan: R = 255-C = 0, G = B = 255.
    path = write(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (255, 0, 0, 0)), quality=100)
    assert mode(path) == "CMYK"
    pixels = read_image(path)
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels.astype(int) - [0, 255, 255]).max() <= 2


def test_alpha_is_composited_onto_black(tmp_path):
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], np.uint8)  # 51/255 = a fifth
    path = write(tmp_path / "a.png", Image.fromarray(rgba))
    assert_array_equal(read_image(path), [[[200, 100, 50], [0, 0, 0], [40, 20, 10]]])
    path = write(tmp_path / "la.png", Image.fromarray(np.array([[[200, 255], [200, 0]]], np.uint8)))
    assert_array_equal(read_image(path), [[[200], [0]]])


def test_transparent_palette_entry(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([250, 0, 0, 0, 250, 0])
    image.putdata([0, 1])
    path = write(tmp_path / "a.png", image, transparency=0)
    assert_array_equal(read_image(path), [[[0, 0, 0], [0, 250, 0]]])


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_one_pixel(tmp_path, channels):
    path = write(tmp_path / "a.png", Image.new("RGB", (1, 1), (7, 7, 7)))
    assert_array_equal(read_image(path, channels=channels), np.full((1, 1, channels or 3), 7))
    assert read_size(path) == (1, 1)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, suffix, orientation):
    options = {"lossless": True} if suffix == "webp" else {}
    path = write(tmp_path / f"a.{suffix}", Image.fromarray(COLOUR), exif=exif(orientation), **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    pixels = read_image(path)
    assert_array_equal(pixels, expected)
    assert read_size(path) == pixels.shape[:2]


def test_orientation_6_by_hand(tmp_path):
    # The camera was turned: the file's first column, read upwards, is the image's first row.
    path = write(tmp_path / "a.png", Image.fromarray(GREY), exif=exif(6))
    assert_array_equal(read_image(path)[:, :, 0], [[40, 10], [50, 20], [60, 30]])
    assert read_size(path) == (3, 2)


def test_orientation_of_sixteen_bit(tmp_path):
    values = np.array([[1, 2, 3], [40, 50, 60000]], np.uint16)
    path = write(tmp_path / "a.png", Image.fromarray(values), exif=exif(8))
    assert_array_equal(read_image(path)[:, :, 0], [[3, 60000], [2, 50], [1, 40]])


def test_exif_chunk_behind_the_pixels_of_a_png(tmp_path):
    path = write(tmp_path / "a.png", Image.fromarray(GREY))
    body = path.read_bytes()
    end = body.index(b"IEND") - 4
    late = png_chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(body[:end] + late + body[end:])
    assert read_size(path) == (3, 2)
    assert read_image(path).shape == (3, 2, 1)


def test_nonsense_orientation_counts_as_upright(tmp_path):
    path = write(tmp_path / "a.png", Image.fromarray(GREY), exif=exif(77))
    assert_array_equal(read_image(path)[:, :, 0], GREY)
    assert read_size(path) == (2, 3)


def test_first_frame_of_several(tmp_path):
    first, second = Image.new("L", (4, 3), 10), Image.new("L", (4, 3), 200)
    path = write(tmp_path / "a.tif", first, save_all=True, append_images=[second])
    assert_array_equal(read_image(path), np.full((3, 4, 1), 10))


def test_the_content_decides_not_the_name(tmp_path):
    path = write(tmp_path / "really_a_png.jpg", Image.fromarray(COLOUR), format="PNG")
    assert_array_equal(read_image(path), COLOUR)


def noisy(size=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp"])
def test_truncated_file(tmp_path, suffix):
    path = write(tmp_path / f"cut.{suffix}", noisy())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"cut\.{suffix}: the image is broken") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_pillows_global_state_is_left_alone(tmp_path):
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    limit = Image.MAX_IMAGE_PIXELS
    path = write(tmp_path / "a.png", Image.fromarray(GREY))
    read_image(path, max_pixels=None)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "body", [b"", b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\nlies", b"P"]
)
def test_no_image(tmp_path, body):
    path = tmp_path / "lie.jpg"
    path.write_bytes(body)
    for read in (read_image, read_size):
        with pytest.raises(UserError, match=r"lie\.jpg: "):
            read(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png: no such image file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="a folder where an image file was expected"):
        read_size(tmp_path)


def header_only_png(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(header_only_png(50_000, 40_000))
    with pytest.raises(
        UserError, match=r"bomb\.png: the image is 50000 x 40000 = 2000 megapixels, over the limit of 200"
    ):
        read_image(path)
    assert read_size(path) == (40_000, 50_000)


def test_the_limit_is_an_option(tmp_path):
    path = write(tmp_path / "a.png", Image.fromarray(GREY))
    with pytest.raises(UserError, match="over the limit"):
        read_image(path, max_pixels=5)
    assert read_image(path, max_pixels=6).shape == (2, 3, 1)


def test_more_than_pillows_own_limit_opens_without_a_warning(tmp_path):
    # 100 megapixels: Image.open would warn here, and a warning is an error in this suite.
    path = write(tmp_path / "big.png", Image.new("1", (10_000, 10_000)))
    assert read_size(path) == (10_000, 10_000)
    assert read_image(path).shape == (10_000, 10_000, 1)


def test_a_wrong_number_of_channels_is_our_bug(tmp_path):
    with pytest.raises(ValueError, match="channels must be"):
        read_image(tmp_path / "a.png", channels=0)


def test_extensions_cover_the_formats():
    for suffix in (".jpg", ".png", ".webp", ".tif", ".bmp", ".gif", ".jp2", ".pgm"):
        assert suffix in images.EXTENSIONS
