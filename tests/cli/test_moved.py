"""Commands that are in the laboratory now say so in one line, whatever follows them."""

from __future__ import annotations

import pytest

from flyspeck.cli.main import main


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["bench"], "flyspeck-lab run"),
        (["data", "prepare"], "flyspeck-lab prepare"),
        (["dpnet", "curve"], "flyspeck-lab curve"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--help"], ["alpha", "--data", "x", "--list"], ["--no-such-option=1"]])
def test_an_old_command_names_the_new_one(
    old: list[str], new: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*old, *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"`flyspeck {' '.join(old)}` is now `{new}`" in err
    assert "flyspeck-lab (folder lab/ of the repository)" in err


@pytest.mark.parametrize("group", [["--help"], ["data", "--help"], ["dpnet", "--help"]])
def test_help_does_not_list_old_commands(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(group) == 0
    words = capsys.readouterr().out.split()
    assert not {"bench", "prepare", "curve"} & set(words)
