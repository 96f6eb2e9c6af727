"""`init`: a data set to a complete recipe, every choice with its reason."""

from __future__ import annotations

import logging
import math
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.devices import check_device
from flyspeck.errors import UserError, counted
from flyspeck.files import check_writable, local_output
from flyspeck.plan import rules
from flyspeck.plan.budget import looked_at
from flyspeck.plan.choices import Machine, Plan, Speed, named
from flyspeck.plan.fingerprint import Fingerprint, fingerprint, with_pixels
from flyspeck.plan.sets import CHOOSE, TRAIN, Sets, arrange, read_sources
from flyspeck.plan.tiers import allowed_tiers, best_tier
from flyspeck.plan.usable import check_headers
from flyspeck.plan.voice import Voice, minutes_of

log = logging.getLogger("flyspeck")
AnyPath = str | os.PathLike[str]
EVALUATING = 130_000_000
"""Bytes that evaluations and checkpoints add to what training steps take, as one run had it."""
AGAIN = 5.0
"""Seconds for the detector that is chosen, where its batch is another than it was compared with."""
COMPARING = 120.0
"""Seconds of decoding up to which images are compared by their pixels."""


@dataclass(frozen=True)
class Forecast:
    """What the plan's training will do on this machine, nothing else running."""

    images_per_second: float
    memory: int
    """Bytes at most."""
    minutes: float
    """From the command to the last file."""
    images: int
    """That training sees."""
    passes: float

    def text(self) -> str:
        """One line for people."""
        return (
            f"{self.images_per_second:.1f} images/s, {self.memory / 1e9:.2f} GB of memory, {counted(self.images, 'image')}"
            f" ({self.passes:.1f} passes), done after {counted(self.minutes, 'minute')}"
        )


@dataclass(frozen=True)
class Initialised:
    """What `init` found and wrote."""

    recipe: Path
    """The recipe; `flyspeck train` takes it as it is."""
    fingerprint: Fingerprint
    plan: Plan
    speeds: Mapping[str, Speed]
    """Of the detectors that were measured, by name."""
    forecast: Forecast
    notes: tuple[str, ...]


def init(
    data: AnyPath,
    *,
    val: AnyPath | None = None,
    minutes: float = 60,
    out: AnyPath = "recipe.yaml",
    format: str | None = None,
    images: AnyPath | None = None,
    classes: Sequence[str] | None = None,
    pixels: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = log.info,
) -> Initialised:
    """Look at annotated images and write a complete recipe for a detector of their objects, every choice with its reason.

    Args:
        data: Annotations to learn from: a file or folder in any of the formats read. Of a folder with several splits, those
            called train and val are taken as they are called.
        val: Annotations to measure on; None: those that `data` calls so, else a fifth of `data`, divided by groups of images
            that belong together and written beside the recipe (annotations alone: images stay where they are).
        minutes: Time that the training may take.
        out: The recipe to write.
        format: Name of the annotations' format, instead of having it found out.
        images: Folder of the images, where it is not the usual one.
        classes: Names of the classes to learn; None: all.
        pixels: What whole corners of VOC's boxes mean, as in `read_annotations`.
        device: Where the training will run: `auto` for the best there is, `cpu`, `cuda`, `cuda:1`, `mps`.
        say: Called with each line on what is seen and chosen; the logger `flyspeck` where it is not given.

    Returns:
        The recipe's path, what the data are like, the choices, the speeds that were measured and what is to be expected.

    Raises:
        UserError: For annotations without an object, images that do not do to measure on, a recipe that is there already, a
            device that is not, a folder that may not be written to.
    """
    voice = Voice(say)
    place, budget = local_output(out), minutes_of(minutes)
    if place.exists():
        raise UserError("is there already", where=place, fix="name another --out, or delete it")
    check_writable(place.parent)
    find_device(device, voice)
    options = reading_options(format, images, classes, pixels)
    own = any(value is not None for value in options.values())
    sets, found = look(
        Path(data), None if val is None else Path(val), place.parent / f"{place.stem}_data", options, voice,
        report=False, written=own,
    )  # fmt: skip
    paths = {name: source.path for name, source in sets.parts.items()}
    machine, speeds = measured(paths, sets.train, found, budget, device, voice)
    check_time(budget, speeds)
    tier, why = best_tier(found, speeds, budget)
    plan = rules.make_plan(
        found, machine, tier=tier, minutes=budget, speed=speeds[tier.name], name=place.stem,
        train=paths[TRAIN], val=paths[CHOOSE],
        looked_at=looked_at(speeds[tier.name], found, budget, len(sets.parts[CHOOSE].table)),
    )  # fmt: skip
    plan = with_own_speed(plan, sets.train, machine, voice)
    forecast = forecast_of(plan, found)
    voice(f"detector: {tier.name}, {tier.words}: {why}")
    for line in choice_lines(plan):
        voice(line)
    voice(f"to be expected on this machine, nothing else running: {forecast.text()}")
    notes = (*sets.notes, *plan.notes, *threads_note(machine, place))
    for note in notes:
        voice(f"note: {note}")
    check_disk(place.parent, speeds[tier.name])
    from flyspeck.plan.write import write_recipe  # which loads torch, as `measured` did

    for source in sets.parts.values():
        source.write()
    write_recipe(plan, place, heading(Path(data), budget, tier.words, why, forecast, machine))
    voice(f"written: {place}; next: flyspeck train {shlex.quote(str(place))}")
    return Initialised(place, found, plan, speeds, forecast, notes)


