"""The papers' sets from small files of their layout: what is checked, what is written, and that it can be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import MAKERS
from fakes.drawing import write_text

from flyspeck.data.classification import read_labelled_images
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck_lab.cli.main import main
from flyspeck_lab.prepare import SETS, check_set, known_set, prepare_set

COUNTS = {
    # An image of 700x160 and one of 160x540 become two tiles each; two objects lie where tiles meet and are in both.
    "tinyperson": {"train.json": (6, 6, 1), "test.json": (5, 5, 5)},
    # Riders, sitting people, groups and `ignore` are ignore regions.
    "citypersons": {"train.json": (4, 3, 3), "val.json": (2, 2, 2)},
    "tiny_citypersons": {"train.json": (4, 3, 3), "val.json": (2, 2, 2)},
    # A crowd in each; the box without height is no box.
    "coco": {"train.json": (5, 4, 1), "val.json": (3, 3, 1)},
    "coco100": {"train.json": (5, 4, 1), "val.json": (3, 3, 1)},
    # 5 + 2 images of 2007 and 2012 with the 20 classes each, 4 to test; a difficult object in every image.
    "voc": {"train.json": (7, 40, 7), "test.json": (4, 20, 4)},
    # An ignored region and one of `others` in each; a box without height.
    "visdrone": {"train.json": (4, 7, 2), "val.json": (2, 3, 2)},
    # 15 classes, and 4 or 3 objects besides, one of them difficult more.
    "dota": {"train.json": (5, 19, 1), "val.json": (3, 18, 1)},
}
"""Of each set and part: images, objects that are to be found, ignore regions; counted by hand in `tests/recipes/fakes`."""
FIRST = {"tinyperson": (6, 12), "citypersons": (24, 60), "tiny_citypersons": (6, 15), "coco": (14.31, 20.07)}
"""Width and height of the first box; (8, 12) in the others. Of COCO100, 240 px become 100."""
FIRST["coco100"] = (14.31 * 100 / 240, 20.07 * 100 / 240)


@pytest.mark.parametrize("name", [name for name in SETS if SETS[name].parts])
def test_a_set_becomes_what_its_recipes_read(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    known = known_set(name)
    checks = check_set(known, tmp_path)
    assert checks
    assert not any(check.good for check in checks if "," in check.found)  # thousands of images are missing
    whole = replace(known, files=tuple(replace(f, count=len(list(tmp_path.glob(f.pattern)))) for f in known.files))
    assert all(f.count for f in whole.files), [f.pattern for f in whole.files]
    assert all(check.good for check in check_set(whole, tmp_path))
    written = dict(prepare_set(known, tmp_path, tmp_path / "prepared"))
    assert {path.name for path in written} == set(known.parts)
    for path in written:
        table = read_annotations(path)
        assert table.problems == ()
        assert all(table.path(row).is_file() for row in range(len(table)))
        assert (len(table), int((~table.ignore).sum()), int(table.ignore.sum())) == COUNTS[name][path.name]
    first = read_annotations(tmp_path / "prepared" / "train.json").boxes[0]
    assert (first[2:] - first[:2]).tolist() == pytest.approx(FIRST.get(name, (8, 12)), abs=0.1)


def test_tinyperson_is_cut_with_the_overlap_asked_for(tmp_path: Path) -> None:
    MAKERS["tinyperson"](tmp_path)
    written = dict(prepare_set(known_set("tinyperson"), tmp_path, tmp_path / "out", overlap=100))
    tiles = written[tmp_path / "out" / "train.json"]
    # 700 = 640 and one moved back to 60; 540 = 512 and one moved back to 28; two images are smaller than a tile.
    assert len(tiles) == 2 + 2 + 1 + 1
    assert set(map(tuple, tiles.sizes.tolist())) == {(160, 640), (512, 160), (200, 256), (160, 200)}


def test_voc_takes_the_listed_images_of_both_years(tmp_path: Path) -> None:
    MAKERS["voc"](tmp_path)
    written = dict(prepare_set(known_set("voc"), tmp_path, tmp_path / "out"))
    assert len(written[tmp_path / "out" / "train.json"]) == 5 + 2
    assert len(written[tmp_path / "out" / "test.json"]) == 4
    write_text(tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/test.txt", "000002\n000012\n")
    with pytest.raises(UserError, match="1 of 2 listed images"):
        list(prepare_set(known_set("voc"), tmp_path, tmp_path / "again"))


def test_wider_face_is_checked_and_read_as_it_is(tmp_path: Path) -> None:
    MAKERS["widerface"](tmp_path)
    found = {check.what: check for check in check_set(known_set("widerface"), tmp_path)}
    assert found["wider_face_split/wider_face_*_bbx_gt.txt"].good
    assert found["WIDER_train/images/*/*.jpg"].found == "6 of 12,880"
    assert read_annotations(tmp_path / "wider_face_split/wider_face_val_bbx_gt.txt").num_boxes == 3 + 1 + 2
    write_text(tmp_path / "WIDER_val.zip", "cut off")
    assert not {c.what: c for c in check_set(known_set("widerface"), tmp_path)}["WIDER_val.zip"].good
    assert "WIDER_val.zip" not in {c.what for c in check_set(known_set("widerface"), tmp_path, hashes=False)}


def test_hashes_of_needed_files(tmp_path: Path) -> None:
    write_text(tmp_path / "train", "not CIFAR")
    found = {check.what: check for check in check_set(known_set("cifar100"), tmp_path)}
    assert found["train"].found == "MD5 c7296b8a6e6873824a898848dd5ece04"  # of "not CIFAR", by md5sum
    assert not found["train"].good
    assert found["test"].found == "missing"
    own = replace(known_set("cifar100"), md5={"train": found["train"].found.removeprefix("MD5 ")})
    assert [check.good for check in check_set(own, tmp_path)] == [True]


def test_every_set_has_a_layout_to_test_with() -> None:
    assert set(MAKERS) == set(SETS)


@pytest.mark.parametrize(("name", "sizes"), [("cifar100", [8, 8]), ("imagenet32", [20, 2])])
def test_small_images_are_checked_and_read_as_they_are(name: str, sizes: list[int], tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    known = known_set(name)
    assert all(check.good for check in check_set(replace(known, md5={}), tmp_path))
    assert {check.what for check in check_set(known, tmp_path) if not check.good} <= set(
        known.md5
    )  # not the real files
    assert [len(read_labelled_images(tmp_path, split)) for split in ("train", "val")] == sizes


def test_imagenet_layout_is_what_pretraining_reads(tmp_path: Path) -> None:
    MAKERS["imagenet"](tmp_path)
    assert [check.found for check in check_set(known_set("imagenet"), tmp_path)] == ["2 of 1,281,167", "2 of 50,000"]
    assert len(read_labelled_images(tmp_path, "train", size=32)) == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in SETS)
    assert main(["prepare", "visdron"]) == 2
    assert "visdrone" in capsys.readouterr().err
    MAKERS["visdrone"](tmp_path)
    assert main(["prepare", "visdrone", "--root", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "BAD VisDrone2019-DET-train/images/*.jpg: 4 of 6,471" in captured.out
    assert "github.com/VisDrone" in captured.err
    assert main(["prepare", "visdrone", "--root", str(tmp_path), "--anyway"]) == 0
    assert (tmp_path / "prepared" / "train.json").is_file()
    assert main(["prepare", "visdrone", "--root", str(tmp_path / "nowhere")]) == 2
