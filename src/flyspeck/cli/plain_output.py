"""What is written on the terminal steers it only where the program means it to: a name out of a file never does.

Names of classes and files come from other people's files, and a terminal obeys what is in them: an escape sequence may hide
lines, rename the window or answer as if somebody typed. So the streams of a command show such characters as escapes (`\\x1b`),
whoever writes: a verb, a library or a warning.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, marks that turn the direction of a text around, and halves of characters, which no
stream can encode."""


def shown(text: str) -> str:
    """`text` with escapes for what a terminal would obey, and for what has no encoding."""
    return _STEERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PlainStream:
    """A stream of text whose writers steer nothing."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # the name by which rich, which draws bars and tables, finds the stream itself

    def write(self, text: str) -> int:
        """Writes `shown` of a text."""
        self.rich_proxied_file.write(shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes several."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def steered(stream: TextIO) -> TextIO:
    """The stream behind a `PlainStream`, for what draws on the terminal."""
    return stream.rich_proxied_file if isinstance(stream, PlainStream) else stream


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Within it, stdout and stderr are plain."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (PlainStream(steered(stream)) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
