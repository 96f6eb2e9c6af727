"""Whole images or tiles, and how large: measured with the trained detector on the images that choices are made on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.enlarge import described_enlargement, native_sizes
from flyspeck.evaluate.bootstrap import compare
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import APProtocol, Protocol
from flyspeck.evaluate.results import EvaluationResult
from flyspeck.evaluate.scoring import evaluate
from flyspeck.infer.load import load_predictor
from flyspeck.infer.shown import Showing
from flyspeck.plan.voice import Voice
from flyspeck.train.checkpoint import load_weights, weights_file
from flyspeck.train.inputs import spread
from flyspeck.train.measure import metrics_of

SCALES = (1.0, 1.5, 2.0, 0.75, 0.5)
"""Of the images, relative to what the network learnt from, in the order in which they are tried."""
MOST_WHOLE = 4_000_000
"""Pixels of an image that goes whole, as the network sees it."""
SAMPLES, LEVEL = 300, 0.9
"""Of the comparison with the setting of the training."""
TIMED = 6
"""Images that are looked at to see how long that takes."""
FEWEST = 12
"""Images that settings are measured on all the same."""
WORTH = 0.01
"""Of AP50: no more time is taken for so little."""
LOWEST = 0.01
"""Score from which detections are kept: a metric wants all of the curve."""


@dataclass(frozen=True)
class Setting:
    """How an image is shown to the detector."""

    whole: bool
    showing: Showing
    """What a model's file is to say, so that it is used without a word; of whole images, tiles that all of those measured fit
    into.
    """

    @property
    def scale(self) -> float:
        """Pixels that the network sees for one of the file."""
        return self.showing.scale

    def words(self) -> str:
        """For people."""
        height, width = self.showing.tile
        return f"{'whole' if self.whole else f'in tiles of {height}x{width}'}, at {self.scale:g} of full size"


@dataclass(frozen=True)
class Measured:
    """One setting, measured."""

    setting: Setting
    metrics: Mapping[str, float]
    seconds: float
    """An image, from file to detections."""
    difference: tuple[float, float, float] | None = None
    """Of AP50 from that of the first setting: value, and the bounds of its interval (`LEVEL`, paired, bootstrap over images)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"whole": self.setting.whole, **self.setting.showing.to_dict(), "seconds": self.seconds,
                "metrics": dict(self.metrics), "difference": self.difference}  # fmt: skip

    @staticmethod
    def of(content: Mapping[str, Any]) -> Measured:
        """What `to_dict` gave."""
        return Measured(
            Setting(bool(content["whole"]), Showing.read(content)),
            content["metrics"],
            float(content["seconds"]),
            None if content["difference"] is None else tuple(content["difference"]),
        )


def settings_for(table: Annotations, description: Mapping[str, Any]) -> Iterator[Setting]:
    """The grid: the scale of the training first, each whole, then in tiles where images are larger than one: those cost more, and
    time may not do for all.
    """
    enlarge = described_enlargement(description)
    height, width = description["training_size"]
    largest = native_sizes(table).max(0)
    tiled: list[Setting] = []
    for factor in SCALES:
        scale = round(enlarge.factor * factor, 4)
        sides = np.maximum(1, largest * scale)
        larger = bool(sides[0] > height or sides[1] > width)
        if sides[0] * sides[1] <= MOST_WHOLE or not larger:
            yield Setting(True, Showing.whole(description, scale, (int(largest[0]), int(largest[1]))))
        if larger:
            tiled.append(Setting(False, Showing.in_tiles(description, scale)))
    yield from tiled


def detect(
    model: Path, table: Annotations, setting: Setting | None, *, device: str, precision: str, batch_size: int = 8
) -> tuple[DetectionTable, float]:
    """What the detector of a run finds in the images of the table, and the seconds that an image took.

    Without a `setting`, they are shown as the model's file says.
    """
    predictor = load_predictor(
        model,
        device=device,
        precision=precision,
        **({} if setting is None else vars(setting.showing)),
        score_threshold=LOWEST,
        batch_size=batch_size,
    )
    paths = [table.path(row) for row in range(len(table))]
    begun = time.perf_counter()
    found = predictor.predict(paths)
    ids = [key if isinstance(key, str) else int(key) for key in table.image_ids]
    found = [replace(one, image_id=key) for one, key in zip(found, ids, strict=True)]
    seconds = (time.perf_counter() - begun) / max(1, len(paths))
    return DetectionTable.from_list(found, table), seconds


