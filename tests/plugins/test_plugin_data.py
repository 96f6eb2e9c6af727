"""Readers, writers, protocols and transforms from outside: found by name, found out by content, and wrong in one line."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import flyspeck
from flyspeck import UserError
from flyspeck.cli.main import main
from flyspeck.data.readers import format_of, read_annotations
from flyspeck.data.readers.assemble import Draft, assemble
from flyspeck.data.transforms import transform_named
from flyspeck.evaluate import protocol_named
from flyspeck.infer.outputs import CsvWriter

SOURCE = """
from pathlib import Path

from flyspeck import register_reader
from flyspeck.data.readers.assemble import Draft, assemble

def read(path, options):
    draft = Draft(where=path, root=path.parent, names=["thing"], category_ids=[1])
    for row, line in enumerate(path.read_text().splitlines()):
        draft.add_image(row + 1, f"{row}.png", (50, 60))
        draft.add_box(row, [float(word) for word in line.split()], 0, f"line {row + 1}")
    return assemble(draft, options, f"dots: {path.name}")

def register():
    register_reader("dots", read, endings=[".dots"])
"""


@pytest.fixture
def dots(tmp_path: Path) -> Path:
    path = tmp_path / "val.DOTS"
    path.write_text("1 2 5 6\n10 10 13 14\n")
    return path


def reads_nothing(path, options):
    return assemble(Draft(where=path, root=path.parent, names=["thing"], category_ids=[1]), options, "nothing")


def test_an_installed_reader_is_found_by_the_ending_and_by_its_name(install, dots):
    install("my-format", "3", parts=SOURCE)
    assert read_annotations(dots).boxes.tolist() == [[1, 2, 5, 6], [10, 10, 13, 14]]
    assert format_of(dots) == "dots"
    plain = dots.with_suffix(".txt")
    dots.rename(plain)
    assert read_annotations(plain, format="dots").num_boxes == 2
    with pytest.raises(UserError, match=r"no annotations of a known format.*dots"):
        read_annotations(plain)


def test_nothing_is_loaded_for_flyspecks_own_formats(install, tmp_path):
    install("my-format", "3", parts=SOURCE)
    path = tmp_path / "a.csv"
    path.write_text("image_path,xmin,ymin,xmax,ymax,label\nx.png,1,2,5,6,boat\n")
    assert read_annotations(path).num_boxes == 1
    assert read_annotations(path, format="csv").num_boxes == 1
    assert "parts" not in sys.modules


def test_flyspecks_own_formats_come_first(tmp_path):
    flyspeck.register_reader("other_csv", reads_nothing, endings=[".csv"])
    path = tmp_path / "a.csv"
    path.write_text("image_path,xmin,ymin,xmax,ymax,label\nx.png,1,2,5,6,boat\n")
    assert read_annotations(path).source == "csv: a.csv"
    assert read_annotations(path, format="other_csv").source == "nothing"


def test_two_readers_that_claim_a_file_have_to_be_chosen_from(dots):
    flyspeck.register_reader("one", reads_nothing, endings=[".dots"])
    flyspeck.register_reader("two", reads_nothing, detect=lambda path: True)
    with pytest.raises(UserError, match=r"it could be one or two; give --format"):
        read_annotations(dots)


def test_the_ending_and_the_look_must_both_agree(dots):
    looked = []
    flyspeck.register_reader("one", reads_nothing, endings=[".dots"], detect=lambda path: looked.append(path) or False)
    with pytest.raises(UserError, match="no annotations of a known format"):
        read_annotations(dots)
    assert set(looked) == {dots}
    looked.clear()
    with pytest.raises(UserError, match="no annotations of a known format"):
        read_annotations(dots.rename(dots.with_suffix(".other")))
    assert not looked  # a file of another ending is not even opened


def test_a_reader_that_names_neither_ending_nor_look_waits_to_be_named(dots):
    flyspeck.register_reader("one", reads_nothing)
    with pytest.raises(UserError, match="no annotations of a known format"):
        read_annotations(dots)
    assert read_annotations(dots, format="one").source == "nothing"


def test_a_look_that_fails_is_one_line(dots):
    flyspeck.register_reader("one", reads_nothing, detect=lambda path: 1 // 0)
    with pytest.raises(
        UserError, match=r"val\.DOTS: the reader 'one' of a plugin failed to look at it \(ZeroDivisionError"
    ):
        read_annotations(dots)


def test_a_folder_can_be_claimed_too(tmp_path):
    (tmp_path / "marks").mkdir()
    flyspeck.register_reader("marks", reads_nothing, detect=lambda path: (path / "marks").is_dir())
    assert format_of(tmp_path) == "marks"


def test_the_command_line_reads_and_writes_a_plugins_formats(outside, dots, capsys):
    folder = outside(
        parts=SOURCE
        + """
    from flyspeck import register_writer
    register_writer("count", annotations=lambda table, path: path.write_text(str(table.num_boxes)))
