from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from flyspeck.data.enlarge import resample
from flyspeck.errors import UserError
from flyspeck.infer import raster
from flyspeck.infer.source import find_items, matched, open_source, remarks_on
from flyspeck.infer.windows import OpenOptions


def gradient(height: int = 90, width: int = 130, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [(x + y) % 256, x * 2 % 256, y * 2 % 256, (x * y) % 256]
    return np.stack(planes[:channels], axis=2).astype(np.uint8)


def test_arrays_and_memory_maps(tmp_path: Path) -> None:
    pixels = np.arange(60, dtype=np.uint16).reshape(6, 10)
    np.save(tmp_path / "a.npy", pixels)
    for image in (pixels, tmp_path / "a.npy"):
        with open_source(image) as source:
            assert source.size == (6, 10)
            assert_array_equal(source.read(2, 1, 5, 4)[:, :, 0], pixels[1:4, 2:5])
    with pytest.raises(ValueError, match="closed"):
        source.read(0, 0, 1, 1)


def test_a_window_is_its_own_memory() -> None:
    pixels = gradient()
    window = open_source(pixels).read(0, 0, 5, 5)
    window[:] = 0
    assert pixels[:5, :5].any()


def test_image_files(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    with open_source(tmp_path / "a.png") as source:
        assert_array_equal(source.read(10, 20, 30, 50), gradient()[20:50, 10:30])


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif"])
def test_frames_and_pages_that_are_not_read_are_told(tmp_path: Path, name: str) -> None:
    first, second = Image.fromarray(gradient()), Image.fromarray(255 - gradient())
    first.save(tmp_path / name, save_all=True, append_images=[second])
    with open_source(tmp_path / name) as source:
        assert "the first of its 2 frames or pages is read" in source.note
    first.save(tmp_path / name)
    with open_source(tmp_path / name) as source:
        assert "frames" not in source.note


def test_smaller_copies_in_a_tiff_are_no_pages(tmp_path: Path) -> None:
    first = Image.fromarray(gradient())
    first.save(tmp_path / "a.tif", save_all=True, append_images=[first.resize((65, 45))])
    with open_source(tmp_path / "a.tif") as source:
        assert "pages" not in source.note


def test_resample_halves_by_averaging() -> None:
    flat = np.full((8, 8, 1), 40000, np.uint16)
    assert_array_equal(resample(flat, (4, 4)), np.full((4, 4, 1), 40000))
    ramp = np.repeat(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None], 8, axis=0)
    # Pillow's triangle filter of two pixels: inner values are the mean of the ramp there: (10 i + 5) at i = 2.5, 4.5.
    assert_array_equal(resample(ramp, (4, 4))[0, 1:3, 0], [25, 45])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("a.npy", b"nonsense", "not an array file"), ("a.png", b"nonsense", "not an image"), ("a.png", b"", "empty")],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / name)


def test_the_limit_on_pixels_names_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "has_pyvips", lambda: False)
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"over the limit.*install.*pyvips"):
        open_source(tmp_path / "a.png", OpenOptions(max_pixels=1000))


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/b.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    items, categories = find_items([tmp_path])
    assert categories is None
    assert [(i.name, i.image_id) for i in items] == [("a/b.png", 1), ("a/z.JPG", 2), ("b.png", 3)]
    # The same name from two places is told apart by its path.
    items, _ = find_items([tmp_path / "b.png", tmp_path / "a/b.png"])
    assert len({i.name for i in items}) == 2


def test_a_coco_json_keeps_its_ids(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(gradient()).save(tmp_path / "images" / "x.png")
    table = {"images": [{"id": 77, "file_name": "x.png"}], "categories": [{"id": 5, "name": "boat"}], "annotations": []}
    (tmp_path / "t.json").write_text(json.dumps(table))
    items, categories = find_items([tmp_path / "t.json"])
    assert items[0].image_id == 77
    assert items[0].image == tmp_path / "images" / "x.png"
    assert categories is not None
    assert (categories.names, categories.ids) == (("boat",), (5,))


def test_other_annotations_name_images_too_and_what_is_none_is_an_image(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "x.png")
    Image.fromarray(gradient()).save(tmp_path / "photo.unknown", format="PNG")
    (tmp_path / "t.csv").write_text("image_path,xmin,ymin,xmax,ymax,label\nx.png,1,2,5,6,boat\n")
    items, categories = find_items([tmp_path / "t.csv"])
    assert [(i.name, i.image, i.image_id) for i in items] == [("x.png", tmp_path / "x.png", "x.png")]
    assert categories is not None
    assert (categories.names, categories.ids) == (("boat",), (1,))
    items, categories = find_items([tmp_path / "photo.unknown", tmp_path / "x.png"])
    assert categories is None
    assert [i.name for i in items] == ["photo.unknown", "x.png"]
    with pytest.raises(UserError, match="alone"):
        find_items([tmp_path / "t.csv", tmp_path / "x.png"])


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid json"), ("[]", "not a COCO"), ('{"images": [], "categories": []}', "no image")],
)
def test_wrong_json(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=message):
        find_items([tmp_path / "t.json"])


def test_a_pattern_that_no_shell_has_expanded(tmp_path: Path) -> None:
    """In quotes, or on Windows: the files that it matches, by name; a file that is called so is itself."""
    for name in ("b.png", "a.png", "c.jpg", "sub/d.png", "e[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in matched(tmp_path / "*.png")]
    assert names == ["a.png", "b.png", "e[1].png"]
    assert len(matched(f"{tmp_path}/**/*.png")) == 4
    assert matched(tmp_path / "e[1].png") == [tmp_path / "e[1].png"]
    assert matched(tmp_path / "absent.png") == [tmp_path / "absent.png"]  # no pattern: its own line says what is wrong
    with pytest.raises(UserError, match=r"x\*.png: no file matches this pattern; check the folder and the ending"):
        matched(tmp_path / "x*.png")


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    for sources, message in (
        ([tmp_path], "no image"),
        ([tmp_path / "x"], "no such"),
        ([tmp_path / "t.json"] * 2, "alone"),
    ):
        with pytest.raises(UserError, match=message):
            find_items(sources)


def test_videos_in_a_folder_are_named_and_not_those_of_an_earlier_job(tmp_path: Path) -> None:
    for name in ("a.mp4", "sub/b.MOV", "found/c.tracked.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "found" / "flyspeck-results.txt").write_text("c.tracked.mp4\n")
    with pytest.raises(UserError, match=r"2 videos are passed over \(a.mp4, sub.b.MOV\): give each alone"):
        find_items([tmp_path])
    assert remarks_on([tmp_path]) == [
        f"{tmp_path}: 2 videos are passed over (a.mp4, {Path('sub', 'b.MOV')}): give each alone"
    ]


def test_a_link_that_leads_nowhere_and_a_vrt_called_as_an_image_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "mosaic.tif").write_text('<VRTDataset rasterXSize="5" rasterYSize="4"></VRTDataset>')
    said: list[str] = []
    assert [item.name for item in find_items([tmp_path], say=said.append)[0]] == ["a.png"]
    assert any("1 VRT in" in line and "(mosaic.tif) passed over" in line for line in said)
    assert any("1 link to no file in" in line and "(gone.png): passed over" in line for line in said)