def reading_options(
    format: str | None, images: AnyPath | None, classes: Sequence[str] | None, pixels: str | None
) -> dict[str, Any]:
    """What goes to `read_annotations`."""
    return {
        "format": format,
        "images": None if images is None else Path(images),
        "classes": classes,
        "pixels": pixels,
    }


def find_device(device: str, voice: Voice) -> None:
    """Raises UserError where the device is none, or not there; loading what knows that takes seconds, and is said."""
    if device in ("auto", "cpu"):
        return
    with voice.doing(f"looking for the device {device}"):
        check_device(device)


def threads_note(machine: Machine, recipe: Path) -> list[str]:
    """A line where another number of threads than PyTorch takes by itself is faster here."""
    if machine.threads == machine.threads_taken:
        return []
    return [
        f"{machine.threads} thread is faster here now than the {machine.threads_taken} that PyTorch takes, which the speeds above"
        f" are of: OMP_NUM_THREADS={machine.threads} flyspeck train {shlex.quote(str(recipe))}"
    ]


def choice_lines(plan: Plan) -> list[str]:
    """The choices for people: those of one reason on one line."""
    lines = []
    for (reason, evidence), group in groupby(plan.choices, key=lambda choice: (choice.reason, choice.evidence)):
        said = ", ".join(f"{choice.key} {_shown(choice.value)}" for choice in group)
        lines.append(f"  {said}: {reason} ({evidence})")
    return lines


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def look(
    data: Path,
    val: Path | None,
    folder: Path,
    options: Mapping[str, Any],
    voice: Voice,
    *,
    report: bool,
    written: bool,
    comparing: float = COMPARING,
) -> tuple[Sets, Fingerprint]:
    """The parts and the fingerprint of those to learn from, said line by line.

    Images are compared by their pixels where decoding them takes less than `comparing` seconds.
    """
    with voice.doing(f"reading {data}"):
        parts, other = read_sources(data, val, options)
    for part in (*parts, *([] if other is None else [other])):
        voice(f"  {part.table.source}: {counted(len(part.table), 'image')}, {counted(part.table.num_boxes, 'box')}")
        for note in part.table.notes:
            voice(f"  note: {note}")
    tables = [part.table for part in (*parts, *([] if other is None else [other]))]
    files = sum(map(len, tables))
    whole = parts[0].table
    first = fingerprint(whole)
    with voice.doing(f"looking at {counted(files, 'image')}"):
        check_headers(data, tables)
        first = with_pixels(first, whole)
    for line in fingerprint_lines(first):
        voice(line)
    seconds = first.decode_seconds * first.megapixels / max(1, first.images) * files
    pixels = seconds <= comparing
    words = f"comparing {counted(files, 'image')}, to keep apart what belongs together"
    with voice.doing(words if pixels else f"{words}, by their names alone: decoding all would take {seconds:.0f} s"):
        sets = arrange(
            data, parts, other, folder, report=report, written=written, pixels=pixels,
            workers=min(4, os.cpu_count() or 1) if files > 400 else 1, progress=voice.progress("compared"),
        )  # fmt: skip
    found = sets.describe(fingerprint(sets.train))
    found = replace(
        found, bands=first.bands, bits=first.bits, grey_as_colour=first.grey_as_colour,
        decode_seconds=first.decode_seconds, notes=first.notes,
    )  # fmt: skip
    voice(
        f"  {counted(found.groups, 'group')}, the largest of {counted(found.largest_group, 'image')}; there more than once:"
        f" {counted(found.duplicates, 'image')}"
    )
    return sets, found