"""
    )
    assert main(["data", "inspect", str(dots), "--plugin", "parts", "--no-check-files"]) == 0
    assert "2 images, 2 boxes" in capsys.readouterr().out
    assert main(["data", "convert", str(dots), "--to", "count", "--out", "count.txt", "--plugin", "parts"]) == 0
    assert (folder / "count.txt").read_text() == "2"
    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 4, 4], "score": 0.9}]
    (folder / "found.json").write_text(json.dumps(results))
    capsys.readouterr()
    assert main(["eval", "--gt", str(dots), "--dt", "found.json", "--plugin", "parts"]) == 0
    assert re.search(r"^all .* 50\.50 +50\.00", capsys.readouterr().out, re.MULTILINE)  # one of two


def test_a_writer_of_detections_is_opened_by_name(tmp_path):
    from flyspeck.infer.outputs import open_writers

    flyspeck.register_writer("mine", detections=lambda folder, *, classes, category_ids: CsvWriter(folder))
    (writer,) = open_writers(tmp_path, ["mine", "mine"], classes=("a",))
    writer.close()
    assert (tmp_path / "detections.csv").is_file()
    with pytest.raises(UserError, match="unknown output format 'mien'; did you mean 'mine'"):
        open_writers(tmp_path, ["mien"], classes=())
    with pytest.raises(ValueError, match="neither"):
        flyspeck.register_writer("nothing")


def test_a_protocol_has_its_own_name():
    flyspeck.register_protocol(replace(protocol_named("flyspeck"), name="mine", ious=(0.4,)))  # type: ignore[arg-type]
    assert protocol_named("mine").text.startswith("mine: AP at IoU 0.4")
    with pytest.raises(UserError, match="the protocol 'mine' is taken by the plugin test_plugin_data"):
        flyspeck.register_protocol(protocol_named("mine"))


def brighten(by: float, *, least: int = 0):
    return lambda sample, rng, another=None: (sample, by, least)


def test_a_transform_takes_the_keys_of_the_recipe():
    flyspeck.register_transform("brighten", brighten)
    step = transform_named("brighten", {"by": 2.0})
    assert step("sample", np.random.default_rng(0)) == ("sample", 2.0, 0)  # type: ignore[arg-type, comparison-overlap]
    for options, words in (
        ({"bye": 2}, "augment.extra, brighten: unknown key 'bye'; did you mean 'by'"),
        ({"least": 2}, "'by' is missing"),
    ):
        with pytest.raises(UserError, match=words):
            transform_named("brighten", options)
    with pytest.raises(UserError, match=r"no transform 'brigthen'; did you mean 'brighten'"):
        transform_named("brigthen", {})


def test_flyspecks_own_further_transforms_have_names():
    assert transform_named("mosaic", {"size": [64, 64], "probability": 1.0}).size == (64, 64)  # type: ignore[attr-defined]
    assert transform_named("resize", {"size": [64, 64]}).size == (64, 64)  # type: ignore[attr-defined]
