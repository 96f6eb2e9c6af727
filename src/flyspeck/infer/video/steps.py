"""How far apart a video's frames are in time: where a steady rate has holes, frames may be missing that no decoder misses."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

_FIRST = 50  # steps by which the rate is told
_FEWEST = 10
_STEADY = 0.98  # share of the steps that must be alike for a rate to be steady
_HOLE = 1.5  # mean steps from which one is a hole
_LISTED = 3


@dataclass
class Steps:
    """Takes the times of following frames; `note` says at the end where a steady rate has holes, and is empty elsewhere.

    Demuxers pass over damage to the next frame that they find, without a word. A hole may as well be a pause of the recording,
    so it is told and is no error.
    """

    _usual: float = 0.0
    _early: list[tuple[int, float]] = field(default_factory=list)
    _alike: int = 0
    _all: int = 0
    _holes: list[tuple[int, float]] = field(default_factory=list)
    _last: float | None = None

    def add(self, number: int, seconds: float) -> None:
        """The frame `number`, from 1, is shown at `seconds`."""
        if self._last is not None:
            step = (number, seconds - self._last)
            if self._usual:
                self._judge(*step)
            else:
                self._early.append(step)
                if len(self._early) == _FIRST:
                    self._settle()
        self._last = seconds

    def note(self) -> str:
        """One line for people."""
        if len(self._early) >= _FEWEST:
            self._settle()
        holes = len(self._holes)
        if not holes or self._alike < _STEADY * (self._all - holes) or holes > (1 - _STEADY) * self._all + 1:
            return ""
        named = ", ".join(f"{step:.3f} s before frame {number}" for number, step in self._holes[:_LISTED])
        more = f" and {holes - _LISTED} more" if holes > _LISTED else ""
        return f"its frames are {self._usual:.3f} s apart, but {named}{more}: frames may be missing there, or none were recorded"

    def _settle(self) -> None:
        self._usual = median(step for _, step in self._early)
        early, self._early = self._early, []
        for number, step in early:
            self._judge(number, step)

    def _judge(self, number: int, step: float) -> None:
        self._all += 1
        self._alike += abs(step - self._usual) <= max(0.1 * self._usual, 0.002)  # Matroska rounds to milliseconds
        if step > _HOLE * self._usual + 0.002:
            self._holes.append((number, step))
            del self._holes[1000:]
