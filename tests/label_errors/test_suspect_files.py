"""The table, the page and the tools' files of suspects, read back by our own readers."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.label_errors.page import build_page, crop_window, describe
from flyspeck.label_errors.preannotations import FORMATS, check_formats, write_preannotations
from flyspeck.label_errors.suspects import COLUMNS, Suspect, csv_text, plain_values
from planted_errors import table


def suspect(kind: str, **changes: object) -> Suspect:
    usual = Suspect(
        kind=kind,  # type: ignore[arg-type]
        chance=0.75,
        image=0,
        row=0,
        file_name="im0000.png",
        image_id=1,
        box_id=1,
        annotated_class="car",
        suggested_class="person",
        box=(10, 10, 14, 16),
        suggested_box=(11, 10, 15, 16),
        score=0.5,
        size=4.9,
        apart=0.17,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


MISSING = {"row": None, "box_id": None, "annotated_class": None, "box": None, "apart": None}
UNSEEN = {"suggested_class": None, "suggested_box": None, "score": None, "apart": None}


@pytest.fixture
def drawn(tmp_path: Path) -> Annotations:
    boxes = np.array([[10, 10, 14, 16], [30, 30, 33, 32], [50, 50, 52, 52], [60, 60, 90, 90], [1, 2, 3, 4]], float)
    ignore = np.array([False, False, False, True, False])
    made = table(
        boxes, np.array([0, 1, 0, 0, 1]), np.array([0, 0, 0, 0, 1]), size=(100, 120), ignore=ignore, num_images=3
    )
    for name in made.file_names:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 120, 3), np.uint8)).save(tmp_path / name)
    return replace(made, root=tmp_path)


@pytest.fixture
def suspects() -> list[Suspect]:
    second = {"row": 1, "box_id": 2, "box": (30, 30, 33, 32), "annotated_class": "person"}
    third = {"row": 2, "box_id": 3, "box": (50, 50, 52, 52)}
    return [
        suspect("class", chance=0.9),
        suspect("placement", chance=0.8, **second, suggested_class="person", suggested_box=(31, 31, 34, 33)),
        suspect("missing", chance=0.7, **MISSING, suggested_box=(80, 5, 84, 9)),
        suspect("superfluous", chance=0.6, **third, **UNSEEN),
        suspect("missing", chance=0.5, **MISSING, image=1, image_id=2, file_name="im0001.png", suggested_class="car"),
    ]


def test_the_table_has_a_line_for_each_suspect(suspects: list[Suspect]) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text([*suspects, suspect("class", file_name='odd, "name".png')]))))
    assert tuple(rows[0]) == COLUMNS
    assert [row["kind"] for row in rows] == ["class", "placement", "missing", "superfluous", "missing", "class"]
    assert (rows[0]["x1"], rows[0]["suggested_x1"], rows[0]["chance"]) == ("10", "11", "0.9")
    assert (rows[2]["x1"], rows[2]["box_id"], rows[2]["suggested_class"]) == ("", "", "person")
    assert (rows[3]["suggested_x1"], rows[3]["score"]) == ("", "")
    assert rows[5]["file_name"] == 'odd, "name".png'
    first = json.loads(json.dumps(plain_values(suspects)))[0]
    assert (first["box"], first["suggested_class"]) == ([10, 10, 14, 16], "person")


WANTED = {
    ("im0000.png", "class: person", (10, 10, 14, 16)),
    ("im0000.png", "placement: person", (31, 31, 34, 33)),
    ("im0000.png", "missing: person", (80, 5, 84, 9)),
    ("im0000.png", "superfluous: car", (50, 50, 52, 52)),
    ("im0001.png", "missing: car", (11, 10, 15, 16)),
    ("im0001.png", "person", (1, 2, 3, 4)),
}
"""The third image has no suspect and is left out."""


@pytest.mark.parametrize("format", ["cvat", "fiftyone", "labelme", "voc"])
def test_tools_get_what_is_suspected_beside_what_is_not(
    drawn: Annotations, suspects: list[Suspect], format: str, tmp_path: Path
) -> None:
    written = write_preannotations(drawn, suspects, tmp_path / "out", format)  # type: ignore[arg-type]
    read = read_annotations(written, images=drawn.root)
    boxes = {
        (Path(read.file_names[image]).name, read.classes[label], tuple(np.round(box, 6).tolist()))
        for image, label, box in zip(read.image_index, read.labels, read.boxes, strict=True)
        if label >= 0
    }
    assert boxes == WANTED
    np.testing.assert_allclose(read.boxes[read.ignore], [[60, 60, 90, 90]])


def test_label_studio_gets_predictions_beside_annotations(
    drawn: Annotations, suspects: list[Suspect], tmp_path: Path
) -> None:
    tasks = json.loads(write_preannotations(drawn, suspects, tmp_path, "label-studio").read_text())
    assert [len(task["annotations"][0]["result"]) for task in tasks] == [1, 1]  # the ignore region, and the person
    found = tasks[0]["predictions"][0]["result"]
    assert [entry["value"]["rectanglelabels"][0] for entry in found] == [
        "class: person",
        "placement: person",
        "missing: person",
        "superfluous: car",
    ]
    assert [entry["score"] for entry in found] == [0.9, 0.8, 0.7, 0.6]
    assert found[2]["value"]["x"] == pytest.approx(100 * 80 / 120)


def test_a_tool_that_is_not_known() -> None:
    check_formats(FORMATS)
    with pytest.raises(UserError, match=r"--to: no pre-annotations for 'cvatt'; did you mean 'cvat'\?"):
        check_formats(["cvatt"])


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            assert values["alt"]
            self.images.append(values["src"] or "")
        assert not any((values.get(key) or "").startswith("http") for key in ("src", "href"))
        if tag not in ("img", "meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_holds_two_crops_a_suspect(drawn: Annotations, suspects: list[Suspect]) -> None:
    odd = [replace(one, annotated_class="<car>") if one.annotated_class else one for one in suspects]
    rates = {"missing": 0.05, "superfluous": 0.02, "class": 0.01, "placement": 0.0}
    text, problems = build_page(drawn, odd, rates, model="runs/first", draw=4)
    page = Page(text)
    assert (page.open, problems) == ([], [])
    assert len(page.images) == 8
    assert all(source.startswith("data:image/webp;base64,") for source in page.images)
    assert "&lt;car&gt;" in text
    assert "<car>" not in text
    assert "5 suspects in 3 images" in text


def test_images_that_cannot_be_read_are_named_on_the_page(drawn: Annotations, suspects: list[Suspect]) -> None:
    drawn.path(0).write_bytes(b"no image")
    text, problems = build_page(
        drawn, suspects, dict.fromkeys(("missing", "superfluous", "class", "placement"), 0.0), model="m", draw=9
    )
    assert len(problems) == 1
    assert "im0000.png" in problems[0]
    assert len(Page(text).images) == 2


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 0, 2, 8), (118, 97, 120, 100), (0, 0, 120, 100), (-5, -5, 400, 3)])
def test_a_crop_lies_in_the_image_and_holds_what_of_the_box_does(box: tuple[float, float, float, float]) -> None:
    one = suspect("superfluous", box=box, **UNSEEN, size=((box[2] - box[0]) * (box[3] - box[1])) ** 0.5)
    x1, y1, x2, y2 = crop_window(one, (100, 120))
    assert 0 <= x1 < x2 <= 120
    assert 0 <= y1 < y2 <= 100
    assert x1 <= max(box[0], 0)
    assert x2 >= min(box[2], 120)


def test_words(suspects: list[Suspect]) -> None:
    assert [describe(one) for one in suspects[:4]] == [
        "class, 90 %: annotated car of 5 px (id 1), seen person at score 0.50",
        "placement, 80 %: annotated person of 5 px (id 2), seen person at score 0.50, 0.17 of its size apart",
        "missing, 70 %: seen person of 5 px at score 0.50",
        "superfluous, 60 %: annotated car of 5 px (id 3), the detector sees little or nothing",
    ]
