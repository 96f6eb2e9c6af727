"""Names in a page stay text: a page of hostile names has the very elements that a page of plain names has."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from canaries import HOSTILE
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.evaluate.baselines import measure_baselines
from flyspeck.explain.cases import Case
from flyspeck.explain.page import Shown
from flyspeck.explain.page import build_page as explain_page
from flyspeck.explain.subjects import Subject
from flyspeck.label_errors.page import build_page as suspects_page
from flyspeck.label_errors.ranking import KINDS
from flyspeck.label_errors.suspects import Suspect
from flyspeck.report import RunReport, build_report
from flyspeck.report.html import Section
from flyspeck.report.rates import rate_page
from flyspeck.train.curves import Curves

PLAIN = tuple(f"name{n}" for n in range(len(HOSTILE)))
_WITHOUT_TEXT = ("script", "style")


class Structure(HTMLParser):
    """Every element with the names of its attributes; what scripts and styles hold, whole."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.inside: list[str] = []
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))
        kept = [value for name, value in attrs if name in ("href", "src", "style", "http-equiv")]
        assert not [value for value in kept if value and value.lower().startswith("javascript")]
        self._open = tag

    def handle_endtag(self, tag):
        self.found.append((f"/{tag}", ()))
        self._open = ""

    def handle_data(self, data):
        if self._open in _WITHOUT_TEXT:
            self.inside.append(data)


def write_set(folder: Path, names: tuple[str, ...]) -> tuple[Annotations, DetectionTable]:
    """Images and classes called `names`, with an object each and detections that find some."""
    images, boxes, found = [], [], []
    for n, name in enumerate(names, 1):
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (64, 48), 90).save(file)
        images.append({"id": n, "file_name": f"{name}.png", "width": 64, "height": 48})
        box = [4 + n, 5, 6, 7]
        boxes.append({"id": n, "image_id": n, "category_id": n, "bbox": box, "area": 42, "iscrowd": 0})
        found.append({"image_id": n, "category_id": n, "bbox": box if n % 2 else [30, 30, 5, 5], "score": 0.9 - n / 50})
    kinds = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
    path = folder / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": kinds}))
    (folder / "dt.json").write_text(json.dumps(found))
    table = read_annotations(path)
    return table, DetectionTable.from_coco(folder / "dt.json", table)


def report(folder: Path, names: tuple[str, ...]) -> str:
    table, found = write_set(folder, names)
    table = replace(table, source=names[0])
    records = tuple(
        {
            "kind": "epoch",
            "step": n,
            "epoch": n,
            "seconds": 1.0,
            "losses": {names[0]: 1.0 / n},
            "metrics": {names[0]: 0.1 * n, names[1]: 0.1, f"similarity_{names[1]}": 0.1 * n},
        }
        for n in (1, 2)
    )
    measured = evaluate(table, found, "flyspeck")
    facts = {names[2]: names[3], "model": names[4]}
    runs = [RunReport(name, table, found, measured, records, facts, best=names[0]) for name in names[:2]]
    runs[0] = replace(runs[0], baselines=tuple(measure_baselines(table, table, measured.protocol)))
    more = [Section(names[5], names[0], Image.new("L", (4, 4)), names[1])]
    return build_report(runs, folder / "out.html", title=names[0], appendices=more).read_text(encoding="utf-8")


def suspects(folder: Path, names: tuple[str, ...]) -> str:
    table, _ = write_set(folder, names)
    table = replace(table, source=names[0])
    listed = [
        Suspect(
            kind=KINDS[n % len(KINDS)], chance=0.5, image=n, row=n, file_name=table.file_names[n], image_id=n + 1,
            box_id=n + 1, annotated_class=name, suggested_class=names[n - 1], box=(5, 5, 11, 12),
            suggested_box=(6, 5, 11, 12), score=0.5, size=6.0, apart=0.2,
        )
        for n, name in enumerate(names)
    ]  # fmt: skip
    return suspects_page(table, listed, dict.fromkeys(KINDS, 0.1), model=names[1], draw=len(names))[0]


