"""What became of every tensor when a model started from weights: nothing is loaded, or left out, in silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Fate = Literal["loaded", "resized", "new", "skipped"]
"""`loaded`: as it is in the source. `resized`: made from it (class rows by name, anchors by shape, more bands, a level's
neighbour). `new`: of the model, which the source has nothing for. `skipped`: of the source, which the model has no place for."""


@dataclass(frozen=True)
class KeyFate:
    """One tensor."""

    key: str
    """Its name in the model; of a skipped one, in the source."""
    fate: Fate
    source: str = ""
    """Its name in the source, as the file has it; empty of a new one."""
    why: str = ""


@dataclass(frozen=True)
class StartReport:
    """What a model took from one source of weights."""

    source: str
    """What it started from, as a person would name it."""
    licence: str = ""
    """Of those weights, as far as the source says."""
    keys: tuple[KeyFate, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What holds for the whole, such as half precision."""

    def of(self, fate: Fate) -> list[KeyFate]:
        """The tensors of one fate."""
        return [one for one in self.keys if one.fate == fate]

    def counts(self) -> dict[str, int]:
        """How many tensors have each fate."""
        return {fate: len(self.of(fate)) for fate in ("loaded", "resized", "new", "skipped")}

    def summary(self) -> list[str]:
        """A few lines: the counts, then the reasons for all that was not simply loaded, each with its first tensors."""
        counts = ", ".join(f"{count} {fate}" for fate, count in self.counts().items())
        lines = [f"started from {self.source}: {counts}", f"  licence of these weights: {self.licence or 'not said'}"]
        lines += [f"  {note}" for note in self.notes]
        for fate in ("resized", "new", "skipped"):
            for why, names in _by_reason(self.of(fate)).items():
                lines.append(f"  {fate}: {_some(names)}{f' ({why})' if why else ''}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """As plain values, every tensor in its row."""
        return {
            "source": self.source,
            "licence": self.licence or None,
            "counts": self.counts(),
            "notes": list(self.notes),
            "tensors": [
                {"key": one.key, "fate": one.fate, "source": one.source or None, "why": one.why or None}
                for one in self.keys
            ],
        }


def whole(source: str, keys: Iterable[str], *, skipped: Mapping[str, str] | None = None, **more: Any) -> StartReport:
    """The report of weights that fitted entirely; `skipped` maps names in the source to the reason."""
    loaded = [KeyFate(key, "loaded", key) for key in keys]
    left = [KeyFate(key, "skipped", key, why) for key, why in (skipped or {}).items()]
    return StartReport(source, keys=(*loaded, *left), **more)


def _by_reason(fates: Iterable[KeyFate]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in fates:
        found.setdefault(one.why, []).append(one.key)
    return found


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
