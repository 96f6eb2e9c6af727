"""The one error a user sees: what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
import re
import reprlib
import shutil
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """A mistake in the user's input; the command line prints it on one line and exits with 2.

    `what` states the fault, `where` the file, line, key or image id, `fix` what to do about it.
    """

    def __init__(self, what: str, *, where: object = "", fix: str = "") -> None:
        self.what, self.where, self.fix = one_line(what), one_line(str(where), 1000), one_line(fix, 1000)
        text = f"{self.where}: {self.what}" if self.where else self.what
        super().__init__(f"{text}; {self.fix}" if fix else text)


def one_line(text: str, most: int = 600) -> str:
    """`text` as one line that every terminal shows, for messages that quote a file.

    Line breaks, control characters and broken characters become their escapes; the middle of what is longer than `most` letters
    is left out.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-most // 2 :]}"
    if text.isprintable():
        return text
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


def counted(number: float, noun: str, plural: str = "") -> str:
    """`1 minute`, `2.5 minutes`, `3 classes`, `1234567 boxes`; a plural that is not regular, or a verb with it, is given."""
    if number == 1:
        return f"1 {noun}"
    said = str(int(number)) if float(number).is_integer() else f"{number:g}"  # no image is one of 1e+06
    return f"{said} {plural or noun + ('es' if noun.endswith(('s', 'x')) else 's')}"


def brief(value: Any) -> str:
    """`repr` of a value out of a file, cut where it is long or deep: a message never grows with the file."""
    return _BRIEF.repr(value)


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 80
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict = 2, 4, 3


_LISTED = 16
"""Known words that an error lists where none is close."""


_CLOSE = 0.66
"""Share of letters in common (difflib's ratio) from which a word is taken for a slip of another."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the known words meant by `name`: those it is a part of, else the closest; all when none is close.

    `coco` means `coco_bbox`, as one of the words that it is made of; `max` and `width` are not close.
    """
    known = sorted(dict.fromkeys(known))
    lower = name.lower()
    same = [word for word in known if word.lower() == lower]
    parts = [word for word in known if len(lower) > 1 and lower in re.split(r"[^a-z0-9]+", word.lower())]
    starts = [word for word in known if len(lower) > 2 and word.lower().startswith(lower)]
    by_letters = {word.lower(): word for word in known}
    close = [by_letters[word] for word in difflib.get_close_matches(lower, by_letters, n=1, cutoff=_CLOSE)]
    for found in (same, parts, close, starts):
        if 0 < len(found) <= 3:
            return f"did you mean {' or '.join(repr(word) for word in found)}?"
    listed = known[:_LISTED]
    more = f", … ({len(known)} in all)" if len(known) > _LISTED else ""
    return f"known: {', '.join(listed)}{more}"


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"this needs the package '{package}'", fix=install(extra))


def install(*extras: str) -> str:
    """The command that brings what the extras need into the Python that runs here.

    It names their packages, and so works wherever flyspeck came from: an index, a wheel, a clone or `bootstrap.py`, whose
    environments may hold uv's packages and no pip. Nothing is downloaded.
    """
    packages = [package for extra in extras for package in _packages(extra)]
    if not packages:
        packages = [f"flyspeck[{','.join(extras)}]"]
    words = " ".join(f"'{package}'" for package in dict.fromkeys(packages))
    own = shutil.which("python")
    here = own is not None and Path(own).parent == Path(sys.executable).parent
    if find_spec("pip") is not None:
        return f"{'pip' if here else f'{sys.executable} -m pip'} install {words}"
    return f"uv pip install {'' if here else f'--python {sys.executable} '}{words}"


def _packages(extra: str) -> list[str]:
    """What an extra needs: by the project file of a clone, else by what is written of the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file() and project.parent / "src" == Path(__file__).resolve().parents[1]:
        content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return content["optional-dependencies"].get(extra, [])
    try:
        listed = requires("flyspeck") or []
    except PackageNotFoundError:  # run from a folder of sources
        return []
    named = [entry.partition(";") for entry in listed]
    return [name.strip() for name, _, marker in named if marker.strip().replace('"', "'") == f"extra == '{extra}'"]
