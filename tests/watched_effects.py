"""What a piece of code does beside its answer: files written elsewhere, calls over the network, other programs, code by name.

Python's audit events tell (PEP 578): an opened file with its flags, a renamed or removed one, a connection, a started program,
and a name that a pickle asks for. What a library in C does without Python is not seen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.mkdir": (0,),
    "os.symlink": (1,),
    "os.link": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "shutil.rmtree": (0,),
}
_OUTSIDE = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.system", "os.exec")
_OUTSIDE += ("os.posix_spawn", "os.startfile", "webbrowser.open", "urllib.Request", "pickle.find_class")
_IGNORED = ("/dev/null", "/dev/tty", "/proc/self/")


@dataclass
class Effects:
    """What was seen."""

    allowed: tuple[str, ...]
    found: list[str] = field(default_factory=list)

    def take(self, event: str, args: Sequence[object]) -> None:
        """Notes an audit event that nobody asked for."""
        if event in _OUTSIDE:
            self.found.append(f"{event} {args[:2]!r}"[:300])
            return
        if event == "open":
            path, _mode, flags = (*args, None, None, None)[:3]
            if isinstance(flags, int) and flags & _WRITES:
                self._changed("open", path)
        elif event in _CHANGES:
            for at in _CHANGES[event]:
                self._changed(event, args[at])

    def _changed(self, event: str, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a number of an open file
        text = os.fsdecode(path)
        if text.startswith(_IGNORED) or "__pycache__" in text:
            return
        # Where it lies in the end: the folder through all links, and the link itself where it is opened.
        place = os.path.realpath(text) if event == "open" else os.path.join(
            os.path.realpath(os.path.dirname(text) or "."), os.path.basename(text)
        )  # fmt: skip
        if not any(place == one or place.startswith(one + os.sep) for one in self.allowed):
            self.found.append(f"{event} {place}"[:300])


_now: Effects | None = None


def _hook(event: str, args: tuple[object, ...]) -> None:
    global _now
    if _now is None or not (event == "open" or event in _CHANGES or event in _OUTSIDE):
        return
    watching, _now = _now, None  # what the look itself does is not looked at
    try:
        watching.take(event, args)
    finally:
        _now = watching


_hooked = False


@contextmanager
def effects(*allowed: Path) -> Iterator[Effects]:
    """Watches what happens within it; writing below `allowed` is no effect. A hook cannot be taken away: it sleeps outside."""
    global _now, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    before, _now = _now, Effects(tuple(os.path.realpath(place) for place in allowed))
    watching = _now
    try:
        yield watching
    finally:
        _now = before
