"""Cells, names, addresses and records as `flyspeck.files` stores them and reads them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flyspeck.errors import UserError
from flyspeck.files import cell, local_output, read_records, replace_file, storable, text_of, write_json


@pytest.mark.parametrize(
    ("place", "match"),
    [
        *(
            ("file:///tmp/a", "a file:// address"),
            ("FILE:/tmp/a", "a file:// address"),
            ("s3://bucket/a", "not to s3://"),
        ),
        *(("s3:/bucket/a", "not to s3://"), ("/vsis3/bucket/a", "not to /vsis3/")),
    ],
)
def test_outputs_are_local(place: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        local_output(place)


def test_local_paths_are_themselves() -> None:
    assert [local_output(place) for place in ("a/b", "/a", "C:/a", "a:b")] == [
        Path(p) for p in ("a/b", "/a", "C:/a", "a:b")
    ]


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    names: list[Path] = []
    replace_file(tmp_path / "a.txt", lambda temporary: (names.append(temporary), temporary.write_text("x")))
    names[0].symlink_to(other)
    replace_file(tmp_path / "a.txt", lambda temporary: temporary.write_text("new"))
    assert (other.read_text(), (tmp_path / "a.txt").read_text()) == ("kept", "new")


@pytest.mark.parametrize("text", ["=1+1", "'=1", "-", "+a", "@b", "a", "'a", "-3", "+2.5", "", "''=x", "\t=1", "it's"])
def test_a_cell_is_read_back(text: str) -> None:
    assert text_of(cell(text).strip('"')) == text
    assert (cell(text) != text) == (text.lstrip("'")[:1] in tuple("=+-@\t") and text not in ("-3", "+2.5", ""))


def test_names_are_stored_by_what_the_file_takes() -> None:
    assert storable("a\udce4\x1b") == "a\\udce4\x1b"
    assert storable("a\udce4\x1b\t", xml=True) == "a\\udce4\\x1b\t"


def test_json_is_indented_by_one(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1]})
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  1\n ]\n}\n'
    write_json(tmp_path / "a.json", {"a": [1]}, indent=None)
    assert (tmp_path / "a.json").read_text() == '{"a":[1]}\n'


STEP: dict[str, Any] = {"kind": "step", "epoch": 1, "step": 2, "losses": {"box": 1.5}}


@pytest.mark.parametrize(
    "change",
    [
        *({"kind": "other"}, {"kind": None}, {"epoch": "1"}, {"epoch": None}, {"step": None}, {"step": 2**63}),
        *({"step": True}, {"losses": None}, {"losses": 3}, {"losses": {"box": "x"}}, {"figures": [1]}, {"lr": "x"}),
        *({"seconds": None}, {"epoch": -(2**63)}, {"observed": 4}),
    ],
)
def test_what_is_no_record_of_a_run(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in (STEP, {**STEP, **change})))
    with pytest.raises(UserError, match="is no record of a run") as caught:
        read_records(path)
    assert "record 2" in str(caught.value)


def test_records_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    epoch = {"kind": "epoch", "epoch": 1, "figures": {"ap50": 0.5}}
    lines = (STEP, {**STEP, "step": 2**63 - 1, "lr": 1}, epoch)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert [record.get("metrics") for record in read_records(path)] == [None, None, {"ap50": 0.5}]