def explained(folder: Path, names: tuple[str, ...]) -> str:
    history = {names[0]: [(1.0, 0.2), (2.0, 0.4)]}
    subject = Subject.__new__(Subject)
    for key, value in {"name": names[0], "history": history}.items():
        object.__setattr__(subject, key, value)
    case = Case(names[2], 0, (0, 0, 4, 4), names[3])
    shown = [Shown(names[1], names[4], Image.new("RGB", (4, 4)), case, {names[0]: {names[1]: {names[2]: 0.5}}})]
    cka = {"level": names[3], "cka": 0.5, "cells": 3, "cka_objects": 0.4, "object_cells": 2}
    numbers = {"attention": {names[0]: {names[5]: 1.0}}, "sample": 1, "similarity": [cka]}
    return explain_page([subject], shown, numbers, names[6])


def curves(folder: Path, names: tuple[str, ...]) -> str:
    folder.mkdir(parents=True)
    page = Curves(folder, name=names[0], epochs=2, best=names[1])
    page.start(total_steps=2, done_steps=0)
    losses = {name: 1.0 for name in names}
    page.step({"epoch": 1, "step": 1, "losses": losses, "lr": 0.1, "images_per_second": 1.0})
    page.epoch({"epoch": 1, "step": 1, "losses": losses, "metrics": {names[1]: 0.5}, "stopped": names[2]})
    page.finish()
    return page.path.read_text(encoding="utf-8")


def rates(folder: Path, names: tuple[str, ...]) -> str:
    folder.mkdir(parents=True)
    out = rate_page([0.1, 0.2], [1, 2], [1, 2], folder / "lr.html", name=names[0], lr=0.1, lowest=0.1)
    return out.read_text(encoding="utf-8")


PAGES: dict[str, Callable[[Path, tuple[str, ...]], str]] = {
    page.__name__: page for page in (report, suspects, explained, curves, rates)
}


@pytest.mark.parametrize("page", PAGES)
def test_hostile_names_stay_text(page: str, tmp_path: Path) -> None:
    rotated = HOSTILE[3:] + HOSTILE[:3]
    plain = Structure(PAGES[page](tmp_path / "plain", PLAIN))
    assert len(plain.found) > 10
    for number, names in enumerate((HOSTILE, rotated)):
        hostile = Structure(PAGES[page](tmp_path / str(number), names))
        assert [tag for tag, _ in hostile.found] == [tag for tag, _ in plain.found]
        assert hostile.found == plain.found
        scripts = [text for text in hostile.inside if "alert(1)" in text and not text.lstrip().startswith("{")]
        assert not scripts
        for text in hostile.inside:  # the numbers of the curves are JSON within an element
            assert "<" not in text or "alert(1)" not in text


def test_the_structure_sees_an_element_that_came_from_a_name() -> None:
    """What the test above rests on."""
    whole = "<p>{}</p>".format
    assert Structure(whole(HOSTILE[0])).found != Structure(whole("a")).found
    assert Structure('<p title="{}">'.format('x" onload="y')).found != Structure('<p title="a">').found


def test_every_page_that_is_written_is_tried() -> None:
    """A new page is added above: whoever writes `<!doctype html>` or calls `render_page` is known here."""
    import flyspeck

    source = Path(flyspeck.__file__).parent
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if "<!doctype html>" in (text := path.read_text(encoding="utf-8")) or "render_page(" in text
    }
    assert found == {"report/html.py", "report/rates.py", "explain/page.py", "label_errors/page.py"}
    assert [path.relative_to(source).as_posix() for path in source.rglob("*.html")] == ["train/curves.html"]


def test_a_script_of_a_page_builds_no_markup_from_text() -> None:
    import flyspeck

    source = Path(flyspeck.__file__).parent
    for path in (*source.rglob("*.js"), *source.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        for call in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "setTimeout(",
        ):
            assert call not in text, f"{path.name}: {call}"


def test_an_outline_beyond_numbers_does_not_leave_its_attribute(tmp_path: Path) -> None:
    """Points of a chart are numbers; what is none is not drawn as text."""
    text = curves(tmp_path / "c", PLAIN)
    assert np.isfinite(len(text))
    assert "NaN" not in text
