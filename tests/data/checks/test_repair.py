"""`--fix`: what is mended is listed, what is not is said, the rest is as it was; nothing in place."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.checks.repair import Repair
from flyspeck.data.inspection import inspect
from flyspeck.data.readers import read_annotations
from flyspeck.data.tool_writers import write_voc
from flyspeck.data.writers import write_yolo
from flyspeck.errors import UserError


def save(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        seed = sum(name.encode())
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)).resize(
            (128, 96)
        ).save(folder / name)


def entry(number: int, image: int, category: int, box: list[float]) -> dict:
    extra = {"segmentation": [[1, 2, 3, 4, 5, 6]], "attributes": {"wet": True}}
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, **extra}


CATEGORIES = [
    {"id": 1, "name": "car", "supercategory": "vehicle"},
    {"id": 4, "name": "Car"},
    {"id": 7, "name": "boat"},
    {"id": 9, "name": "van"},
]


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    save(folder / "images", ["a.png", "b.png", "c.png", "shared.png"])
    (folder / "images" / "twin.png").write_bytes((folder / "images" / "a.png").read_bytes())
    images = [(1, "a"), (2, "b"), (3, "c"), (4, "gone"), (5, "twin"), (6, "a"), (8, "shared")]
    train = {
        "info": {"year": 2026},
        "licenses": [{"id": 1, "name": "CC BY"}],
        "images": [
            {"id": n, "file_name": f"images/{name}.png", "width": 128, "height": 96, "license": 1} for n, name in images
        ],
        "annotations": [
            entry(11, 1, 1, [10, 10, 4, 4]),
            entry(12, 1, 4, [10.25, 10, 4, 4]),  # a quarter of a pixel beside it, of the class that is nearly the same
            entry(13, 1, 1, [40, 40, 5, 5]),
            entry(14, 1, 7, [40, 40, 5, 5]),  # another class: a matter of judgement
            entry(15, 2, 4, [20, 20, 6, 6]),
            entry(16, 2, 4, [20, 20, 6, 6]),
            entry(17, 3, 4, [20, 20, 0, 6]),  # broken
            entry(18, 4, 1, [20, 20, 6, 6]),  # of an image that is missing
            entry(19, 5, 1, [60, 60, 6, 6]),  # of a twin with fewer objects
            entry(20, 6, 1, [70, 70, 6, 6]),  # of an image that is listed twice
            entry(21, 6, 1, [10, 10, 4, 4]),
            entry(22, 8, 1, [30, 30, 6, 6]),
        ],
        "categories": CATEGORIES,
    }
    (folder / "train.json").write_text(json.dumps(train))
    val = {
        "images": [{"id": 1, "file_name": "images/shared.png", "width": 128, "height": 96}],
        "annotations": [entry(1, 1, 1, [30, 30, 6, 6])],
        "categories": CATEGORIES,
    }
    (folder / "val.json").write_text(json.dumps(val))
    return folder


def changes(out: Path) -> list[tuple[str, str, str, str]]:
    with (out / "changes.csv").open(encoding="utf-8", newline="") as file:
        return [(row["part"], row["what"], Path(row["image"]).name, row["box"]) for row in csv.DictReader(file)]


def test_what_is_mended_and_what_is_left(faulty: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(faulty.rglob("*")) if path.is_file()}
    out = tmp_path / "fixed"
    done = inspect(faulty).fix(out)
    assert isinstance(done, Repair)
    assert changes(out) == [
        ("train.json", "broken entries left out", "", ""),
        ("train.json", "images missing or unreadable left out", "gone.png", ""),
        ("train.json", "images listed twice", "a.png", ""),
        ("train.json", "images left out that are in the part under another name", "twin.png", ""),
        ("train.json", "images left out that another part has", "shared.png", ""),
        ("train.json", "classes merged or renamed", "", ""),
        ("train.json", "boxes left out that nearly repeat another", "a.png", "12"),
        ("train.json", "boxes left out that stand twice", "a.png", "21"),
        ("train.json", "boxes left out that stand twice", "b.png", "16"),
        ("train.json", "classes left out that nothing uses", "", ""),
        ("val.json", "classes merged or renamed", "", ""),
        ("val.json", "classes left out that nothing uses", "", ""),
    ]
    written = json.loads((out / "train.json").read_text())
    assert [image["id"] for image in written["images"]] == [1, 2, 3]
    assert [(e["id"], e["image_id"], e["category_id"]) for e in written["annotations"]] == [
        (11, 1, 1),
        (13, 1, 1),
        (14, 1, 7),
        (15, 2, 1),
        (20, 1, 1),
    ]
    assert written["categories"] == [CATEGORIES[0], CATEGORIES[2]]
    assert all(e["attributes"] == {"wet": True} and e["segmentation"] for e in written["annotations"])
    assert (written["info"], written["images"][0]["license"]) == ({"year": 2026}, 1)
    assert len(done.left) == 1
    assert "different classes are at one place" in done.left[0]
    assert done.left[0] in (out / "summary.txt").read_text()
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_mended_is_sound(faulty: Path, tmp_path: Path) -> None:
    inspect(faulty).fix(tmp_path / "fixed")
    again = inspect(tmp_path / "fixed")
    assert [line for line in again.facts["warnings"] if "fewer than" not in line] == [
        line for line in again.facts["warnings"] if "different classes are at one place" in line
    ]
    assert again.fix(tmp_path / "twice").changes == ()
    assert again.annotations.path(0).is_file()


def test_the_command_line_fixes(faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fixed"
    words = ["data", "inspect", str(faulty), "--workers", "1", "--fix", str(out)]
    assert main(words) == 0
    assert "12 changes, each in changes.csv" in capsys.readouterr().out
    for more, said in (([], "is there already"), (["--classes", "car"], "repaired whole")):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err


def test_a_sound_set_stays_as_it_is(tmp_path: Path) -> None:
    save(tmp_path / "images", ["a.png", "b.png"])
    content = {
        "images": [
            {"id": n, "file_name": f"images/{name}.png", "width": 128, "height": 96} for n, name in ((1, "a"), (2, "b"))
        ],
        "annotations": [entry(5, 1, 1, [10, 10, 4, 4])],
        "categories": CATEGORIES[:1],
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    done = inspect(tmp_path / "gt.json").fix(tmp_path / "out")
    assert done.changes == ()
    written = json.loads((tmp_path / "out" / "gt.json").read_text())
    images = [{**image, "file_name": f"../{image['file_name']}"} for image in content["images"]]
    assert written == {**content, "images": images}


def boxes_of(source: Path, **more: object) -> list[tuple[str, str, list[float]]]:
    table = read_annotations(source, **more)  # type: ignore[arg-type]
    return [
        (Path(table.file_names[i]).stem, table.classes[c], box.round(3).tolist())
        for i, c, box in zip(table.image_index.tolist(), table.labels.tolist(), table.boxes, strict=True)
    ]


def test_other_formats_are_written_in_their_own(faulty: Path, tmp_path: Path) -> None:
    inspect(faulty / "val.json").fix(tmp_path / "clean")
    table = read_annotations(tmp_path / "clean" / "val.json")
    write_yolo(table, tmp_path / "yolo")
    (label,) = (tmp_path / "yolo" / "labels").rglob("shared.txt")
    label.write_text(2 * label.read_text())
    done = inspect(tmp_path / "yolo").fix(tmp_path / "fixed_yolo")
    assert [change.what for change in done.changes] == ["boxes left out that stand twice"]
    assert boxes_of(tmp_path / "fixed_yolo") == [("shared", "car", [30, 30, 36, 36])]

    write_voc(table, tmp_path / "voc")
    done = inspect(tmp_path / "voc", images=faulty / "images").fix(tmp_path / "fixed_voc")
    assert "images stay where they are" in done.notes[0]
    (found,) = boxes_of(tmp_path / "fixed_voc" / "voc", images=faulty / "images")
    assert_allclose(found[2], [30, 30, 36, 36])

    (tmp_path / "labels.csv").write_text(
        "image_path,xmin,ymin,xmax,ymax,label\n" + 2 * f"{faulty}/images/a.png,1,1,9,9,car\n"
    )
    done = inspect(tmp_path / "labels.csv").fix(tmp_path / "fixed_csv")
    assert "as COCO" in done.notes[0]
    assert "nothing here writes csv" in done.notes[0]
    assert len(boxes_of(tmp_path / "fixed_csv" / "labels.json")) == 1


def test_a_set_whose_images_are_elsewhere_is_not_emptied(faulty: Path, tmp_path: Path) -> None:
    content = json.loads((faulty / "val.json").read_text())
    content["images"][0]["file_name"] = "elsewhere.png"
    (faulty / "val.json").write_text(json.dumps(content))
    done = inspect(faulty / "val.json").fix(tmp_path / "out")
    assert "give --images" in done.left[-1]
    assert len(boxes_of(tmp_path / "out" / "val.json")) == 1


def test_a_part_that_another_has_whole_is_refused(faulty: Path, tmp_path: Path) -> None:
    (faulty / "train.json").write_bytes((faulty / "val.json").read_bytes())
    with pytest.raises(UserError, match="no image would be left"):
        inspect(faulty).fix(tmp_path / "out")
    assert not (tmp_path / "out").exists()
