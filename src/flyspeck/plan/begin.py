"""How an `auto` run begins: its folder, the three parts and what they are like. None of it needs torch, so that a mistake in the
annotations is said at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError, counted
from flyspeck.files import check_writable, local_output
from flyspeck.plan.budget import COMPARING, Budget
from flyspeck.plan.fingerprint import Fingerprint
from flyspeck.plan.init import find_device, look, reading_options
from flyspeck.plan.sets import CHOOSE, REPORT, TRAIN, Source
from flyspeck.plan.slowness import Slowness
from flyspeck.plan.state import State, open_state
from flyspeck.plan.voice import Say, Voice, minutes_of

PARTS = "data"
"""Where the parts lie in the run's folder: by that, a run goes on from another working folder too."""
AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Beginning:
    """What the stages of a run go on from."""

    state: State
    budget: Budget
    sources: Mapping[str, Source]
    """By `TRAIN`, `CHOOSE` and `REPORT`."""
    found: Fingerprint
    """Of the images to learn from."""
    notes: list[str]
    """What is to be known of the set; the stages add to it."""
    device: str
    voice: Voice


@contextmanager
def begin(
    data: AnyPath,
    *,
    minutes: float,
    out: AnyPath,
    val: AnyPath | None = None,
    format: str | None = None,
    images: AnyPath | None = None,
    classes: Sequence[str] | None = None,
    pixels: str | None = None,
    device: str = "auto",
    resume: bool = False,
    begun: float | None = None,
    say: Say,
) -> Iterator[Beginning]:
    """A run up to where torch is needed, as `auto` has it; what is wrong in or after it leaves a folder that can be gone on with,
    or none where nothing was trained.

    `begun` is `time.monotonic()` where the minutes began, before this call; None: with it.
    """
    voice = Voice(say)
    place, budget_minutes = local_output(out), minutes_of(minutes)
    check_writable(place)
    find_device(device, voice)
    asked = {
        "data": str(Path(data).absolute()), "val": None if val is None else str(Path(val).absolute()),
        "minutes": budget_minutes, "classes": None if classes is None else list(classes),
    }  # fmt: skip
    state = open_state(place, asked, resume=resume)
    state.begun = state.begun if begun is None else begun
    options = reading_options(format, images, classes, pixels)
    if resume:
        voice(f"going on: {state.seconds:.0f} s of {60 * budget_minutes:.0f} are used")
    budget = Budget(budget_minutes, state, slowness=Slowness())
    try:
        sources, found, notes = _sets(
            Path(data), None if val is None else Path(val), options, state, budget.seconds, voice
        )
        yield Beginning(state, budget, sources, found, notes, device, voice)
    except BaseException as error:
        trained = "trials" in state.done or (place / "runs").exists()
        if isinstance(error, UserError) and not (resume or trained):
            state.forget()  # the next call may take the same folder
        elif isinstance(error, UserError | OSError | KeyboardInterrupt):
            used = f"{state.seconds / 60:.1f} of {counted(budget_minutes, 'minute')}"
            voice(f"stopped after {used}; --resume goes on ({place})")
        with suppress(UserError, OSError):  # a full disk: what it was stopped by is to be said, not this
            _noted(state)
        raise
    _noted(state)


def _noted(state: State) -> None:
    if state.done:
        state.save()


def _sets(
    data: Path, val: Path | None, options: Mapping[str, Any], state: State, seconds: float, voice: Voice
) -> tuple[dict[str, Source], Fingerprint, list[str]]:
    """The three parts, the fingerprint of those to learn from, and notes; of so many `seconds` for all of the run."""
    if "sets" not in state.done:
        sets, found = look(
            data,
            val,
            state.folder / PARTS,
            options,
            voice,
            report=True,
            written=True,
            comparing=COMPARING * seconds,
        )
        for source in sets.parts.values():
            source.write()
        state.keep("fingerprint", found.to_dict())
        state.keep("sets", {"notes": list(sets.notes)})
        for note in sets.notes:
            voice(f"note: {note}")
    paths = {name: str(state.folder / PARTS / f"{name}.json") for name in (TRAIN, CHOOSE, REPORT)}
    train = read_annotations(paths[TRAIN])
    tables = {TRAIN: train}
    for name in (CHOOSE, REPORT):
        tables[name] = read_annotations(paths[name], classes=train.classes, absent_classes=True)
    sources = {name: Source(paths[name], table) for name, table in tables.items()}
    return sources, Fingerprint.of(state.done["fingerprint"]), list(state.done["sets"]["notes"])
