"""The one error a user sees: what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
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


def brief(value: Any) -> str:
    """`repr` of a value out of a file, cut where it is long or deep: a message never grows with the file."""
    return _BRIEF.repr(value)


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 80
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict = 2, 4, 3


_LISTED = 16
"""Known words that an error lists where none is close."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the known word closest to `name`, or lists them all when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    listed = list(dict.fromkeys(known))
    more = f", … ({len(listed)} in all)" if len(listed) > _LISTED else ""
    return f"known: {', '.join(listed[:_LISTED])}{more}"


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"this needs the package '{package}'", fix=f"pip install 'flyspeck[{extra}]'")
