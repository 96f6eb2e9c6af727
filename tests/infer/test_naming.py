from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyspeck.files import folded
from flyspeck.infer.naming import file_names, inside
from flyspeck.infer.outputs import WRITERS, open_writers
from flyspeck.infer.reading import Result
from flyspeck.infer.source import Item, find_items
from flyspeck.types import Detections

# Names that meet each other: by stem, case, unicode form, ending, folder, and by what is put behind a name.
PARTS = st.sampled_from(
    [
        "a",
        "A",
        "a.jpg",
        "a.JPG",
        "a.png",
        "a.txt",
        "a.jpg.png",
        "a~2",
        "é",
        "e\u0301",
        "É",
        "ß",
        "ss",
        "..",
        "clip.mp4#1",
    ]
)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@given(st.lists(NAMES, unique=True, max_size=12))
def test_no_two_images_share_the_name_of_their_files(names: list[str]) -> None:
    found = file_names(names)
    assert len(found) == len(names)
    files = [folded(name) + ending for name in found for ending in (".txt", ".json", ".png")]
    assert len(set(files)) == len(files)
    folders = {folded(parent.as_posix()) for name in found for parent in Path(name).parents}
    assert not folders & set(files), "a file would be where a folder must be"
    assert not any(Path(name).is_absolute() or ".." in Path(name).parts for name in found)
    assert found == file_names(names)


def test_names_by_hand() -> None:
    assert file_names(["IMG_1.jpg", "IMG_2.jpg"]) == ["IMG_1", "IMG_2"]
    assert file_names(["IMG_1.jpg", "IMG_1.png", "b.tif"]) == ["IMG_1.jpg", "IMG_1.png", "b"]
    assert file_names(["s/a.jpg", "t/a.jpg"]) == ["s/a", "t/a"]
    assert file_names(["a.jpg", "A.jpg"]) == ["a.jpg", "A.jpg~2"]
    assert file_names(["../a.jpg", "a.jpg"]) == ["a.jpg", "a.jpg~2"]
    assert file_names(["a.jpg.png", "a.jpg", "a.png"]) == ["a.jpg", "a.jpg~2", "a.png"]
    assert file_names(["a.1.2.jpg", "a.1.3.jpg"]) == ["a.1.2", "a.1.3"], "dots of a name are no ending"
    assert file_names(["/", ""]) == ["image", "image~2"]


@pytest.mark.parametrize("kind", ["yolo", "geojson", "widerface", "voc", "labelme"])
def test_as_many_files_as_images_in_every_format_of_files(tmp_path: Path, kind: str) -> None:
    names = [
        "a.jpg",
        "a.png",
        "a.JPG",
        "s/a.jpg",
        "s/a.b.jpg",
        "s/a.c.jpg",
        "a.jpg.png",
        "a.npy",
        "e\u0301.png",
        "\u00e9.png",
    ]
    (writer,) = open_writers(tmp_path, [kind], classes=("x",))
    for number, (name, output) in enumerate(zip(names, file_names(names), strict=True)):
        one = Detections(np.array([[1, 2, 3, 4]], np.float32), np.ones(1, np.float32), np.zeros(1), (9, 9), ("x",))
        writer.add(Result(Item(name, np.zeros((9, 9), np.uint8), number, output), one))
    writer.close()
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == len(names)


def test_a_file_of_a_format_an_image_is_known_to_this_test() -> None:
    whole = {"coco", "csv", "gpkg", "geoparquet", "cvat", "label-studio"}
    assert set(WRITERS) - whole == {"yolo", "geojson", "widerface", "voc", "labelme"}


def test_images_of_one_stem_are_told(tmp_path: Path) -> None:
    for name in ("IMG_1.jpg", "IMG_1.png", "b.png"):
        (tmp_path / name).touch()
    said: list[str] = []
    items, _ = find_items([tmp_path], say=said.append)
    assert [item.file_name for item in items] == ["IMG_1.jpg", "IMG_1.png", "b"]
    assert len(said) == 1
    assert "2 images" in said[0]
    assert "IMG_1.jpg.txt" in said[0]


def test_a_file_that_is_named_twice_is_looked_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    said: list[str] = []
    items, _ = find_items([tmp_path, tmp_path / "a.png"], say=said.append)
    assert [item.name for item in items] == ["a.png"]
    assert said == ["note: 1 image is named twice and looked at once"]


@pytest.mark.parametrize(("name", "path"), [("/etc/x.png", "etc/x.png"), ("../../a.png", "a.png"), ("..", "image")])
def test_names_stay_inside_the_folder(name: str, path: str) -> None:
    assert inside(name) == Path(path)
