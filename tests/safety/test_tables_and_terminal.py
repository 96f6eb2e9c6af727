"""Names in a table are no formulas and are read back as they were; names on the terminal steer nothing."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import typer
from canaries import HOSTILE
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flyspeck.cli.layout import PlainApp
from flyspeck.cli.main import main, run_app
from flyspeck.cli.plain_output import PlainStream, plain_output, shown, steered
from flyspeck.convert import to_csv
from flyspeck.data.readers import read_annotations
from flyspeck.files import cell, is_formula, text_of
from flyspeck.infer.outputs import CsvWriter
from flyspeck.infer.reading import Result
from flyspeck.infer.source import Item
from flyspeck.label_errors.suspects import csv_text
from flyspeck.types import Detections

FORMULAS = (
    "=1+1",
    "+1+1",
    "-1+cmd",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    '=cmd|"/c calc"!A1',
    '=HYPERLINK("http://x","y")',
    "'=1",
    "-",
)


def cells_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def guarded(text: str) -> None:
    """No cell of a table is run by a spreadsheet."""
    for row in cells_of(text):
        for field in row:
            try:
                float(field)
            except ValueError:
                assert not field.startswith(("=", "+", "-", "@", "\t", "\r")), field


@given(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8), st.sampled_from(["", "=", "+", "-", "@", "'", "'="])
)
def test_a_text_is_guarded_and_read_back(text: str, start: str) -> None:
    given_text = start + text
    written = cells_of(cell(given_text) + "\n") if cell(given_text) else [[""]]
    assert text_of(written[0][0] if written else "") == given_text
    if given_text:
        guarded(cell(given_text) + "\n")


@pytest.mark.parametrize("value", [-1, -1.5, 0, 1e-9, True, None, float("nan")])
def test_numbers_stay_numbers(value: object) -> None:
    assert not cell(value).startswith("'")


def test_a_text_that_is_a_number_stays_one() -> None:
    assert [cell(text) for text in ("-1", "+1.5", "-inf", "1e5")] == ["-1", "+1.5", "-inf", "1e5"]
    assert is_formula("-1+1")


def found_of(classes: tuple[str, ...], x: int = 1) -> Detections:
    count = len(classes)
    boxes = np.tile([x, 2, x + 4, 8], (count, 1))
    return Detections(boxes, [0.5] * count, list(range(count)), (30, 40), classes)


def test_detections_as_csv_are_read_back(tmp_path: Path) -> None:
    writer = CsvWriter(tmp_path)
    for number, name in enumerate(FORMULAS):
        writer.add(Result(Item(f"{name}.png", np.zeros((30, 40), np.uint8), name, str(number)), found_of(FORMULAS)))
    writer.close()
    text = (tmp_path / "detections.csv").read_bytes().decode()
    guarded(text)
    guarded(to_csv(found_of(FORMULAS)))
    table = read_annotations(tmp_path / "detections.csv", format="csv")
    names = {f"{name}.png" for name in FORMULAS if not name.startswith(("\t", "\r")) and "/" not in name}
    assert names <= set(table.file_names)


def test_suspects_as_csv() -> None:
    from dataclasses import replace

    from flyspeck.label_errors.suspects import Suspect

    one = Suspect("class", 0.5, 0, 0, "a", 1, 1, "b", "c", (1, 2, 3, 4), (1, 2, 3, 4), 0.5, 2.0, 0.1)
    for name in FORMULAS:
        guarded(csv_text([replace(one, file_name=name, image_id=name, annotated_class=name, suggested_class=name)]))


def test_counts_and_tracks_as_csv(tmp_path: Path) -> None:
    from flyspeck.infer.video.counts import CountTable
    from flyspeck.infer.video.tracks import TrackTable
    from flyspeck.infer.video.zones import parse_zones

    zones = parse_zones(["6,0,6,30:=cmd()"], [])

    class Info:
        rate = Fraction(1)

    tables = [CountTable(tmp_path, zones, Info()), TrackTable(tmp_path / "tracks.csv")]  # type: ignore[arg-type]
    for frame, x in enumerate((1, 4, 8), 1):
        moved = found_of(FORMULAS, x)
        moved.extra["track"] = np.arange(len(FORMULAS))
        for table in tables:
            table.add(Result(Item("v", np.zeros((30, 40, 3), np.uint8), frame, "v"), moved))
    for table in tables:
        table.close()
    files = sorted(tmp_path.glob("*.csv"))
    assert [file.name for file in files] == ["counts.csv", "crossings.csv", "tracks.csv"]
    for file in files:
        assert file.read_text().count("\n") > 2, file.name
        guarded(file.read_bytes().decode())


def write_set(folder: Path, names: tuple[str, ...]) -> Path:
    """Images and classes called `names`: some missing, one twice, one broken."""
    images, boxes = [], []
    for n, name in enumerate(names, 1):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if n % 4:
            Image.fromarray(np.random.default_rng(n // 2).integers(0, 255, (48, 64), dtype=np.uint8)).save(path)
        images.append({"id": n, "file_name": f"{name}.png", "width": 64, "height": 48})
        boxes.append({"id": n, "image_id": n, "category_id": n, "bbox": [4, 5, 6, 7], "area": 42, "iscrowd": 0})
        boxes.append({**boxes[-1], "id": 100 + n})
    boxes.append({"id": 999, "image_id": 1, "category_id": 1, "bbox": ["\x1b[31m", 5, 6, 7]})
    kinds = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
    (folder / "set.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": kinds}))
    (folder / "dt.json").write_text(
        json.dumps(
            [{"image_id": n, "category_id": n, "bbox": [4, 5, 6, 7], "score": 0.5} for n in range(1, len(names) + 1)]
        )
    )
    return folder / "set.json"


def test_repairs_and_splits_as_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tuple(name for name in FORMULAS if name.isprintable() and "/" not in name)
    source = write_set(tmp_path / "set", names)
    assert main(["data", "inspect", str(source), "--fix", str(tmp_path / "fixed"), "--workers", "1"]) == 0
    assert main(["data", "split", str(source), "--out", str(tmp_path / "split"), "--workers", "1"]) == 0
    capsys.readouterr()
    files = sorted(tmp_path.rglob("*.csv"))
    assert len(files) == 2
    for file in files:
        assert file.read_text().count("\n") > 2
        guarded(file.read_text())


class Terminal(io.StringIO):
    """Says that it is one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def on_a_terminal(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    return main(argv), terminal.getvalue()


VERBS = {
    "inspect": ["data", "inspect", "SET", "--workers", "1"],
    "inspect as json": ["data", "inspect", "SET", "--workers", "1", "--json"],
    "convert": ["data", "convert", "SET", "--to", "coco", "--out", "OUT/a.json"],
    "split": ["data", "split", "SET", "--out", "OUT", "--workers", "1"],
    "eval": ["eval", "--gt", "SET", "--dt", "DT", "--score", "0.1"],
    "report": ["report", "DT", "--gt", "SET", "--out", "OUT/r.html"],
    "a name that is none": ["data", "inspect", "\x1b[31m\x1b]0;owned\x07.json"],
    "a format that is none": ["data", "inspect", "SET", "--format", "\x1b[31m"],
    "an option that is none": ["data", "inspect", "--\x1b[31m"],
    "a verb that is none": ["\x1b[31m"],
    "a class that is none": ["data", "inspect", "SET", "--classes", "\x1b[31m"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_names_steer_no_terminal(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "\x1b[31mred",
        "\x1b]0;owned\x07",
        "\x9b2J",
        "u\u202egpj",
        "back\x08\x08\x08",
        "over\rwritten",
        *HOSTILE[:2],
    )
    source = write_set(tmp_path / "set", names)
    places = {"SET": str(source), "DT": str(tmp_path / "set" / "dt.json"), "OUT": str(tmp_path / "out")}
    argv = [places.get(word, word) for word in VERBS[verb]]
    argv = [word.replace("OUT", places["OUT"]) if word.startswith("OUT/") else word for word in argv]
    code, said = on_a_terminal(argv, monkeypatch)
    assert code in (0, 2)
    assert said
    steers = [c for c in said if (ord(c) < 32 and c not in "\n\t") or c in "\x7f\x9b\u202e"]
    assert not steers, said


def test_every_way_to_write_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    app = PlainApp(name="flyspeck")

    @app.command("go")
    def go() -> None:
        typer.echo("echo \x1b[31m")
        print("print \x1b[31m\udce4")
        print("err \x1b[31m", file=sys.stderr)
        sys.stdout.writelines(["lines \x1b[31m\n"])
        log = logging.getLogger("tests.plain")
        log.addHandler(handler := logging.StreamHandler())
        log.warning("log \x1b[31m")
        log.removeHandler(handler)

    @app.command("other")
    def other() -> None:
        """So that the app has verbs."""

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run_app(app, ["go"]) == 0
    assert sys.stdout is terminal
    said = terminal.getvalue()
    assert [line.split()[0] for line in said.splitlines()] == ["echo", "print", "err", "lines", "log"]
    assert "\x1b" not in said
    assert "\\udce4" in said


def test_what_draws_finds_the_stream_itself() -> None:
    from rich.console import Console

    terminal = Terminal()
    stream = PlainStream(terminal)
    Console(file=stream, force_terminal=True).print("[red]x[/red]")  # type: ignore[arg-type]
    assert "\x1b[31m" in terminal.getvalue()
    assert steered(stream) is terminal  # type: ignore[arg-type]
    with plain_output(), plain_output():
        assert not isinstance(steered(sys.stdout), PlainStream)
    assert shown("a\tb\nc") == "a\tb\nc"
