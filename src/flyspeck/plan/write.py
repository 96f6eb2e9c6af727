"""A plan as a recipe in YAML: every choice with its reason above it, and with what that rests on. It reads back as it stands."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from flyspeck.files import write_text
from flyspeck.plan.choices import JUDGED, Choice, Plan
from flyspeck.train.config import parse_recipe

_WIDTH = 118
_PATHS = ("data.train", "data.val")
_STARTS = ("model.weights", "model.start")


def recipe_text(plan: Plan, head: Sequence[str] = (), *, folder: Path | None = None) -> str:
    """The recipe with its reasons as comments, headed by the lines `head`.

    With `folder`, that of the file to be, paths are written relative to it.
    """
    lines = [line for text in head for line in _comment(text, "")]
    lines += ["#", f"# Where a reason ends with [judged], it is {JUDGED}; other brackets say where the numbers are."]
    lines += ["# What is not here has its default: `flyspeck train RECIPE --print-config` shows all fields."]
    tree: dict[str, Any] = {}
    for choice in plan.choices:
        *sections, last = choice.key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = choice
    return "\n".join([*lines, *_section(tree, 0, folder)]) + "\n"


def _section(tree: dict[str, Any], depth: int, folder: Path | None) -> Iterator[str]:
    space, before = "  " * depth, ""
    for key, entry in tree.items():
        if isinstance(entry, dict):
            if depth == 0:
                yield ""
            yield f"{space}{key}:"
            yield from _section(entry, depth + 1, folder)
            before = ""
            continue
        reason = (
            f"{entry.reason} [{'judged' if entry.rests_on == JUDGED else entry.evidence.removeprefix('measured: ')}]"
        )
        if reason != before:  # keys that one reason gives stand below it together
            yield from _comment(reason, space)
        before = reason
        yield f"{space}{key}: {_value(entry, folder)}"


def _comment(text: str, space: str) -> list[str]:
    start = f"{space}# "
    plain = " ".join(text.split())
    return textwrap.wrap(
        plain, _WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False, break_on_hyphens=False
    )


def _value(choice: Choice, folder: Path | None) -> str:
    value = choice.value
    is_path = choice.key in _PATHS or (choice.key in _STARTS and isinstance(value, str) and os.sep in value)
    if folder is not None and is_path:
        value = _relative(str(value), folder)
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _relative(path: str, folder: Path) -> str:
    """From the recipe's folder, where both are on one drive; with forward slashes, which every system takes."""
    try:
        found = os.path.relpath(Path(path).absolute(), folder.absolute())
    except ValueError:  # another drive
        return str(Path(path).absolute())
    return Path(found).as_posix()


def write_recipe(plan: Plan, path: Path, head: Sequence[str] = ()) -> Path:
    """Write the recipe to `path`, whose folder is made if need be; its text is read back before, so that what is no recipe is
    never written.

    Raises UserError where the recipe would be refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = recipe_text(plan, head, folder=path.parent)
    parse_recipe(yaml.safe_load(text), where=path)
    write_text(path, text)
    return path