def measure_settings(
    model: Path,
    table: Annotations,
    *,
    protocol: str,
    metric: str,
    device: str,
    precision: str,
    limit: float,
    voice: Voice,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[tuple[Measured, DetectionTable]], Annotations]:
    """The grid, as far as it goes in `limit` seconds, each with what was found, and the images that it was measured on; the
    setting of the training always, on as many images as that takes half of the time for, or `FEWEST`.

    What is likely to take longer than what is left (by the pixels that the network sees) is left out and said.
    """
    _, description = load_weights(weights_file(model))
    begun, done, rate, first = clock(), [], 0.0, None
    table = _affordable(model, table, description, limit=limit, device=device, precision=precision, clock=clock)
    for setting in settings_for(table, description):
        needed = rate * setting.scale**2 * (1.0 if setting.whole else 1.3)
        if done and clock() - begun + needed > limit:
            voice(f"  {setting.words()}: left out, as it would take {needed:.0f} s")
            continue
        start = clock()
        with voice.doing(f"  {setting.words()}"):
            most = setting.showing.batch(8, description)
            found, seconds = detect(model, table, setting, device=device, precision=precision, batch_size=most)
            result = result_of(table, found, protocol)
            ahead = None if first is None else difference(table, found, first, result.protocol, metric)
        first = first or found
        done.append((Measured(setting, metrics_of(result), round(seconds, 4), ahead), found))
        rate = (clock() - start) / setting.scale**2
    return done, table


def _affordable(
    model: Path,
    table: Annotations,
    description: Mapping[str, Any],
    *,
    limit: float,
    device: str,
    precision: str,
    clock: Callable[[], float],
) -> Annotations:
    """Of the images, evenly spread, as many as the first setting looks at in half of `limit`, by what a few of them take."""
    few = spread(table, TIMED)
    if len(few) >= len(table):
        return table
    setting = next(settings_for(table, description))
    start = clock()
    detect(model, few, setting, device=device, precision=precision, batch_size=setting.showing.batch(8, description))
    most = int(0.5 * limit / max(1e-9, (clock() - start) / len(few)))
    return table if most >= len(table) else spread(table, max(FEWEST, most))


def difference(
    table: Annotations, ours: DetectionTable, first: DetectionTable, protocol: Protocol, metric: str
) -> tuple[float, float, float] | None:
    """AP50 of `ours` less that of `first` in the bin that `metric` names, and the bounds; None where that cannot be said."""
    if len(table) < 2 or not isinstance(protocol, APProtocol):
        return None
    rows = compare(table, ours, first, protocol, samples=SAMPLES, level=LEVEL)
    area = metric.rpartition("_")[2]
    row = next((row for row in rows if row["area"] == area and row["difference"] is not None), None)
    return None if row is None else (float(row["difference"]), float(row["low"]), float(row["high"]))


def best_of(done: Sequence[Measured]) -> Measured:
    """The best: the first setting, that of the training, unless others are ahead of it by more than chance; of those the most.
    Of these and the first, what has no more than `WORTH` fewer points in less time is taken in its place. One that is ahead by
    chance is not, be it ever so far: on ten images ×2 had 14 points more than ×1, on 200 others 6 fewer.
    """
    sure = [done[0], *(one for one in done if one.difference is not None and one.difference[1] > 0)]
    best = max(sure, key=_points)
    near = [one for one in sure if one.seconds < best.seconds and _points(one) >= _points(best) - WORTH]
    return min(near, key=lambda one: one.seconds, default=best)


def _points(one: Measured) -> float:
    """Of AP50, ahead of the setting of the training."""
    return one.difference[0] if one.difference is not None else 0.0


def result_of(table: Annotations, found: DetectionTable, protocol: str) -> EvaluationResult:
    """The evaluation of detections on a table."""
    return evaluate(ground_truth=table, detections=found, protocol=protocol)
