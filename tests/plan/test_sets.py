"""Which images are for what: as the parts are called, as `--val` says, and by groups."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from planned_sets import squares, write_set

from flyspeck.errors import UserError
from flyspeck.plan.sets import CHOOSE, REPORT, TRAIN, Sets, arrange, read_sources


def arranged(data: Path, val: Path | None, *, report: bool) -> Sets:
    parts, other = read_sources(data, val, {})
    return arrange(data, parts, other, data.parent / "made", report=report)


def files(sets: Sets, name: str) -> set[str]:
    table = sets.parts[name].table
    return {str(table.path(row).absolute()) for row in range(len(table))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "set"
    place.mkdir()
    return place


def named(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        write_set(folder / f"{name}.json", squares(8, seed=seed), seed=seed)


def test_three_parts_are_taken_as_they_are_called(folder: Path) -> None:
    named(folder, "train", "val", "test")
    sets = arranged(folder, None, report=True)
    assert {name: Path(source.path).stem for name, source in sets.parts.items()} == {
        TRAIN: "train",
        CHOOSE: "val",
        REPORT: "test",
    }
    assert not any(source.written for source in sets.parts.values())


def test_of_two_parts_the_second_is_for_the_report_alone(folder: Path) -> None:
    named(folder, "train", "val")
    sets = arranged(folder, None, report=True)
    assert Path(sets.parts[REPORT].path).stem == "val"
    assert len(files(sets, TRAIN)) + len(files(sets, CHOOSE)) == 8
    assert not files(sets, TRAIN) & files(sets, CHOOSE)
    assert not files(sets, REPORT) & (files(sets, TRAIN) | files(sets, CHOOSE))


def test_what_is_given_to_measure_on_decides_nothing(folder: Path) -> None:
    named(folder, "one", "other")
    sets = arranged(folder / "one.json", folder / "other.json", report=True)
    assert Path(sets.parts[REPORT].path).stem == "other"
    assert files(sets, CHOOSE) < {str(p.absolute()) for p in (folder / "one_images").iterdir()}
    plain = arranged(folder / "one.json", folder / "other.json", report=False)
    assert Path(plain.parts[CHOOSE].path).stem == "other"
    assert len(files(plain, TRAIN)) == 8


def test_one_part_is_divided_in_three(folder: Path) -> None:
    write_set(folder / "all.json", squares(20, seed=5), seed=5)
    sets = arranged(folder / "all.json", None, report=True)
    counts = {name: len(files(sets, name)) for name in (TRAIN, CHOOSE, REPORT)}
    assert counts == {TRAIN: 14, CHOOSE: 3, REPORT: 3}
    for source in sets.parts.values():
        source.write()
        assert Path(source.path).is_file()


def test_images_on_both_sides_are_said(folder: Path) -> None:
    write_set(folder / "train.json", squares(6, seed=1), seed=1)
    content = json.loads((folder / "train.json").read_text())
    content["images"] = content["images"][:5]
    content["annotations"] = content["annotations"][:10]
    (folder / "val.json").write_text((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(content))
    sets = arranged(folder, None, report=False)
    assert any("5 of 6 images of val.json are in train.json too" in note for note in sets.notes)


@pytest.mark.parametrize("report", [False, True])
def test_images_that_are_all_learnt_from_are_not_measured_on(folder: Path, report: bool) -> None:
    one, copies = write_set(folder / "one.json", squares(9), seed=1), folder / "copies"
    copies.mkdir()
    few = json.loads(one.read_text())
    few["images"] = few["images"][2:5]
    few["annotations"] = [entry for entry in few["annotations"] if entry["image_id"] in (3, 4, 5)]
    shutil.copytree(folder / "one_images", copies / "one_images")  # other files of the same pixels
    (copies / "val.json").write_text(json.dumps(few))
    for val, count in ((one, 9), (copies / "val.json", 3)):
        with pytest.raises(UserError, match=rf"all {count} images to \w+ on are among those to learn from") as told:
            arranged(one, val, report=report)
        assert str(val) in str(told.value)
        assert "or none: a part is divided off then" in str(told.value)


def test_few_objects_to_measure_on_are_said(folder: Path) -> None:
    write_set(folder / "train.json", squares(12))
    write_set(folder / "val.json", [[[9, 9, 8, 8]], [], []], seed=1)
    assert (
        "1 object in all among the images to choose on: metrics are rough" in arranged(folder, None, report=False).notes
    )
    write_set(folder / "val.json", squares(10, seed=1), seed=1)
    assert not any("metrics are rough" in note for note in arranged(folder, None, report=False).notes)


@pytest.mark.parametrize(
    ("val", "words"),
    [
        ({"ignored": True}, r"the images to (choose|report) on \(4\) have no object"),
        (
            {"classes": ("other", "names")},
            r"no class of the images to (choose|report) on is one of those to learn \(a, b\)",
        ),
        (
            {"labels": [[0, 0]] * 4},
            "no object of 1 class among the images to (choose|report) on \\(b\\): metrics say nothing of it",
        ),
    ],
)
@pytest.mark.parametrize("report", [False, True])
def test_what_is_given_to_measure_on_must_tell_something(folder: Path, report: bool, val: dict, words: str) -> None:
    both = {"classes": ("a", "b"), "labels": [[0, 1]] * 8}
    write_set(folder / "one.json", squares(8), **both)
    write_set(
        folder / "other.json", squares(4, seed=1), **({"classes": ("a", "b"), "labels": [[0, 1]] * 4} | val), seed=1
    )
    if "labels" in val:
        assert any(
            re.search(words, note) for note in arranged(folder / "one.json", folder / "other.json", report=report).notes
        )
        return
    with pytest.raises(UserError, match=words) as told:
        arranged(folder / "one.json", folder / "other.json", report=report)
    assert "other.json" in str(told.value)


@pytest.mark.parametrize("report", [False, True])
def test_one_image_many_times_is_not_divided(folder: Path, report: bool) -> None:
    write_set(folder / "all.json", squares(1) * 9, plain=True)
    with pytest.raises(UserError, match="all 9 images belong together"):
        arranged(folder / "all.json", None, report=report)


@pytest.mark.parametrize("filled", [1, 2, 3, 4])
def test_few_images_with_objects_are_shared_out_or_refused(folder: Path, filled: int) -> None:
    write_set(folder / "all.json", [*squares(filled), *([[]] * (24 - filled))])
    for report, needed in ((False, 2), (True, 3)):
        if filled < needed:
            with pytest.raises(UserError, match=f"{filled} of 24 images .* objects, where {needed} are needed"):
                arranged(folder / "all.json", None, report=report)
            continue
        sets = arranged(folder / "all.json", None, report=report)
        assert all(source.table.num_boxes for source in sets.parts.values())


def test_parts_of_one_name_are_told_apart_and_the_command_can_be_copied(tmp_path: Path) -> None:
    for place, count in (("my set/train", 8), ("my set/val", 9)):
        (tmp_path / place).mkdir(parents=True)
        write_set(tmp_path / place / "annotations.json", squares(count), seed=0)
    train = tmp_path / "my set/train/annotations.json"
    note = arranged(train, tmp_path / "my set/val/annotations.json", report=False).notes[0]
    assert "images of val/annotations.json are in train/annotations.json too" in note
    assert f"`flyspeck data split '{train}'`" in note


def numbered(folder: Path, count: int, *, into: tuple[str, ...] = ("",), seed: int = 3) -> Path:
    """Images that do not look alike and are called 001.png and so on, in folders in turn, with their COCO json."""
    path = write_set(folder / "all.json", squares(count, seed=seed), seed=seed)
    content = json.loads(path.read_text())
    for number, image in enumerate(content["images"]):
        new = Path("images", into[number % len(into)], f"{number:03}.png")
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        (folder / image["file_name"]).rename(folder / new)
        image["file_name"] = new.as_posix()
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("report", [False, True])
@pytest.mark.parametrize("count", [5, 12, 20])
def test_few_images_with_numbers_for_names_are_divided_with_a_note(folder: Path, count: int, report: bool) -> None:
    sets = arranged(numbered(folder, count), None, report=report)
    assert sum(len(files(sets, name)) for name in sets.parts) == count
    (told,) = [note for note in sets.notes if "numbers in their names" in note]
    assert told.startswith(f"{count} images are too few to tell")


def test_what_the_numbers_of_a_whole_set_count_holds_for_its_parts(folder: Path) -> None:
    whole = json.loads(numbered(folder, 30).read_text())
    (folder / "all.json").unlink()
    for name, images in (("train", whole["images"][:20]), ("test", whole["images"][20:])):
        keys = {image["id"] for image in images}
        boxes = [box for box in whole["annotations"] if box["image_id"] in keys]
        (folder / f"{name}.json").write_text(json.dumps({**whole, "images": images, "annotations": boxes}))
    sets = arranged(folder, None, report=True)
    assert {name: len(files(sets, name)) for name in (TRAIN, CHOOSE, REPORT)} == {TRAIN: 16, CHOOSE: 4, REPORT: 10}
    assert not any("numbers in their names" in note for note in sets.notes)


@pytest.mark.parametrize("report", [False, True])
def test_folders_that_are_called_train_and_val_are_taken_as_they_are_called(folder: Path, report: bool) -> None:
    sets = arranged(numbered(folder, 24, into=("train", "val")), None, report=report)
    assert {Path(file).parent.name for file in files(sets, REPORT if report else CHOOSE)} == {"val"}
    assert {Path(file).parent.name for file in files(sets, TRAIN)} == {"train"}
    assert all(source.written for source in sets.parts.values())  # the file that lists all is none of them


def test_folders_of_other_names_are_no_splits(folder: Path) -> None:
    sets = arranged(numbered(folder, 24, into=("train_station", "valley")), None, report=False)
    assert {Path(file).parent.name for file in files(sets, CHOOSE)} == {"train_station", "valley"}
