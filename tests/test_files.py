"""A file is there whole, the new one or the one before; a log is read up to where a kill cut it off."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flyspeck.errors import UserError
from flyspeck.files import (
    cell,
    finite,
    is_left_over,
    json_lines,
    make_folder,
    own_place,
    read_json,
    read_jsonl,
    replace_file,
    uninterrupted,
    write_bytes,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_before_survives_whatever_stops_the_writing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "before")

    def stops(error: BaseException):
        def write(temporary: Path) -> None:
            temporary.write_text("half")
            assert path.read_text() == "before"
            raise error

        return write

    for error, shown, extra in (
        (OSError(28, "No space left on device"), UserError, ()),
        (RuntimeError("PytorchStreamWriter failed"), UserError, (RuntimeError,)),
        (RuntimeError("a bug of ours"), RuntimeError, ()),
        (KeyboardInterrupt(), KeyboardInterrupt, ()),
    ):
        with pytest.raises(shown, match="could not be written .*No space" if isinstance(error, OSError) else None):
            replace_file(path, stops(error), errors=extra)
        assert path.read_text() == "before"
        assert names(tmp_path) == ["a.json"]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not be written \(No such file or directory\)"):
        write_text(tmp_path / "no" / "a.txt", "x")


def test_the_folder_of_an_output_is_made(tmp_path: Path) -> None:
    make_folder(tmp_path / "new" / "deeper")
    make_folder(tmp_path / "new" / "deeper")
    assert (tmp_path / "new" / "deeper").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/sub: cannot make this folder"):
        make_folder(tmp_path / "file" / "sub")


def test_the_temporary_file_has_the_ending_of_the_file(tmp_path: Path) -> None:
    """Pillow, NumPy and ONNX choose their format by it."""
    seen: list[Path] = []
    replace_file(tmp_path / "a.b.png", lambda temporary: seen.append(temporary) or temporary.write_bytes(b"x"))
    assert (seen[0].suffix, seen[0].parent) == (".png", tmp_path)
    assert names(tmp_path) == ["a.b.png"]


@pytest.mark.parametrize("name", ["a.b", "a", "a.b.png", ".hidden"])
def test_what_a_killed_process_leaves_is_known(tmp_path: Path, name: str) -> None:
    seen: list[bool] = []

    def write(temporary: Path) -> None:
        seen.append(is_left_over(temporary))
        temporary.touch()
        seen.append(is_left_over(temporary))

    replace_file(tmp_path / name, write)
    assert seen == [False, True]  # nothing is there yet, and then
    assert not is_left_over(tmp_path / name)


def test_text_and_bytes_come_back_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "ä\r\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\r\nb\n".encode()
    write_bytes(tmp_path / "a.bin", bytes(range(256)))
    assert (tmp_path / "a.bin").read_bytes() == bytes(range(256))


def test_json_has_no_numbers_that_are_none(tmp_path: Path) -> None:
    content = {"a": [1.5, float("nan"), (float("inf"), -float("inf"))], "b": {"c": True, "d": None}}
    write_json(tmp_path / "a.json", content)
    expected = {"a": [1.5, None, [None, None]], "b": {"c": True, "d": None}}
    assert json.loads((tmp_path / "a.json").read_text()) == finite(content) == expected
    write_json(tmp_path / "a.json", content, indent=None)
    assert (tmp_path / "a.json").read_text() == '{"a":[1.5,null,[null,null]],"b":{"c":true,"d":null}}\n'


def test_a_log_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_jsonl(path) == []
    whole = '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    for cut in range(len(whole) + 1):
        path.write_text(whole[:cut])
        found = [record["step"] for record in read_jsonl(path)]
        # A record is whole with its closing brace; the line end may be missing.
        assert found == [1, 2, 3][: whole[:cut].count("}")]


@pytest.mark.parametrize("wrong", ["nonsense", '{"step": ', "[1, 2]", "7", "[" * 100_000])
def test_a_broken_line_within_a_log_is_no_cut(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1}}\n\n{wrong}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match=r"log\.jsonl, line 3"):
        read_jsonl(path)
    assert list(json_lines(path)) == [(1, {"step": 1}), (3, None), (4, {"step": 2})]


def test_a_link_in_the_place_of_an_output_is_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").write_text("kept")
    for name in ("link", "dangling", "file", "absent"):
        assert own_place(tmp_path / name) == tmp_path / name
    assert names(tmp_path) == ["elsewhere", "file"]
    assert {(tmp_path / name).read_text() for name in names(tmp_path)} == {"kept"}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: what runs in the background may have been started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def hit() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_DFL])
def test_a_second_interrupt_is_passed_over_while_files_are_closed(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    closed = []
    with uninterrupted():
        hit()
        closed.append(1)
    assert closed == [1]
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(ZeroDivisionError), uninterrupted():  # what goes wrong within it goes on
        1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        hit()


def test_other_threads_close_without_signals() -> None:
    """Python lets the main thread alone set what a signal does."""
    seen = []

    def work() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("a,b", '"a,b"'), ('a"b', '"a""b"'), ("a\nb", '"a\nb"'), ("a\rb", '"a\rb"'), ("a b", "a b"), ("", ""), (None, ""),
        (True, "1"), (False, "0"), (0.1, "0.1"), (1 / 3, "0.3333333"), (12, "12"), (-3, "-3"), ("-3", "-3"),
        ("=1+1", "'=1+1"), ("=a,b", "\"'=a,b\""),
    ],
)  # fmt: skip
def test_fields_of_a_csv_file(value: object, field: str) -> None:
    assert cell(value) == field


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", "not a whole JSON file"), (b"\xff", "not a whole JSON file"), (b"[" * 100_000, "not a whole JSON file"),
     (b"[1]", "holds no JSON object"), (b"", "not a whole JSON file"), (b"9" * 5000, "not a whole JSON file")],
)  # fmt: skip
def test_what_is_no_json_object_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": [1]}')
    assert read_json(tmp_path / "a.json") == {"a": [1]}
