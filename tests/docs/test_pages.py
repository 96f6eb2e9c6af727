"""Pages that promise to work are run: their shell, Python and YAML blocks, in order, in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from flyspeck.cli.main import VERBS, main
from flyspeck_lab.cli.main import app as laboratory

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted([ROOT / "README.md", ROOT / "lab" / "README.md", *(ROOT / "docs").rglob("*.md")])
RUN = [ROOT / "docs" / "start.md", ROOT / "docs" / "how-to" / "distill.md"]


@pytest.mark.parametrize("page", RUN, ids=lambda p: p.stem)
def test_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for language, about, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "bash":
            for line in text.splitlines():
                ran += run_line(line, capsys)
        elif language == "python":
            exec(compile(text, str(page), "exec"), {})
            ran += 1
        elif "file=" in about:
            Path(about.split("file=")[1].strip()).write_text(text, encoding="utf-8")
    assert ran >= 7


def run_line(line: str, capsys: pytest.CaptureFixture[str]) -> int:
    words = shlex.split(line)
    assert words[0] == "flyspeck", line
    target = words[words.index(">") + 1] if ">" in words else None
    capsys.readouterr()
    assert main(words[1 : words.index(">") if target else None]) == 0, f"{line}\n{capsys.readouterr().err}"
    if target:
        Path(target).write_text(capsys.readouterr().out, encoding="utf-8")
    return 1


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_verb_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {m for block in BLOCK.findall(text) for m in re.findall(r"^flyspeck (\w+)", block[2], re.MULTILINE)}
    named |= set(re.findall(r"`flyspeck (\w+)", text))
    assert named <= set(VERBS), f"{page.name} names {named - set(VERBS)}"
    lab = {command.name or command.callback.__name__ for command in laboratory.registered_commands if command.callback}
    named = set(re.findall(r"flyspeck-lab (\w+)", "".join(block[2] for block in BLOCK.findall(text))))
    named |= set(re.findall(r"`flyspeck-lab (\w+)", text))
    assert named <= lab, f"{page.name} names {named - lab}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
