"""A large JPEG or PNG gives the windows of the whole image, and no array of it is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flyspeck.data import copied
from flyspeck.data.images import read_image
from flyspeck.errors import UserError
from flyspeck.infer import opening
from flyspeck.infer.pillow_windows import PillowSource
from flyspeck.infer.source import open_source
from flyspeck.infer.windows import OpenOptions

OPTIONS = {
    "plain": OpenOptions(),
    "range": OpenOptions(value_range=(20, 200), bits=8),
    "one band": OpenOptions(bands=(1,)),
}


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_ONE_PIECE", 1000)


def written(path: Path, shape: tuple[int, ...], **how: object) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).save(path, **how)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("shape", [(50, 70), (50, 70, 3)])
def test_windows_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], name: str, options: OpenOptions
) -> None:
    path = written(tmp_path / name, shape)
    found = []
    for limit in (1000, 10**9):
        monkeypatch.setattr(opening, "_ONE_PIECE", limit)
        with open_source(path, options) as source:
            assert isinstance(source, PillowSource) is (limit == 1000)
            assert source.size == (50, 70)
            parts = [source.read(3, 5, 40, 37), source.read(0, 0, 70, 50, (25, 35)), source.read(69, 49, 70, 50)]
            found.append((parts, source.bands, source.note, source.value_range))
    assert found[0][1:] == found[1][1:]
    for one, other in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_pillow_holds_otherwise_is_read_whole(tmp_path: Path) -> None:
    """Transparency is laid on black, an image that lies on its side is turned."""
    alpha = written(tmp_path / "alpha.png", (50, 70, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = written(tmp_path / "turned.jpg", (50, 70, 3), exif=exif)
    for path, size in ((alpha, (50, 70)), (turned, (70, 50))):
        with open_source(path) as source:
            assert not isinstance(source, PillowSource)
            assert source.size == size


def test_a_cut_file_and_a_band_that_is_not_there_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jpg", (50, 70, 3))
    with pytest.raises(UserError, match=r"a\.jpg.*bands 4 of an image that has 3"):
        open_source(path, OpenOptions(bands=(4,)))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"a\.jpg.*broken"):
        open_source(path)


@pytest.mark.parametrize("shape", [(50, 70), (50, 70, 3), (1, 70, 3)])
def test_an_image_is_copied_strip_by_strip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    path = written(tmp_path / "a.png", shape)
    whole = read_image(path)
    for pixels in (1, 70, 140, 491):
        monkeypatch.setattr(copied, "AT_ONCE", pixels)
        again = read_image(path)
        np.testing.assert_array_equal(again, whole)
        assert again.flags.writeable
