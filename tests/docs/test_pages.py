"""Pages that promise to work are run: their shell, Python and YAML blocks, in order, in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from flyspeck.cli.main import VERBS, main
from flyspeck_lab.cli.main import app as laboratory
from verb_tree import all_verbs, parse

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
    for link in re.findall(r"\]\(([^)#]+)\)", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if not link.startswith(("http://", "https://")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


COMMANDS = sorted(
    [*PAGES, ROOT / "models" / "README.md", *(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "benchmarks").rglob("*.yaml")]
)


@pytest.mark.parametrize("page", COMMANDS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_option_a_page_gives_a_verb_exists(page: Path) -> None:
    verbs = all_verbs()
    text = re.sub(r"\\\n\s*#?\s*", "", page.read_text(encoding="utf-8"))
    for command in re.findall(r"(?<![\w./-])flyspeck(?:-lab)? (?:(?!, flyspeck)[^`\n();])+", text):
        words = command.split()
        path = max((p for p in verbs if words[: len(p.split())] == p.split()), key=len, default=None)
        if path is not None:
            known = {name for option in verbs[path].params for name in (*option.opts, *option.secondary_opts)}
            given = {word.partition("=")[0].rstrip(",.;:)") for word in words if re.match(r"--[a-z]", word)}
            assert given <= known | {"--help"}, f"{page.name}: `{command}` gives {path} {given - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_line_of_a_page_parses(page: Path) -> None:
    verbs = all_verbs()
    for language, _, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in text.replace("\\\n", " ").splitlines() if language in ("bash", "console", "sh") else ():
            words = shlex.split(line.partition(" > ")[0].partition(" | ")[0], comments=True)
            if (
                words[:1] in (["flyspeck"], ["flyspeck-lab"])
                and not words[1].startswith("--")
                and "--help" not in words
            ):
                while "--plugin" in words:  # it is on the page, not here; `tests/plugins` runs that page
                    place = words.index("--plugin")
                    words = words[:place] + words[place + 2 :]
                parse(words, verbs)


def test_the_readme_uses_the_runs_that_it_makes() -> None:
    (job,) = [text for language, _, text in BLOCK.findall((ROOT / "README.md").read_text()) if "flyspeck init" in text]
    made: set[str] = set()
    for line in job.splitlines():
        words = shlex.split(line, comments=True)
        out = words[words.index("--out") + 1] if "--out" in words else ""
        used = {re.match(r"runs/\w+", word)[0] for word in words if word.startswith("runs/") and word != out}  # type: ignore[index]
        assert used <= made, f"{line}: nothing before it makes {used - made}"
        made.add(out)
