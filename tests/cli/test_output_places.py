"""Results go to local disks: whatever is named as an output elsewhere is refused before anything is made."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import flyspeck
from flyspeck.cli.layout import WRITTEN
from flyspeck.cli.main import main
from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.files import local_output, write_text
from flyspeck_lab.cli.main import main as laboratory
from verb_tree import all_verbs

VERBS = all_verbs()
# Options whose value is a path that is read. A new one belongs here, or to `WRITTEN`.
READ = {
    *(
        "--model",
        "--val",
        "--gt",
        "--dt",
        "--on",
        "--calibrate",
        "--weights",
        "--merge-from",
        "--against",
        "--tiles",
        "--target",
        "--train",
    ),
    *("--notes", "--teacher", "--tables", "--data", "--root", "--images", "--also", "--checkpoint", "--roi"),
}
CASES = [
    (path, option.opts[0])
    for path, command in VERBS.items()
    for option in command.params
    if option.param_type_name == "option" and option.opts[0] in WRITTEN
]


def test_every_option_that_is_a_path_is_known_as_read_or_written() -> None:
    paths = {
        option.opts[0]
        for command in VERBS.values()
        for option in command.params
        if option.param_type_name == "option" and option.metavar in ("FILE", "FOLDER", "PATH")
    }
    assert paths - READ - set(WRITTEN) == set()
    assert set(WRITTEN) <= paths


@pytest.mark.parametrize(("path", "option"), CASES)
def test_every_command_refuses_to_write_elsewhere(
    path: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    program, *words = path.split()
    example = shlex.split(VERBS[path].epilog or path)[len(path.split()) :]
    run = main if program == "flyspeck" else laboratory
    assert run([*words, *example, option, "s3://bucket/found"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert err.startswith(f"error: {option}: results are written to local folders, not to s3://; ")
    assert list(tmp_path.iterdir()) == []


def empty_table() -> Annotations:
    none = np.zeros(0)
    return Annotations(
        image_ids=np.zeros(0, np.int64), file_names=(), sizes=np.zeros((0, 2), np.int64),
        image_index=np.zeros(0, np.int64), boxes=np.zeros((0, 4)), labels=np.zeros(0, np.int64), area=none,
        ignore=np.zeros(0, bool), crowd=np.zeros(0, bool), box_ids=np.zeros(0, np.int64), classes=("a",), category_ids=(1,),
    )  # fmt: skip


@pytest.mark.parametrize(
    "write",
    [
        lambda out: flyspeck.predict("x", model="m", out=out),
        lambda out: flyspeck.train(
            {"name": "a", "data": {"train": "t", "val": "v"}, "model": {"name": "fcos:bh_resnet14"}}, out=out
        ),
        lambda out: flyspeck.export("r", out=out),
        lambda out: flyspeck.write_scenes(out, num_images=1, seed=1),
        lambda out: flyspeck.write_coco(empty_table(), out),
        lambda out: flyspeck.Detections.empty((4, 4)).save(out + "/x.json"),
        lambda out: flyspeck.find_label_errors("r", annotations=empty_table(), out=out),
        lambda out: write_text(Path(out), "x"),
    ],
)
@pytest.mark.parametrize("place", ["s3://bucket/found", "https://host/found", "/vsis3/bucket/found"])
def test_so_does_the_library(write: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="local folders"):
        write(place)
    assert list(tmp_path.iterdir()) == []


def test_a_file_address_is_told_apart() -> None:
    with pytest.raises(UserError, match="give the path alone"):
        local_output("file:///tmp/x")


@settings(max_examples=40)
@given(
    scheme=st.from_regex(r"[A-Za-z][A-Za-z0-9+.-]{1,8}", fullmatch=True),
    rest=st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=12),
)
@example(scheme="A0", rest="/")  # of which `Path` leaves `A0:`
def test_any_scheme_is_refused_also_as_a_path(scheme: str, rest: str) -> None:
    for place in (f"{scheme}://{rest}", Path(f"{scheme}://{rest}")):
        with pytest.raises(UserError):
            local_output(place)


@pytest.mark.parametrize(
    "place", ["found", "a:b", "C:/found", "C:\\found", "./s3/found", "/data/s3:/found", "http", "10:30/x"]
)
def test_local_names_with_a_colon_are_local(place: str) -> None:
    assert local_output(place) == Path(place)
