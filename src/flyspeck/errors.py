"""The one error a user sees: what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the user's input; the command line prints it on one line and exits with 2.

    `what` states the fault, `where` the file, line, key or image id, `fix` what to do about it.
    """

    def __init__(self, what: str, *, where: object = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, str(where), fix
        text = f"{where}: {what}" if str(where) else what
        super().__init__(f"{text}; {fix}" if fix else text)


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
