"""Files that would do something if they were obeyed, and how to see that they were not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any


class _Obeyed:
    """Pickled, it is a call that makes a file: whoever unpickles it by name has run it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


def pickled_call(canary: Path, protocol: int = 2) -> bytes:
    """A pickle that makes the file `canary` when it is obeyed."""
    return pickle.dumps({"state_dict": _Obeyed(canary), "data": _Obeyed(canary)}, protocol=protocol)


def obedient(canary: Path) -> Any:
    """The same as a value, for whatever packs values by pickle."""
    return _Obeyed(canary)


HOSTILE = (
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "' onmouseover='alert(1)",
    "</title></style><svg onload=alert(1)>",
    "&lt;b&gt;<b>-->]]>",
    "javascript:alert(1)",
    "\x1b[31m\x1b]0;owned\x07",
    '=cmd|"/c calc"!A1',
)
"""Names that break out of a page, a terminal or a table where they are not guarded."""
