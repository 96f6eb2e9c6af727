"""Every folder format: label files without image, images without label file, unread kinds, pairs of one stem; and `predict`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.images import EXTENSIONS
from flyspeck.data.readers import places, read_annotations
from flyspeck.infer.source import find_items, remarks_on

VOC = "<annotation><filename>{0}.png</filename><object><name>car</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>"  # noqa: E501
KITTI = "Car 0 0 0 1 2 9 8 1 1 1 1 1 1 1\n"
LABELME = (
    '{"version": "5", "flags": {}, "imagePath": "X.png", "shapes": '
    '[{"label": "car", "points": [[1, 2], [9, 8]], "shape_type": "rectangle"}]}'
)
FORMATS: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "yolo": ("labels/{}.txt", "images", lambda stem: "0 0.5 0.5 0.2 0.2\n"),
    "voc": ("Annotations/{}.xml", "JPEGImages", VOC.format),
    "dota": ("labelTxt/{}.txt", "images", lambda stem: "1 2 9 2 9 8 1 8 ship 0\n"),
    "visdrone": ("annotations/{}.txt", "images", lambda stem: "1,2,8,6,1,4,0,0\n"),
    "kitti": ("label_2/{}.txt", "image_2", lambda stem: KITTI),
    "labelme": ("{}.json", ".", lambda stem: LABELME.replace("X", stem)),
    "supervisely": (
        "ds/ann/{}.png.json",
        "ds/img",
        lambda stem: '{"size": {"height": 30, "width": 40}, "objects": []}',
    ),
}
"""By format: where label files and images lie, and a label file of a stem."""


def build(folder: Path, name: str, labels: str, images: tuple[str, ...]) -> Path:
    label, place, text = FORMATS[name]
    for stem in labels:
        path = folder / label.format(stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(stem))
    for image in images:
        (folder / place).mkdir(parents=True, exist_ok=True)
        if image.endswith(".xyz"):
            (folder / place / image).write_bytes(b"something")
        else:
            Image.new("L", (40, 30)).save(folder / place / image)
    return folder


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_label_file_without_image_is_counted_and_named(name: str, tmp_path: Path) -> None:
    table = read_annotations(build(tmp_path, name, "abc", ("a.png",)), format=name)
    assert any("2 " in note and "b" in note and "no image" in note for note in table.notes), table.notes


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_an_image_without_label_file_is_counted_and_named(name: str, tmp_path: Path) -> None:
    table = read_annotations(build(tmp_path, name, "a", ("a.png", "b.png", "c.png")), format=name)
    assert any(
        "2 " in note and "b.png" in note and "label file" in note.replace("annotation", "label") for note in table.notes
    )


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_images_of_a_kind_that_is_not_read_are_counted_and_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "UNREAD", {".xyz": "some-extra"})
    table = read_annotations(build(tmp_path, name, "ab", ("a.png", "b.png", "c.xyz")), format=name)
    assert any(
        "1 image is a .xyz file" in note and "flyspeck[some-extra]" in note and "c.xyz" in note for note in table.notes
    )


@pytest.mark.parametrize("name", ["yolo", "dota", "visdrone", "kitti"])  # the others name their image whole
def test_two_images_of_one_stem_are_said(name: str, tmp_path: Path) -> None:
    table = read_annotations(build(tmp_path, name, "a", ("a.bmp", "a.png")), format=name)
    assert any("a.bmp and a.png" in note for note in table.notes)


def test_inspect_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(build(tmp_path, "yolo", "abc", ("a.png",)))]) == 0
    assert "note: 2 label files have no image, and their objects are lost (b.txt, c.txt)" in capsys.readouterr().out


def test_predict_counts_and_names_what_it_passes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "UNREAD", {".xyz": "some-extra", ".raw": ""})
    folder = build(tmp_path / "deep" / "er", "yolo", "a", ("a.png", "a.bmp", "c.xyz"))
    assert len(find_items([tmp_path])[0]) == 2
    (unread,) = remarks_on([tmp_path])
    assert unread.startswith(f"{tmp_path}: 1 image is a .xyz file")
    assert "c.xyz" in unread
    assert remarks_on([folder / "images" / "a.png"]) == []
    assert ".xyz" not in EXTENSIONS
