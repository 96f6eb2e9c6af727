"""What a plan is made of: choices with their reasons, the detectors to choose among, and the machine that it is made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

JUDGED = "our judgement, not measured"
MEASURED: Mapping[str, tuple[str, str]] = {
    "hituav": ("docs/results.md", "Tiny HIT-UAV: people, cars and bicycles in thermal images"),
    "fusion": ("docs/results.md", "The fusion factor of the pyramid"),
    "assigners": ("docs/results.md", "Who learns from a tiny box (label assigners)"),
    "pretraining": ("docs/results.md", "Bottom-heavy backbones"),
    "starts": ("docs/results.md", "What to start from, with few images"),
    "teacher": ("docs/results.md", "A small student and its teacher"),
    "demo": ("docs/results.md", "The demo"),
    "proposals": ("docs/results.md", "`auto` against a recipe made by hand"),
    "speck": ("docs/explanation/speck.md", "Choices, measured"),
    "doubles": ("docs/evaluation.md", "What AP does not see: doubles and counts"),
    "tiles": ("docs/how-to/huge.md", "Measured"),
}
"""What measured rules rest on: page and heading."""


def named(names: Sequence[str], most: int = 5) -> str:
    """`a, b and 7 more`; no name longer than 40 letters."""
    shown = [name if len(name) <= 40 else f"{name[:39]}…" for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True)
class Choice:
    """One value of a recipe."""

    key: str
    """Such as `model.anchors.base_scale`."""
    value: Any
    reason: str
    rests_on: str = JUDGED
    """A name in `MEASURED`, or `JUDGED`."""

    @property
    def evidence(self) -> str:
        """For people: where the numbers are, or that there are none."""
        if self.rests_on == JUDGED:
            return JUDGED
        page, heading = MEASURED[self.rests_on]
        return f'measured: {page}, "{heading}"'


@dataclass(frozen=True)
class Tier:
    """A detector that a plan may take; the larger ones cost more time an image."""

    name: str
    words: str
    model: Mapping[str, Any]
    """Keys of the recipe's `model`."""
    batch: int
    """Images of a step at most."""
    lr: float
    rests_on: str
    anchored: bool = True
    """Whether it has anchors, proposals and an assigner."""
    fuses: bool = True
    """Whether its neck takes fusion factors; where it is anchored."""
    pretrained: bool = True
    """Whether there are weights to begin with."""
    fast: bool = False
    """Whether it is one of those that are made to run in real time."""
    weight_decay: float = 0.01
    tracing: float = 15.0
    """Seconds of a quiet machine for its way into an exported graph."""


@dataclass(frozen=True)
class Machine:
    """What a plan is made for."""

    cpus: int
    memory: int
    """Bytes that are free."""
    device: str = "cpu"
    precision: str = "fp32"
    """The faster one."""
    threads: int = 1
    """Of PyTorch, as many as are faster in a training."""
    threads_taken: int = 1
    """As many as it takes by itself."""
    start: str | None = None
    """Value of `model.weights` for tiers that can be pretrained: None where there is nothing on this machine."""
    start_model: str | None = None
    """Value of `model.start` in its place: a trained detector that is here."""
    start_whole: tuple[str, ...] = ()
    """Names of the tiers that `start_model` is the whole of, but for the classes."""
    start_fits: tuple[str, ...] = ()
    """Names of the tiers whose backbone it has."""
    start_licence: str = ""
    """Of its weights, which a training from them passes on."""
    missing: str = ""
    """Where there is nothing: which file would give it, in words."""


@dataclass(frozen=True)
class Speed:
    """What a tier does on this machine."""

    images_per_second: float
    """Of training, loading included, once images are cached where they are."""
    memory: int
    """Peak of the process, bytes."""
    detect_per_second: float
    """Images of the training's size that it finds objects in."""
    tracing: float = 45.0
    """See `Tier.tracing`."""
    batch: int = 0
    """Images of a step that it was measured with; 0 where nothing says."""
    weights: int = 5_000_000
    """Bytes of its weights, for the classes of the set; of a small one's where nothing says."""


@dataclass(frozen=True)
class Plan:
    """A complete set of choices."""

    tier: Tier
    choices: tuple[Choice, ...]
    speed: Speed | None = None
    notes: tuple[str, ...] = field(default=())

    def value(self, key: str) -> Any:
        """What is chosen for a key; KeyError where nothing is."""
        return next(choice.value for choice in self.choices if choice.key == key)

    def recipe(self) -> dict[str, Any]:
        """The recipe as nested mappings."""
        content: dict[str, Any] = {}
        for choice in self.choices:
            *sections, last = choice.key.split(".")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = choice.value
        return content