def fingerprint_lines(found: Fingerprint) -> list[str]:
    """What the data are like, for people."""
    count = found.objects
    bins = ", ".join(f"{name} px {number / count:.0%}" for name, number in found.sizes.items() if number)
    near, middle = found.neighbour_quantiles
    height, width = found.image_size
    kinds = sorted(found.classes.items(), key=lambda item: -item[1])
    shown = named([f"{name[:30]} {number}" for name, number in kinds], 6)
    apart = f"{near:.2g} sizes away (5 %), " if math.isfinite(near) else ""
    apart += f"{middle:.2g} (50 %)" if math.isfinite(middle) else "half of the objects or more are alone in their image"
    bands = "grey, stored as three bands" if found.grey_as_colour else f"{found.bands} bands"
    low, high = found.image_medians
    return [
        f"sizes of {counted(count, 'object')} (25, 50, 75 %: {found.quantile(25):.1f}, {found.quantile(50):.1f},"
        f" {found.quantile(75):.1f} px): {bins}",
        f"from image to image their median goes from {low:.1f} to {high:.1f} px; the longest sides are"
        f" {found.long_side:.0f} px",
        f"images: {width}x{height} px (median), {bands} of {found.bits} bits; {found.per_megapixel:.1f} objects a megapixel,"
        f" {counted(found.most_objects, 'box')} in the fullest, {found.images_without_objects} without objects",
        f"nearest neighbours: {apart}; {found.edge_share:.1%} of the objects end at"
        f" the border; {found.ignore_share:.1%} of the boxes are ignore regions",
        f"{counted(len(kinds), 'class')}: {shown}",
        *([f"ground resolution: {found.ground.words()}"] if found.ground else []),
        *(f"note: {note}" for note in found.notes),
    ]


def measured(
    paths: Mapping[str, str],
    table: Annotations,
    found: Fingerprint,
    minutes: float,
    device: str,
    voice: Voice,
    *,
    limit: float | None = None,
    known: Mapping[str, Speed] | None = None,
    trains_here: bool = False,
) -> tuple[Machine, dict[str, Speed]]:
    """The machine, and the speed of each detector on images of `table`, in a training of so many `minutes`: by then the batch.

    It takes 20 seconds, and no more than about `limit`. `known` speeds are not measured again. Where this process `trains_here`,
    it takes the number of threads that is faster from now on; otherwise that one is said where it is another.
    """
    with voice.doing("looking at this machine" if known else "measuring detectors on this machine, for about 20 s"):
        from flyspeck.plan.speed import LIMIT, measure_speeds, take_threads, this_machine
        from flyspeck.plan.starts import with_starts

        machine = with_starts(this_machine(device))
        voice(
            f"  {machine.cpus} processors, {machine.memory / 1e9:.1f} GB free, device {machine.device}, {machine.precision}"
        )
        if trains_here:
            take_threads(machine, voice)
        if known:
            return machine, dict(known)
        plans = [
            rules.make_plan(
                found,
                machine,
                tier=tier,
                minutes=minutes,
                speed=None,
                name="trial",
                train=paths[TRAIN],
                val=paths[CHOOSE],
            )
            for tier in sorted(
                allowed_tiers(found), key=lambda one: one.pretrained
            )  # those that begin at random are quick
        ]
        return machine, measure_speeds(plans, table, machine, limit=min(LIMIT, limit or LIMIT), say=voice)


