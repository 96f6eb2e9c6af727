"""What an image is called when it is written: never a place outside of the folder that is written to, whatever a set calls it."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from flyspeck.data.image_files import output_names
from flyspeck.data.readers import read_annotations
from flyspeck.data.writers import write_yolo
from flyspeck.errors import UserError
from flyspeck.files import folded, without_ending
from flyspeck.infer.naming import file_names

PARTS = st.sampled_from(["/", "//", "..", ".", "a", "\\", "C:", "images", "\0", " ", ".png", "é"])


@given(st.lists(st.lists(PARTS, max_size=6).map("".join), min_size=1, max_size=4))
@example(["//etc/passwd"])
@example(["/etc/passwd", "///etc/passwd", "../../etc/passwd"])
@example(["...png", "a/...png", "....png", "..png"])
def test_no_name_leads_out(names: list[str]) -> None:
    for found in (output_names(names), output_names(names, ".json"), file_names(names)):
        assert len(found) == len(names)
        for name in found:
            place = os.path.normpath(os.path.join("/out", name))
            assert place.startswith("/out/"), (names, name)


@pytest.mark.parametrize(
    ("name", "less"),
    [
        ("a.png", "a"), ("d.e/a.b.png", "d.e/a.b"), ("a", "a"), ("a.", "a."), (".png", ".png"), ("..png", "..png"),
        ("d/...png", "d/...png"), ("...", "..."), ("..a.png", "..a"),
    ],
)  # fmt: skip
def test_a_name_less_its_ending_is_the_same_under_every_python(name: str, less: str) -> None:
    assert without_ending(PurePosixPath(name)) == PurePosixPath(less)
    for found in (output_names([name]), output_names([name], ".txt"), file_names([name])):
        assert os.path.normpath("/out/" + found[0]).startswith("/out/"), found


@pytest.mark.parametrize("name", ["...png", "a.", "..png"])
def test_readers_take_images_of_odd_names(name: str, tmp_path: Path) -> None:
    """Python 3.13 refuses what is left of `...png` without its ending."""
    Image.new("L", (16, 12), 60).save(tmp_path / name, "PNG")
    (tmp_path / "...json").write_text(
        json.dumps({"imagePath": name, "shapes": [], "imageWidth": 16, "imageHeight": 12})
    )
    assert len(read_annotations(tmp_path, format="labelme")) == 1


@pytest.mark.parametrize(
    "names", [["\u00e9.jpg", "e\u0301.jpg"], ["a/\u00c9.png", "a/e\u0301.jpg"], ["\u00df.jpg", "SS.jpg"]]
)
def test_names_that_a_disk_takes_for_one_are_told_apart(names: list[str]) -> None:
    for found in (output_names(names), output_names(names, ".txt")):
        assert len({folded(Path(name).stem) for name in found}) == len(names), found


def test_an_image_is_copied_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        Image.new("L", (16, 12), 60).save(tmp_path / f"{name}.png")
    images = [{"id": n, "file_name": f"{name}.png", "width": 16, "height": 12} for n, name in enumerate("ab")]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    table = read_annotations(tmp_path / "set.json")
    write_yolo(table, tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.rglob("out/images/**/*.png")}
    assert len(before) == 2

    def half(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("flyspeck.data.writers.shutil.copyfile", half)
        with pytest.raises(UserError, match="No space left"):
            write_yolo(table, tmp_path / "out")
    left = {path: path.read_bytes() for path in tmp_path.rglob("out/images/**/*") if path.is_file()}
    assert left == before
    write_yolo(table, tmp_path / "out", link=True)
    assert all(path.is_symlink() for path in before)
    write_yolo(table, tmp_path / "out")  # what is linked is the image already
    assert all(path.is_symlink() for path in before)
