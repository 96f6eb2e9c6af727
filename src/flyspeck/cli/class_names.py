"""Names of classes as a user has them: in a list, or in a file of one of the usual kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flyspeck.errors import UserError


def class_names(text: str, *, where: str) -> list[str]:
    """`car,boat`, or a file: one name a line, a JSON list or mapping, or YAML with `names` (as YOLO's data.yaml).

    Raises UserError for a file that cannot be read, or has no names.
    """
    from flyspeck.cli.values import parse_names

    path = Path(text)
    if path.suffix.lower() not in (".txt", ".names", ".json", ".yaml", ".yml") and not path.is_file():
        return parse_names(text, where=where)
    if not path.is_file():
        raise UserError("no such file of classes", where=path, fix="check the path, or write car,boat")
    if path.suffix.lower() in (".yaml", ".yml"):
        from flyspeck.plain_yaml import read_yaml

        content, _ = read_yaml(path)
        return _listed(content.get("names") if isinstance(content, dict) and "names" in content else content, path)
    try:
        lines = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return _listed(json.loads(lines), path)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"no list of classes ({error})", where=path, fix="write one name a line, in UTF-8") from None
    return _listed([line.strip() for line in lines.splitlines() if line.strip()], path)


def _listed(content: Any, path: Path) -> list[str]:
    """Names in the order of their numbers."""
    if isinstance(content, dict):
        numbered = {str(key): name for key, name in content.items()}
        content = [numbered.get(str(number)) for number in range(len(numbered))]
    if not isinstance(content, list) or not content or not all(isinstance(name, str | int) for name in content):
        raise UserError("no classes numbered from 0", where=path, fix="write one name a line")
    return [str(name) for name in content]