def with_own_speed(plan: Plan, table: Annotations, machine: Machine, voice: Voice) -> Plan:
    """The plan with the speed and memory of its own batch: detectors are compared before it is known how large that can be."""
    batch = int(plan.value("train.batch_size"))
    if plan.speed is None or plan.speed.batch in (0, batch):
        return plan
    from flyspeck.plan.speed import measure_speeds

    with voice.doing(f"measuring {plan.tier.name} in batches of {batch}, for about {AGAIN:g} s"):
        return replace(plan, speed=measure_speeds([plan], table, machine, limit=AGAIN, say=voice)[plan.tier.name])


def forecast_of(plan: Plan, found: Fingerprint) -> Forecast:
    """What the plan's training will do."""
    assert plan.speed is not None
    minutes, cached = float(plan.value("train.minutes")), plan.value("data.cache") == "ram"
    decoding = found.decode_seconds * found.megapixels if cached else 0.0
    seconds = max(0.0, 60 * minutes - decoding)
    images = int(plan.speed.images_per_second * seconds)
    kept = rules.cached_bytes(found, plan.value("data.enlarge")) if cached else 0
    return Forecast(
        plan.speed.images_per_second, plan.speed.memory + kept + EVALUATING, minutes, images, images / found.images
    )


def check_time(minutes: float, speeds: Mapping[str, Speed]) -> None:
    """Raises UserError where even the quickest detector has no step of a batch of four in so many minutes."""
    quickest = max(speed.images_per_second for speed in speeds.values())
    seen = int(60 * minutes * quickest)
    if seen < 4:
        short = f"{counted(minutes, 'minute')} {'is' if minutes == 1 else 'are'} too short"
        raise UserError(
            f"{short}: training would see {counted(seen, 'image')}",
            where="--minutes",
            fix=f"give {math.ceil(rules.LEAST_STEPS * 4 / quickest / 60)} or more",
        )


RUN_FILES, REWRITTEN = 6.3, 4.2
"""What a run folder takes, in sizes of the weights: last and best ones, and the state to resume from; which is rewritten beside
itself. As much again as that, at most, is what `auto` writes in the end: the weights once more, and the exported detector.
"""
OTHER_FILES = 2_000_000
"""Bytes of logs, detections and pages."""


def check_disk(folder: Path, *speeds: Speed) -> None:
    """Raises UserError where the disk of `folder` has no room for run folders of these detectors."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    weights = [speed.weights for speed in speeds]
    free = shutil.disk_usage(there).free
    needed = int(RUN_FILES * sum(weights) + REWRITTEN * max(weights)) + OTHER_FILES
    if free < needed:
        raise UserError(
            f"{free / 1e6:.0f} MB are free on this disk, and a training takes {needed / 1e6:.0f} MB",
            where=there,
            fix="free some, or name another --out",
        )


def heading(data: Path, minutes: float, words: str, why: str, forecast: Forecast, machine: Machine) -> list[str]:
    """The comment that the recipe begins with."""
    return [
        f"Written by `flyspeck init` from {data.name}, for {counted(minutes, 'minute')} of training: every choice with its"
        " reason.",
        f"Detector: {words}; {why}.",
        f"To be expected on the machine that wrote it ({machine.cpus} processors, {machine.device}): {forecast.text()}.",
    ]
