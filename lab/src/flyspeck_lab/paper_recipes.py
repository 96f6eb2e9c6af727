"""From a row of a paper to the recipe that gives it: complete, every field explained, its commands in the head."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flyspeck.errors import UserError
from flyspeck.files import local_output, write_text
from flyspeck.train.config import Recipe, parse_recipe
from flyspeck.train.reference import commented
from flyspeck_lab.paper_rows import Found, find, paper_sets

_WIDTH = 118


def file_name(found: Found) -> str:
    """Of the recipe of a row."""
    return f"{found.id.replace('/', '_')}.yaml"


def recipe_of(found: Found, folder: Path) -> Recipe:
    """The recipe of a row, checked, its paths relative to `folder`; `data` and `runs` are in the working folder.

    Raises UserError for a row of a system that is not here, and for one that is given by commands alone.
    """
    if found.kind == "missing":
        raise UserError(found.row.missing, where=found.id)
    if found.kind == "commands":
        raise UserError("the row is given by commands", where=found.id, fix="run " + "; ".join(found.row.commands))
    known = paper_sets()[found.inherited("of")]
    content = {"name": found.run_name, **found.content()}
    content["data"] = {"train": f"${{data}}/{known.train}", "val": f"${{data}}/{known.val}", **content["data"]}
    return parse_recipe(_placed(content, folder), where=found.id)


def _placed(value: Any, folder: Path) -> Any:
    """`value` with its places as paths relative to `folder`."""
    if isinstance(value, dict):
        return {key: _placed(entry, folder) for key, entry in value.items()}
    if isinstance(value, list):
        return [_placed(entry, folder) for entry in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    value = re.sub(r"\$\{recipe:([^}]+)\}", lambda m: file_name(find(m[1])), value)
    value = re.sub(r"\$\{run:([^}]+)\}", lambda m: f"${{runs}}/{find(m[1]).run_name}", value)
    return re.sub(r"^\$\{(data|runs)\}", lambda m: Path(os.path.relpath(m[1], folder)).as_posix(), value)


def recipe_text(found: Found, folder: Path) -> str:
    """The YAML of a row's recipe for a file in `folder`: its head, then every field with its sentence."""
    recipe = recipe_of(found, folder)
    return "\n".join(_head(found, folder, distills=recipe.distill is not None)) + "\n" + commented(recipe)


def write_recipes(found: Found, folder: Path) -> list[Path]:
    """Writes a row's recipe and those of the rows that it needs into `folder`; returns the files, its own last."""
    folder = local_output(folder, where="--out")
    written: list[Path] = []
    for one in [*found.needs("recipe"), *found.needs("run")]:
        written += [path for path in write_recipes(one, folder) if path not in written]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / file_name(found), recipe_text(found, folder))
    return [*written, folder / file_name(found)]


def _head(found: Found, folder: Path, *, distills: bool) -> Iterator[str]:
    """The comment that the file begins with: what the row is, its commands, what was printed."""
    known = paper_sets()[found.inherited("of")]
    place = (folder / file_name(found)).as_posix()
    table = found.table_name.replace("table", "Table ").replace("figure", "Figure ")
    yield from _prose(
        f"{found.row.label}. Paper {found.paper.paper}, {table}: {found.table.title}. {found.paper.cite}."
    )
    yield from _prose(found.inherited("about"))
    if found.row.note:
        yield from _prose(found.row.note)
    yield from _prose(f"{known.about}.")
    for command in known.prepare:
        yield from _command(command)
    if before := found.needs("run"):
        yield from _prose("After " + " and ".join((folder / file_name(one)).as_posix() for one in before) + ":")
    if found.trained != found:
        yield from _prose(f"Its run is that of {found.trained.id}: trained once, it serves both.")
    for command in commands(found, place, distills=distills):
        yield from _command(command)
    yield "#"
    yield from _prose(f"Printed: {printed(found) or 'no number'}. Never run here on this data set.")
    changes = ", ".join(f"{key}: {json.dumps(_placed(value, folder))}" for key, value in found.trained.row.set.items())
    yield from _prose(f"Of its table's base `{found.base[0]}` it changes {changes or 'nothing'}.")
    yield "#"


def commands(found: Found, place: str, *, distills: bool) -> list[str]:
    """From training to the printed metrics, of the recipe file `place`."""
    known, run = paper_sets()[found.inherited("of")], f"runs/{found.run_name}"
    seen_as = f"found/{found.id.replace('/', '_')}"
    chooses = found.inherited("use") if found.row.factor is None and found.content().get("dynamic") else ""
    listed = [f"flyspeck {'distill' if distills else 'train'} {place}"]
    listed += [command.format(run=run) for command in found.inherited("after") if chooses]
    more = found.inherited("predict") + (f" --factor {found.row.factor}" if found.row.factor is not None else "")
    predict = known.predict.format(model=f"{run}/{chooses}" if chooses else run, found=seen_as)
    listed.append(f"{predict} {more.strip()}".strip())
    protocols = [name for name in found.table.protocols if name != "none"]
    return [*listed, *(known.evaluate.format(found=seen_as, protocol=name) for name in protocols)]


def printed(found: Found) -> str:
    """The published numbers with their names; empty where the paper prints none."""
    numbers = found.row.published or []
    return ", ".join(f"{name} {value}" for name, value in zip(found.table.columns, numbers, strict=False))


def _prose(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _command(command: str) -> Iterator[str]:
    """A command as an indented line, broken before an option where it is long."""
    line = "#   "
    for part in re.split(r"\s(?=--)", command):
        if len(line) + len(part) > _WIDTH and line.strip("# "):
            yield f"{line.rstrip()} \\"
            line = "#       "
        line += f"{part} "
    yield line.rstrip()
