"""COCO json: what is kept, what is left out and said, what becomes an ignore region."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError

NAN = float("nan")


def write(
    path: Path,
    annotations: list[Any],
    images: list[Any] | None = None,
    categories: list[Any] | None = None,
    **more: Any,
) -> Path:
    images = [{"id": 7, "file_name": "a.png", "width": 100, "height": 80}] if images is None else images
    categories = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}] if categories is None else categories
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories, **more}))
    return path


def entry(number: Any, box: Any, category: Any = 1, image: Any = 7, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}


def test_columns_of_sound_entries(tmp_path: Path) -> None:
    images = [{"id": 9, "file_name": "b.png", "width": 50, "height": 40}, {"id": 7, "file_name": "a.png"}]
    entries = [
        entry(0, [10, 20, 4, 2], 3, area=5.5),
        entry(5, [-3, 70, 10, 20], 1, 9 - 2),  # reaches out of the image: kept as annotated
        entry(6, [1, 2, 3, 4], 1, 9, iscrowd=1),
    ]
    table = read_annotations(write(tmp_path / "gt.json", entries, images))
    assert table.problems == ()
    assert_array_equal(table.image_ids, [9, 7])
    assert_array_equal(table.sizes, [[40, 50], [-1, -1]])
    assert_array_equal(table.image_index, [0, 1, 1])
    assert_array_equal(table.boxes, [[1, 2, 4, 6], [10, 20, 14, 22], [-3, 70, 7, 90]])
    assert_array_equal(table.box_ids, [6, 0, 5])  # the id 0 is an id
    assert table.classes == ("person", "car")  # by id, whatever the order in the file
    assert table.category_ids == (1, 3)
    assert_array_equal(table.labels, [-1, 1, 0])
    assert_array_equal(table.extra["category"], [0, 1, 0])  # the crowd was annotated as persons
    assert_array_equal(table.area, [12, 5.5, 200])
    assert_array_equal(table.crowd, [True, False, False])
    assert_array_equal(table.ignore, [True, False, False])
    assert table.source == "coco: gt.json"


BROKEN = {
    "nan": (entry(4, [NAN, 1, 2, 3]), "annotation 4 has no box of four finite numbers"),
    "huge": (entry(4, [1, 1, 1e200, 1e200]), "annotation 4 has no box of four finite numbers"),
    "three numbers": (entry(4, [1, 2, 3]), "annotation 4 has no box of four finite numbers"),
    "no box": ({"id": 4, "image_id": 7, "category_id": 1}, "annotation 4 has no box of four finite numbers"),
    "text": (entry(4, "1 2 3 4"), "annotation 4 has no box of four finite numbers"),
    "negative": (entry(4, [10, 10, -2, 3]), "annotation 4 has a box of negative width or height"),
    "zero area": (entry(4, [10, 10, 0, 3]), "annotation 4 has a box of zero area"),
    "outside": (entry(4, [100, 10, 5, 3]), "annotation 4 has a box wholly outside its image"),
    "unknown image": (entry(4, [1, 1, 2, 2], 1, 8), "annotation 4 names an image that is not listed (image_id 8,"),
    "text for a number": (entry(4, [1, 1, 2, 2], 1, "7a"), "names an image that is not listed (image_id '7a',"),
    "unknown category": (entry(4, [1, 1, 2, 2], 2), "annotation 4 names a category that is not listed"),
    "id again": (entry(1, [1, 1, 2, 2]), "annotation 1 has an id that an earlier one has"),
    "no object": ([1, 2], "entry 2 of 'annotations' is no object"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_entry_is_left_out_and_said(tmp_path: Path, name: str) -> None:
    broken, words = BROKEN[name]
    table = read_annotations(write(tmp_path / "gt.json", [entry(1, [10, 10, 5, 5]), broken, entry(2, [20, 20, 5, 5])]))
    assert_array_equal(table.boxes, [[10, 10, 15, 15], [20, 20, 25, 25]])
    assert len(table.problems) == 1
    assert table.problems[0].startswith("gt.json: ")
    assert words in table.problems[0]


def test_an_entry_with_two_faults_is_counted_once(tmp_path: Path) -> None:
    table = read_annotations(write(tmp_path / "gt.json", [entry(1, [NAN, 0, 0, 0], 99, 99)]))
    assert len(table.problems) == 1
    assert table.num_boxes == 0


def test_broken_images(tmp_path: Path) -> None:
    sound = {"id": 1, "file_name": "a.png"}
    images = [sound, {"id": 1, "file_name": "b.png"}, {"id": 2}, {"id": 1.5, "file_name": "c.png"}, "d.png"]
    table = read_annotations(write(tmp_path / "gt.json", [], images))
    assert table.file_names == ("a.png",)
    assert [problem.split(": ")[1].split(" ")[1] for problem in table.problems] == ["2", "3", "4", "5"]


def test_what_reference_evaluators_see(tmp_path: Path) -> None:
    boxes = [[10.1, 10, 0, 5], [150, 10, 5, 5], [0.1, 0.2, 0.3, 0.7]]
    path = write(tmp_path / "gt.json", [entry(0, box) for box in boxes])
    table = read_annotations(path, for_evaluation=True)
    assert table.num_boxes == 3
    assert_array_equal(table.extra["xywh"], boxes)  # x + w - x is not always w
    assert read_annotations(path).num_boxes == 1


def test_ignore_regions_of_every_class(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "Person"}, {"id": 2, "name": "DontCare"}, {"id": 3, "name": "Car"}]
    entries = [entry(1, [1, 1, 5, 5], 3), entry(2, [10, 1, 5, 5], 2), entry(3, [20, 1, 5, 5], 3, ignore=1)]
    table = read_annotations(write(tmp_path / "gt.json", entries, categories=categories))
    assert table.classes == ("Person", "Car")
    assert_array_equal(table.labels, [1, -1, -1])
    assert_array_equal(table.ignore, [False, True, True])
    assert_array_equal(table.extra["category"], [1, -1, 1])
    assert_array_equal(table.extra["ignore_flag"], [False, False, True])


def test_rules_of_ignoring_are_parameters(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dont_care"}, {"id": 3, "name": "shadow"}]
    entries = [entry(n, [9 * n, 1, 5, 5], n) for n in (1, 2, 3)] + [entry(4, [40, 1, 5, 5], uncertain=True)]
    path = write(tmp_path / "gt.json", entries, categories=categories)
    assert_array_equal(read_annotations(path).ignore, [False, True, False, True])
    assert_array_equal(read_annotations(path, ignore_classes=["Shadow"]).ignore, [False, False, True, True])
    assert_array_equal(read_annotations(path, ignore_flags=["iscrowd", "ignore"]).ignore, [False, True, False, False])


def test_others_is_ignored_beside_ignored_regions_only(tmp_path: Path) -> None:
    names = ["ignored regions", "car", "others"]
    entries = [entry(n, [9 * n, 1, 5, 5], n) for n in (1, 2, 3)]
    visdrone = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
    table = read_annotations(write(tmp_path / "a.json", entries, categories=visdrone))
    assert table.classes == ("car",)
    plain = [{"id": n, "name": name} for n, name in enumerate(["person", "car", "others"], 1)]
    assert read_annotations(write(tmp_path / "b.json", entries, categories=plain)).classes == (
        "person",
        "car",
        "others",
    )


def test_a_selection_of_classes_sets_the_numbers(tmp_path: Path) -> None:
    categories = [{"id": n, "name": name} for n, name in enumerate(["a", "b", "c"], 1)]
    entries = [entry(n, [9 * n, 1, 5, 5], n) for n in (1, 2, 3)] + [entry(4, [40, 1, 5, 5], 2, iscrowd=1)]
    path = write(tmp_path / "gt.json", entries, categories=categories)
    table = read_annotations(path, classes=["c", "a"])
    assert table.classes == ("c", "a")
    assert table.category_ids == (3, 1)
    assert_array_equal(table.labels, [1, 0, -1])  # b's object is left out, but a region of b's to ignore holds for all
    assert "(1 box of classes not asked for left out)" in table.source
    assert table.problems == ()
    with pytest.raises(UserError, match="class 'cc' is not in the annotations; did you mean 'c'"):
        read_annotations(path, classes=["cc"])


def test_corner_files(tmp_path: Path) -> None:
    images = [
        {"id": 0, "file_name": "whole.jpg", "width": 640, "height": 512, "corner": [0, 0, 640, 512]},
        {"id": 1, "file_name": "whole.jpg", "width": 640, "height": 512, "corner": [590, 0, 1230, 512]},
    ]
    path = write(tmp_path / "gt.json", [], images, old_images=[{"id": 21, "file_name": "whole.jpg"}])
    table = read_annotations(path)
    assert_array_equal(table.image_extra["corner"], [[0, 0, 640, 512], [590, 0, 1230, 512]])
    assert_array_equal(table.image_extra["whole"], [21, 21])
    assert table.source == "coco with tile corners: gt.json"


def test_ids_may_be_texts(tmp_path: Path) -> None:
    images = [{"id": "x", "file_name": "a.png"}, {"id": "y", "file_name": "b.png"}]
    table = read_annotations(write(tmp_path / "gt.json", [entry("k", [1, 1, 2, 2], image="y")], images))
    assert table.image_ids.tolist() == ["x", "y"]
    assert table.box_ids.tolist() == ["k"]


def test_entries_without_an_id_are_numbered(tmp_path: Path) -> None:
    entries = [entry(n, [9 * k, 1, 2, 2]) for k, n in enumerate([5, None, [1], 3])]
    table = read_annotations(write(tmp_path / "gt.json", entries))
    assert_array_equal(table.box_ids, [5, 6, 7, 3])
    assert table.problems == ()


def test_images_are_looked_for_in_the_usual_places(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "a.png").touch()
    path = write(tmp_path / "annotations" / "instances_val2017.json", [])
    assert read_annotations(path).path(0) == tmp_path / "val2017" / "a.png"
    assert read_annotations(path, images=tmp_path).path(0) == tmp_path / "a.png"
    # TinyPerson: annotations/corner/task/tiny_set_train_….json, images in erase_with_uncertain_dataset/train.
    erased = tmp_path / "erase_with_uncertain_dataset" / "train"
    task = tmp_path / "annotations" / "corner" / "task"
    for folder in (erased, task):
        folder.mkdir(parents=True)
    (erased / "a.png").touch()
    assert read_annotations(write(task / "tiny_set_train_sw640_sh512_all.json", [])).path(0) == erased / "a.png"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [', "line 1, column 13: not valid json"),
        ("[]", "a list, not an object with images"),
        ('[{"score": 0.5}]', "a list of detections, not annotations"),
        ('{"images": [], "annotations": {}}', "no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}, {"id": 1}]}', "category id 1 is listed twice"),
        ('{"images": [], "annotations": [], "categories": [{"name": "a"}]}', "category 1 has no whole number as id"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_at_all(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "gt.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_annotations(path)
    assert words in str(caught.value)
    assert "gt.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_binary_in_place_of_json(tmp_path: Path) -> None:
    path = tmp_path / "gt.json"
    path.write_bytes(b"\xff\xd8\xff\x00\x80")
    with pytest.raises(UserError, match="not UTF-8"):
        read_annotations(path)


def test_golden_inputs_keep_every_entry(shared: Path) -> None:
    for path in sorted(shared.glob("golden/*/gt.json")):
        if path.parent.name.startswith("voc"):
            continue
        content = json.loads(path.read_text())
        table = read_annotations(path, for_evaluation=True)
        row = {key: number for number, key in enumerate(table.image_ids.tolist())}
        entries = sorted(content["annotations"], key=lambda a: row[a["image_id"]])
        assert table.problems == ()
        assert_array_equal(table.extra["xywh"], [a["bbox"] for a in entries])
        assert_array_equal(table.box_ids, [a["id"] for a in entries])
        assert_array_equal(table.area, [a["area"] for a in entries])
        numbers = np.array(table.category_ids)[table.extra["category"]]
        assert_array_equal(numbers, [a["category_id"] for a in entries])


def test_shared_sets_are_sound(shared: Path) -> None:
    for path in sorted(shared.glob("data/*/*.json")):
        table = read_annotations(path)
        assert table.problems == (), path.name
        assert table.path(0).is_file()
    hituav = read_annotations(shared / "data/hituav/val_blk.json", classes=["Person", "Car", "Bicycle"])
    assert "DontCare" not in hituav.classes
    assert int(hituav.ignore.sum()) == 2
    assert hituav.num_boxes == 8652 - 8  # OtherVehicle has 8 boxes here
