"""The papers' sets from small files of their layout: what is checked, what is written, and that it can be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flyspeck.data.classification import read_labelled_images
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck_lab.cli.main import main
from flyspeck_lab.prepare import SETS, check_set, known_set, prepare_set
from paper_sets import MAKERS, make_imagenet, make_tinyperson, make_visdrone, make_voc, make_widerface, text


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
        assert table.num_boxes >= 1
        sides = (table.boxes[0, 2:] - table.boxes[0, :2]).tolist()
        expected = {"tiny_citypersons": [2, 5], "coco100": [4, 6], "citypersons": [8, 20]}.get(name, [8, 12])
        assert sides == pytest.approx(expected)


def test_tinyperson_is_cut_with_the_overlap_asked_for(tmp_path: Path) -> None:
    make_tinyperson(tmp_path)
    written = dict(prepare_set(known_set("tinyperson"), tmp_path, tmp_path / "out", overlap=100))
    tiles = written[tmp_path / "out" / "train.json"]
    # 1000 = 640 and one moved back to 360; 700 = 512 and one moved back to 188.
    assert len(tiles) == 4
    assert set(map(tuple, tiles.sizes.tolist())) == {(512, 640)}


def test_voc_takes_the_listed_images_of_both_years(tmp_path: Path) -> None:
    make_voc(tmp_path)
    written = dict(prepare_set(known_set("voc"), tmp_path, tmp_path / "out"))
    assert len(written[tmp_path / "out" / "train.json"]) == 2
    assert len(written[tmp_path / "out" / "test.json"]) == 1
    text(tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/test.txt", "000001\n000002\n")
    with pytest.raises(UserError, match="1 of 2 listed images"):
        list(prepare_set(known_set("voc"), tmp_path, tmp_path / "again"))


def test_wider_face_is_checked_and_read_as_it_is(tmp_path: Path) -> None:
    make_widerface(tmp_path)
    found = {check.what: check for check in check_set(known_set("widerface"), tmp_path)}
    assert found["wider_face_split/wider_face_*_bbx_gt.txt"].good
    assert found["WIDER_train/images/*/*.jpg"].found == "1 of 12,880"
    assert read_annotations(tmp_path / "wider_face_split/wider_face_val_bbx_gt.txt").num_boxes == 1
    text(tmp_path / "WIDER_val.zip", "cut off")
    assert not {c.what: c for c in check_set(known_set("widerface"), tmp_path)}["WIDER_val.zip"].good
    assert "WIDER_val.zip" not in {c.what for c in check_set(known_set("widerface"), tmp_path, hashes=False)}


def test_hashes_of_needed_files(tmp_path: Path) -> None:
    text(tmp_path / "train", "not CIFAR")
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
    make_imagenet(tmp_path)
    assert [check.found for check in check_set(known_set("imagenet"), tmp_path)] == ["2 of 1,281,167", "2 of 50,000"]
    assert len(read_labelled_images(tmp_path, "train", size=32)) == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in SETS)
    assert main(["prepare", "visdron"]) == 2
    assert "visdrone" in capsys.readouterr().err
    make_visdrone(tmp_path)
    assert main(["prepare", "visdrone", "--root", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "BAD VisDrone2019-DET-train/images/*.jpg: 1 of 6,471" in captured.out
    assert "github.com/VisDrone" in captured.err
    assert main(["prepare", "visdrone", "--root", str(tmp_path), "--anyway"]) == 0
    assert (tmp_path / "prepared" / "train.json").is_file()
    assert main(["prepare", "visdrone", "--root", str(tmp_path / "nowhere")]) == 2
