"""YAML as recipes have it: plain values only, every fault one line with the file and the line in it.

Read as YAML 1.1 (PyYAML), but for two things that lose what was written: a key that stands twice is refused, and what looks
like a date is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from flyspeck.errors import UserError

KeyPath = tuple[str | int, ...]
"""Keys from the root to a value."""


class Places:
    """Where each key of a recipe is written: its file and line, or the option of the command line that set it."""

    def __init__(self, source: Path | str, lines: Mapping[KeyPath, int] | None = None) -> None:
        self.source, self.lines = source, dict(lines or {})
        self.set_by: dict[KeyPath, str] = {}

    def __call__(self, path: KeyPath) -> str:
        """The place of the key at `path`, or of the nearest key around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.set_by:
                return self.set_by[path[:length]]
            if path[:length] in self.lines:
                return f"{self.source}, line {self.lines[path[:length]]}"
            inside = [told for key, told in self.set_by.items() if key[:length] == path[:length]]
            if inside:
                return inside[-1]
        return str(self.source)


class _Loader(yaml.SafeLoader):
    """Plain values; a fault of any kind is a YAMLError with its line."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError, TypeError, KeyError, IndexError, AttributeError) as error:
            shown = str(node.value)[:40] if isinstance(node, yaml.ScalarNode) else node.tag
            raise yaml.constructor.ConstructorError(
                None, None, f"'{shown}' cannot be read as {node.tag.rpartition(':')[2]} ({error})", node.start_mark
            ) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    line = key.start_mark.line + 1
                    if key.value in seen:
                        what = f"the key '{key.value}' stands twice, first in line {seen[key.value]}"
                        raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
                    seen[key.value] = line
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> tuple[Any, Places]:
    """The content of a file and where its keys stand. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError("not text in UTF-8", where=f"{path}, line {line}", fix="save it as UTF-8") from None
    content, lines = _parse(text, lambda line: f"{path}, line {line}" if line else str(path))
    return content, Places(path, lines)


def parse_value(text: str, *, where: str) -> Any:
    """One value, as `--set` takes it. Raises UserError."""
    return _parse(text, lambda line: where)[0]


def nested_too_deeply(text: str) -> bool:
    """Whether brackets stand in brackets deeper than any recipe or data.yaml has them: PyYAML's time grows with the square."""
    depth = 0
    for mark in re.finditer(r"[\[\]{}]", text):
        depth = depth + 1 if mark[0] in "[{" else max(0, depth - 1)
        if depth > _DEEPEST:
            return True
    return False


_DEEPEST = 64


def _parse(text: str, where: Callable[[int], str]) -> tuple[Any, dict[KeyPath, int]]:
    lines: dict[KeyPath, int] = {}
    if nested_too_deeply(text):
        raise UserError("not YAML that can be read: nested too deeply", where=where(0))
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _check_growth(node, {}, set())
        _note_lines(node, (), lines, set())
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        context = getattr(error, "context", None)
        what = " ".join(f"not YAML: {problem}{f', {context}' if context else ''}".split())
        fix = "indent with spaces" if "'\\t'" in what else ""
        line = mark.line + 1 if mark is not None else 0
        if mark is None and isinstance(getattr(error, "position", None), int):  # a character that YAML has not
            line = text[: error.position].count("\n") + 1  # type: ignore[attr-defined]
        raise UserError(what, where=where(line), fix=fix) from None
    except RecursionError:
        raise UserError("not YAML that can be read: nested too deeply", where=where(0)) from None


def _check_growth(node: Any, sizes: dict[int, int], above: set[int]) -> int:
    """The values below `node`, those that aliases repeat counted every time. Raises YAMLError where they are more than any file
    of ours has, or where a value holds itself: whoever walks over the content would never come to an end.
    """
    if id(node) in sizes:
        return sizes[id(node)]
    if id(node) in above:
        raise yaml.constructor.ConstructorError(None, None, "an alias stands within its own value", node.start_mark)
    above.add(id(node))
    inside = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = [part for entry in inside for part in (entry if isinstance(entry, tuple) else (entry,))]
    size = 1 + sum(_check_growth(part, sizes, above) for part in parts)
    above.remove(id(node))
    if size > _MOST_VALUES:
        what = f"aliases repeat its values to more than {_MOST_VALUES}"
        raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
    sizes[id(node)] = size
    return size


_MOST_VALUES = 1_000_000


def _note_lines(node: Any, path: KeyPath, lines: dict[KeyPath, int], seen: set[int]) -> None:
    """The line of every key below `node`; what an alias repeats is noted once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                lines[*path, key.value] = key.start_mark.line + 1
                _note_lines(value, (*path, key.value), lines, seen)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[*path, number] = value.start_mark.line + 1
            _note_lines(value, (*path, number), lines, seen)


def set_value(content: dict[str, Any], places: Places, override: str) -> KeyPath:
    """Applies `section.key=value`, the value in YAML, to `content`; returns the key's path. Raises UserError.

    A section that is absent or null is begun.
    """
    key, equals, value = override.partition("=")
    keys = tuple(key.strip().split("."))
    if not equals or not all(keys):
        raise UserError(f"'{override}' sets nothing", where="--set", fix="write section.key=value")
    where = f"--set {override}"
    place: Any = content
    for depth, parent in enumerate(keys[:-1]):
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise UserError(f"'{'.'.join(keys[: depth + 1])}' is not a section", where=where)
    place[keys[-1]] = parse_value(value, where=where)
    places.set_by[keys] = where
    return keys
