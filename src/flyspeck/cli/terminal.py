"""What several verbs write on the terminal: a progress bar, and a list of what was wrong that does not flood it."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def list_problems(problems: Sequence[str], words: str, most: int = 5) -> None:
    """Writes how many `problems` (`words` says of what kind) there are, and the first `most`, to stderr; nothing for none."""
    if problems:
        print(f"note: {len(problems)} {words}:", file=sys.stderr)
        for problem in problems[:most]:
            print(f"  {problem}", file=sys.stderr)
        if len(problems) > most:
            print(f"  and {len(problems) - most} more", file=sys.stderr)


class ProgressBar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, words: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(words, total=None)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *stop: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """So many of so many are done."""
        self._bar.update(self._task, completed=done, total=total)
