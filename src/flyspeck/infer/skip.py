"""Skipping empty tiles: a cheap first look at a coarse image decides which tiles the detector sees.

What skipping loses is measured, not assumed. A share of the tiles that it calls empty, chosen by a hash of image and
place, is run all the same (the *audit*); what the detector finds there says what skipping costs, and an image
where that is too much has its skipped tiles run after all. Where the first tiles looked at are hardly ever empty, the image
is dense: the rest is run without looking.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from flyspeck.errors import UserError, counted
from flyspeck.infer.windows import Source
from flyspeck.types import Detections

_TRIAL = 16  # one tile in so many is looked at first
_LOOKED_AT_ONCE = 8

RUN, SKIPPED, AUDITED = "run", "skipped", "audited"


class FirstLook(ABC):
    """Says of a tile, from few pixels of it, how surely something is there."""

    shrink: int
    """Pixels of the detector's input along a side for each that the look gets."""

    @abstractmethod
    def __call__(self, windows: list[np.ndarray]) -> np.ndarray:
        """Coarse windows (h, w, C) of one size, uint8 or uint16, to (B,) float in [0, 1]."""


class DetectorLook(FirstLook):
    """A detector over the coarse image: the best score it gives. It needs no training, and was not trained for it."""

    def __init__(self, model: Callable[[list[np.ndarray]], list[Detections]], *, shrink: int = 4) -> None:
        self.model, self.shrink = model, shrink

    def __call__(self, windows: list[np.ndarray]) -> np.ndarray:
        """See `FirstLook`."""
        return np.array([found.scores.max(initial=0) for found in self.model(windows)], np.float32)


