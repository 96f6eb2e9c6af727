"""What the head of a recipe says is to be done: its commands, and the recipes that come before it.

A head is the comment a recipe begins with. A line of it that is indented by two or more spaces and begins with `flyspeck` or
`flyspeck-lab` is a command, as a shell takes it: a backslash goes on in the next line, ` # ` begins a remark. "After
recipes/x.yaml" (or "and recipes/y.yaml") says that the commands of those heads come first.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
COMMAND = re.compile(r"^#\s{2,}(?=flyspeck(-lab)? )")
EARLIER = re.compile(r"\b[Aa]fter ((?:recipes/\S+?\.yaml(?: and )?)+)")


def name_of(path: Path) -> str:
    """The recipe as a command names it."""
    return path.relative_to(ROOT).as_posix()


def head_lines(path: Path) -> list[str]:
    """The lines of the comment that a recipe begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((row for row, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def commands(path: Path) -> list[list[str]]:
    """The commands of a head, as words."""
    found, going_on = [], False
    for line in head_lines(path):
        if COMMAND.match(line) or going_on:
            text = line.lstrip("# ")
            found[-1:] = [found[-1].rstrip("\\ ") + " " + text] if going_on else [*found[-1:], text]
            going_on = text.endswith("\\")
    return [shlex.split(line, comments=True) for line in found]


def prose(path: Path) -> str:
    """What of a head is no command."""
    rest, going_on = [], False
    for line in head_lines(path):
        taken = going_on or COMMAND.match(line) is not None
        if not taken:
            rest.append(line.lstrip("# "))
        going_on = taken and line.endswith("\\")
    return " ".join(rest)


def earlier(path: Path) -> list[Path]:
    """The recipes whose commands come before those of this one."""
    named = [name for group in EARLIER.findall(prose(path)) for name in re.findall(r"recipes/\S+?\.yaml", group)]
    return [ROOT / name for name in named]


def all_commands(path: Path) -> list[list[str]]:
    """The commands of a head after those of the recipes that it says come first; each command once."""
    listed: list[list[str]] = []
    for before in (*earlier(path), path):
        for command in commands(before) if before == path else all_commands(before):
            if command not in listed:
                listed.append(command)
    return listed
