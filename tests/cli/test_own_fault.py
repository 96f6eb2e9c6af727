"""An exception that nobody foresaw: one line, exit code 1, and the traceback in a file that the line names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flyspeck.cli.layout import PlainApp
from flyspeck.cli.main import run_app


def failing(error: BaseException) -> PlainApp:
    app = PlainApp(name="flyspeck")

    @app.command("go")
    def go() -> None:
        raise error

    @app.command("other")
    def other() -> None:
        """So that the app has verbs."""

    return app


def test_a_fault_of_ours_is_one_line_and_its_traceback_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_app(failing(KeyError("two\nlines\x1b[31m")), ["go"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said
    assert "a fault of flyspeck, not yours: KeyError" in said
    kept = Path(re.search(r"with (\S+)$", said.strip())[1])  # type: ignore[index]
    assert kept.parent == tmp_path
    assert "raise error" in kept.read_text()


def test_debug_shows_it() -> None:
    with pytest.raises(KeyError):
        run_app(failing(KeyError("x")), ["--debug", "go"])


def test_where_nothing_can_be_written_debug_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert run_app(failing(ZeroDivisionError("x")), ["go"]) == 1
    assert "run it again with --debug" in capsys.readouterr().err


def test_no_memory_is_no_fault_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(failing(MemoryError("Unable to allocate 4 GiB")), ["go"]) == 1
    assert capsys.readouterr().err.startswith("error: not enough memory (Unable to allocate 4 GiB)")


@pytest.mark.parametrize("name", ["a" * 5000 + ".png", "a\x1b[31mb.png", "a\nb.png"])
def test_a_fault_of_the_system_is_one_short_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name may come out of a file."""

    def fails(*_: object, **__: object) -> int:
        raise OSError(36, "File name too long", name)

    assert run_app(fails, []) == 2  # type: ignore[arg-type]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a")
    assert line.endswith("File name too long")
    assert line.isprintable()
    assert len(line) < 1100