@dataclass(frozen=True, kw_only=True)
class SkipRule:
    """Which tiles are skipped, and when that is taken back."""

    look: FirstLook
    threshold: float
    """A tile of which the look is less sure than this counts as empty."""
    audit: float = 0.05
    """Share of the empty tiles that is run all the same. 1 runs everything, and measures what skipping would have cost."""
    score: float = 0.3
    """Detections of at least this score count in the audit."""
    max_loss: float = 0.1
    """Estimated share of detections lost from which an image's skipped tiles are run after all."""
    least_empty: float = 0.1
    """An image of which the first tiles looked at hold fewer empty ones than this is run without looking further."""

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("audit", self.audit), ("max_loss", self.max_loss)):
            if not 0 <= value <= 1:
                raise UserError(f"{value} is out of range", where=f"skip: {name}", fix="choose from 0 to 1")

    def verdicts(
        self,
        source: Source,
        name: str,
        tiles: np.ndarray,
        rows: Sequence[int],
        seen: tuple[int, int],
        *,
        turn: AbstractContextManager | None = None,
    ) -> Iterator[tuple[int, str]]:
        """(row of `tiles`, RUN, SKIPPED or AUDITED) for each of `rows`; the look is taken as it goes.

        `seen` is the (h, w) at which the detector sees a tile, `turn` is held while the look runs. A tile that cannot be
        read counts as not empty, and is told when it is run.
        """
        rows, turn = list(rows), turn or nullcontext()
        if not rows:
            return
        step = max(1, min(_TRIAL, len(rows) // 4))
        trial = rows[step // 2 :: step]
        first = dict(self._look(source, tiles, trial, seen, turn))
        empty = sum(score < self.threshold for score in first.values())
        if empty < self.least_empty * len(trial):
            yield from ((row, RUN) for row in rows)
            return
        for start in range(0, len(rows), _LOOKED_AT_ONCE):
            group = rows[start : start + _LOOKED_AT_ONCE]
            scores = {**dict(self._look(source, tiles, [r for r in group if r not in first], seen, turn)), **first}
            for row in group:
                if scores[row] >= self.threshold:
                    yield row, RUN
                else:
                    yield row, AUDITED if self._audits(name, tiles[row]) else SKIPPED

    def _look(
        self,
        source: Source,
        tiles: np.ndarray,
        rows: Sequence[int],
        seen: tuple[int, int],
        turn: AbstractContextManager,
    ) -> Iterator[tuple[int, float]]:
        # Not below what a network of stride 32 takes.
        coarse = tuple(max(round(side / self.look.shrink), min(side, 32)) for side in seen)
        for start in range(0, len(rows), _LOOKED_AT_ONCE):  # no more is held than is looked at: the first may be many
            windows, kept = [], []
            for row in rows[start : start + _LOOKED_AT_ONCE]:
                x1, y1, x2, y2 = tiles[row].tolist()
                try:
                    windows.append(source.read(x1, y1, x2, y2, (coarse[0], coarse[1])))
                    kept.append(row)
                except UserError:
                    yield row, 1.0
            if windows:
                with turn:
                    scores = self.look(windows)
                yield from zip(kept, scores.tolist(), strict=True)

    def _audits(self, name: str, tile: np.ndarray) -> bool:
        """A choice that looks random and is always the same: neither threads nor a resumed run change it."""
        key = f"{name}:{','.join(map(str, tile.tolist()))}"
        return zlib.crc32(key.encode()) < self.audit * 2**32


@dataclass(frozen=True, kw_only=True)
class SkipReport:
    """What skipping did, of one image or summed over a job (`+`). Counts of tiles, and of confident detections in them."""

    tiles: int = 0
    skipped: int = 0
    """Called empty and not run."""
    audited: int = 0
    """Called empty and run all the same."""
    audited_hits: int = 0
    """Audited tiles in which something was found."""
    audited_boxes: int = 0
    kept_boxes: int = 0
    fell_back: int = 0
    """Tiles that were skipped at first and run after all."""

    def __add__(self, other: SkipReport) -> SkipReport:
        fields = self.__dataclass_fields__
        return SkipReport(**{name: self.__dict__[name] + other.__dict__[name] for name in fields})

    @property
    def loss(self) -> float:
        """Estimated share of detections that lie in skipped tiles."""
        if not self.audited or not self.skipped:
            return 0.0
        return self._share_of(self.audited_boxes / self.audited)

    @property
    def loss_at_most(self) -> float:
        """Upper end of that share: the one-sided 95 % Clopper-Pearson bound of the tiles with something in them."""
        if not self.skipped:
            return 0.0
        boxes_a_hit = self.audited_boxes / self.audited_hits if self.audited_hits else 1.0
        return self._share_of(upper_bound(self.audited_hits, self.audited) * boxes_a_hit)

    def _share_of(self, boxes_a_tile: float) -> float:
        lost = boxes_a_tile * self.skipped
        return lost / (lost + self.kept_boxes + self.audited_boxes) if lost else 0.0

    def line(self) -> str:
        """For people."""
        if not self.skipped and not self.audited:
            late = f", {self.fell_back} after all" if self.fell_back else ""
            return f"skip: all {counted(self.tiles, 'tile')} run{late}"
        return (
            f"skip: {self.skipped} of {self.tiles} tiles not run; of {self.audited} audited ones {self.audited_hits} held "
            f"something: about {100 * self.loss:.1f} % of the detections lost (95 %: at most {100 * self.loss_at_most:.1f} %)"
            + (f"; {self.fell_back} tiles run after all" if self.fell_back else "")
        )


def report_of(found: dict[int, Detections], verdicts: dict[int, str], rule: SkipRule) -> SkipReport:
    """The report of one image: detections of each tile that was run, and the verdict of each tile (RUN if not named)."""
    counts = {tile: int((part.scores >= rule.score).sum()) for tile, part in found.items()}
    audited = [tile for tile, verdict in verdicts.items() if verdict == AUDITED]
    return SkipReport(
        tiles=len(set(found) | set(verdicts)),
        skipped=sum(verdict == SKIPPED for verdict in verdicts.values()),
        audited=len(audited),
        audited_hits=sum(counts.get(tile, 0) > 0 for tile in audited),
        audited_boxes=sum(counts.get(tile, 0) for tile in audited),
        kept_boxes=sum(n for tile, n in counts.items() if verdicts.get(tile, RUN) == RUN),
    )


def takes_back(report: SkipReport, rule: SkipRule) -> bool:
    """Whether the audit shows a loss over the limit; one tile with something in it may be chance, two are not."""
    return report.skipped > 0 and report.audited_hits >= 2 and report.loss > rule.max_loss


def upper_bound(hits: int, trials: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson upper bound of a share: P(X <= hits | p) = 1 - confidence, by bisection."""
    if hits >= trials:
        return 1.0
    low, high, ks = hits / trials, 1.0, range(hits + 1)
    for _ in range(50):
        p = (low + high) / 2
        below = math.fsum(math.exp(_log_choose(trials, k) + k * math.log(p) + (trials - k) * _log(1 - p)) for k in ks)
        low, high = (p, high) if below > 1 - confidence else (low, p)
    return high


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
