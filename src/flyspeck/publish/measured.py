"""What detectors reached on sets that the project measures on: the finished tables, and the cards of trained detectors.

`measured.json` is written from the tables' results by `benchmarks/measured_models.py`; a test compares. Cards are read in
their places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flyspeck.errors import UserError
from flyspeck.train.start_names import CARD, WEIGHTS, shipped

if TYPE_CHECKING:
    from flyspeck.models.detector import Detector

SIZES = {"tiny1": (2, 8), "tiny2": (8, 12), "tiny3": (12, 20), "small": (20, 32)}
"""Rows of AP50 by the size of objects in px, as the protocol `flyspeck` names them."""


@dataclass(frozen=True)
class MeasuredModel:
    """One detector, what it cost and what it found."""

    name: str
    """The zoo's name, or that of a trained detector."""
    what: str
    """What is special about it, in words."""
    data: str
    """The set: AP of different sets, or of trainings of different length, say nothing of each other."""
    parameters: float
    gflops: float
    """Of one image of `size`."""
    size: tuple[int, int]
    """(H, W)"""
    ap50: Mapping[str, float]
    """By size of object, in [0, 1]: `all`, `tiny`, `tiny1`, …"""
    training: str
    """How long, on how much."""
    model: Mapping[str, Any] | None = None
    """The recipe's section, of which it is built."""
    file: Path | None = None
    """Trained weights."""
    ms: float | None = None
    """Milliseconds of one image, where it was timed here."""
    mb: float | None = None
    """Megabytes of memory that one image takes beyond the program, where it was measured here."""

    def ap(self, area: str) -> float:
        """AP50 of a size, -1 where it is not known."""
        return self.ap50.get(area, -1.0)


def measured_models() -> list[MeasuredModel]:
    """The detectors of the tables, trained for minutes on the same images."""
    text = resources.files("flyspeck.publish").joinpath("measured.json").read_text(encoding="utf-8")
    return [MeasuredModel(**{**entry, "size": tuple(entry["size"])}) for entry in json.loads(text)]


def trained_models() -> list[MeasuredModel]:
    """The trained detectors at hand (of a clone, or of installed packages of weights), by what their cards say."""
    found = []
    for name, folder in shipped().items():
        card = folder / CARD
        if card.is_file():
            found.append(read_card(name, card.read_text(encoding="utf-8"), folder / WEIGHTS))
    return found


_HEAD = re.compile(r"([\d.]+) M parameters, ([\d.]+) GFLOPs \([^)]*\) at (\d+)x(\d+)")
_ROW = re.compile(r"^\| (\w+) \| ([\d.]+)", re.MULTILINE)
_DATA = re.compile(r"^\* \*\*Data\*\*: ([^(;\n]+)", re.MULTILINE)
_TIME = re.compile(r"^\* \*\*Training\*\*: (.+?)\.?$", re.MULTILINE)


def read_card(name: str, text: str, file: Path) -> MeasuredModel:
    """A trained detector from the text of its card; UserError where it is none of ours."""
    head, data, time = _HEAD.search(text), _DATA.search(text), _TIME.search(text)
    table = text.partition("| objects | AP50")[2].partition("\n\n")[0]
    if head is None or not table:
        raise UserError("is not a card of `flyspeck card`", where=file.parent / CARD, fix="write it anew")
    title = text.partition("\n")[0].removeprefix("# ")
    aps = {area: float(value) / 100 for area, value in _ROW.findall(table)}
    return MeasuredModel(
        name,
        title,
        data[1].strip() if data else "",
        1e6 * float(head[1]),
        float(head[2]),
        (int(head[3]), int(head[4])),
        aps,
        time[1] if time else "",
        file=file,
    )


def area_of(pixels: float) -> str:
    """The row of AP50 for objects of a size in px. Raises UserError below 2 and from 32 px on, where nothing was measured."""
    for name, (low, high) in SIZES.items():
        if low <= pixels < high:
            return name
    raise UserError(
        f"nothing was measured for objects of {pixels:g} px", where="--objects", fix="give a size from 2 to below 32"
    )


def worthwhile(models: Sequence[MeasuredModel], area: str) -> list[MeasuredModel]:
    """Of each set, the models than which no cheaper one finds more objects of a size, cheapest first.

    The cost is the time where all were timed, else GFLOPs.
    """
    timed = all(model.ms is not None for model in models)

    def cost(model: MeasuredModel) -> float:
        return model.ms if timed and model.ms is not None else model.gflops

    kept = []
    for data in dict.fromkeys(model.data for model in models):
        best = -1.0
        for model in sorted((m for m in models if m.data == data), key=lambda m: (cost(m), -m.ap(area))):
            if model.ap(area) > best:
                kept.append(model)
                best = model.ap(area)
    return kept


def untrained(model: MeasuredModel) -> Detector:
    """The detector of a table, with random weights, as it finds objects: what only training asks a data set for is left out."""
    from flyspeck.train.build import build_detector
    from flyspeck.train.config import parse_recipe

    content = {"data": {"train": "-", "val": "-"}, "model": {**(model.model or {"name": model.name}), "assigner": None}}
    settings = parse_recipe(content).model
    return build_detector(settings, classes=("a", "b", "c"), mean=[0.5] * 3, std=[0.2] * 3, load=False)


def measured_here(model: MeasuredModel, *, runs: int = 10) -> MeasuredModel:
    """The same with the time (median of `runs`) and memory of one image, on the CPU of this machine, with PyTorch's threads."""
    from flyspeck.models.profile import measure_latency
    from flyspeck.train.build import load_detector

    detector = untrained(model) if model.file is None else load_detector(model.file)
    before = _resident(reset=True)
    timed = measure_latency(detector.eval(), model.size, runs=runs, device="cpu")
    after = _resident(reset=False)
    memory = None if before is None or after is None else max(0.0, after - before)
    return replace(model, ms=timed.median_ms, mb=memory)


def _resident(*, reset: bool) -> float | None:
    """Megabytes of memory in use now (`reset`: the peak is forgotten), or the peak since; None where Linux does not tell."""
    try:
        if reset:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    wanted = "VmRSS:" if reset else "VmHWM:"
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(wanted)), None)
