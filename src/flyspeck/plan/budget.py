"""How the minutes of `auto` are shared out: what follows training is kept back, so that all of it ends in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from flyspeck.errors import UserError, counted
from flyspeck.plan import rules, tiers
from flyspeck.plan.choices import Speed
from flyspeck.plan.fingerprint import Fingerprint
from flyspeck.plan.sets import CHOOSE, REPORT
from flyspeck.plan.state import State

MOST_CANDIDATES = 3
LOOKING = 0.05
"""Share of a training's time that one evaluation may take: about four are made."""
FEWEST = 20
"""Images that are looked at all the same."""
LATE = 8
"""Images that are reported on where all time is used up."""
ODD_IMAGES, ODD_PIXELS = 36, 256 * 320
"""An exported detector is run on so many images of at most so many pixels, at odd sizes and batches (`export.plain_run`)."""
LEAST_BASELINES = 0.2
"""Share of their time from which baselines are worth fitting: on fewer images then."""
HARDLY = 1.3
"""Two timings of the same may differ by so much."""
TIMING, COMPARING = 1 / 20, 1 / 8
"""Shares of all time for which detectors are timed, and images compared, at most."""
LONGEST_TIMING = 20.0
"""Seconds that timing takes, however much there is."""
ANOTHER_TIME = 1.15
"""What the same may take when it is called again."""
MOST_MINUTES = 10_000
"""Beyond it no number of minutes is looked for."""
FULL_PRECISION = 1.5
"""What fp32 takes of the time that detectors were measured in, at most where that was bf16."""


def image_seconds(speed: Speed, found: Fingerprint) -> float:
    """What finding the objects of an image takes, from the file on, at the scale of the training."""
    scale = rules.enlargement(found).value
    height, width = rules.crop(found, scale)[0].value
    pixels = found.megapixels * 1e6 / max(1, found.images)
    seen = pixels * scale**2 / (height * width)
    return max(seen, 0.25) / speed.detect_per_second + found.decode_seconds * pixels / 1e6


def looked_at(speed: Speed, found: Fingerprint, minutes: float, images: int) -> int | None:
    """Of so many images to measure on, how many a training of so many minutes has time for; None for all."""
    most = max(FEWEST, int(LOOKING * 60 * minutes / image_seconds(speed, found)))
    return most if most < images else None


def timing(seconds: float) -> float:
    """Of so many seconds in all, those for which detectors are timed at most."""
    return min(LONGEST_TIMING, TIMING * seconds)


class Budget:
    """Seconds in all, and what is used of them."""

    CHOOSING = 0.08
    """Share of the time for trying settings."""
    REPORTING = 0.06
    """Share of the time for the images that are reported on."""
    WRITING, BASELINES, PAGE = 2.0, 25.0, 6.0
    """Seconds for writing the exported detector, for what needs no network, and for the page, on a quiet machine."""
    CHECKED = 8
    """Images that the exported detector is checked on, where there is time."""
    SPARE = 0.04
    """Share of the time for what nobody foresees."""
    LEAST_TRAINING = 15.0
    """Seconds below which no training is worth a name."""

    def __init__(self, minutes: float, state: State, *, slowness: Callable[[], float] = lambda: 1.0) -> None:
        """`slowness` says how much longer than a quiet machine this one takes now (`plan.slowness`)."""
        self.minutes, self.seconds, self.state, self._slowness = minutes, 60.0 * minutes, state, slowness
        self.larger: Mapping[str, float] = {CHOOSE: 1.0, REPORT: 1.0}
        """Pixels of an image to choose and to report on, for each of an image to learn from, which the forecasts know."""
        if "slowness" not in state.done:
            state.done["slowness"] = slowness()

    @property
    def slower(self) -> float:
        """By what seconds of the quiet machine are to be multiplied now."""
        return self._slowness()

    @property
    def later(self) -> float:
        """By how much this machine is slower now than it was when detectors were timed; 1 where it is not, or hardly."""
        ratio = self._slowness() / float(self.state.done["slowness"])
        return ratio if ratio > HARDLY else 1.0

    @property
    def left(self) -> float:
        """Seconds until the promised end; below 0 after it."""
        return self.seconds - self.state.seconds

    def images(self, share: float, speed: Speed, found: Fingerprint) -> int:
        """Images that can be looked at in a share of the time; of the choosing, four times over."""
        passes, part = (4, CHOOSE) if share == self.CHOOSING else (1.5, REPORT)
        return max(4, int(share * self.seconds / passes / (self.larger[part] * image_seconds(speed, found))))

    def export(self, speed: Speed, found: Fingerprint, *, images: int = CHECKED) -> float:
        """Seconds for the exported detector: tracing, images at odd sizes and batches in two runtimes, and whole `images`."""
        height, width = rules.crop(found, rules.enlargement(found).value)[0].value
        odd = ODD_IMAGES * min(1.0, ODD_PIXELS / (height * width)) / speed.detect_per_second
        tracing = self.slower * (speed.tracing + self.WRITING)
        return tracing + FULL_PRECISION * self.later * (odd + 2 * images * image_seconds(speed, found))

    def checked(self, speed: Speed, found: Fingerprint) -> int:
        """Images to check the exported detector on, so that the rest has its time; 0 where there is no time to export."""
        spare = self.left - self.slower * self.PAGE
        for images in (self.CHECKED, self.CHECKED // 2, 2):
            if self.export(speed, found, images=images) <= spare:
                return images
        return 0

    def after_export(self, speed: Speed, found: Fingerprint) -> float:
        """Seconds for all that follows the measuring of settings, of images alone."""
        return self.export(speed, found) + self.slower * (self.BASELINES + self.PAGE)

    def for_settings(self, report: int, speed: Speed, found: Fingerprint) -> float:
        """Seconds for trying settings: their share, or what the rest, with so many images to `report` on, leaves of the time."""
        rest = self.after_export(speed, found) + self._reporting(report, speed, found)
        return max(0.0, min(self.CHOOSING * self.seconds, self.left - rest))

    def _reporting(self, report: int, speed: Speed, found: Fingerprint) -> float:
        """Seconds for the images that are reported on."""
        report = min(report, self.images(self.REPORTING, speed, found))
        return 1.5 * report * self.later * self.larger[REPORT] * image_seconds(speed, found)

    def still(self, each: float, planned: int) -> int:
        """Images that can still be reported on, at so many seconds for each image to choose on: up to `planned` those that leave
        baselines hardly any time, and more where they have all of theirs. A few all the same, or nothing would be known.
        """
        each = max(1.2 * each * self.larger[REPORT] / self.larger[CHOOSE], 1e-6)
        least, all_of_it = (self.left - self.slower * (s * self.BASELINES + self.PAGE) for s in (LEAST_BASELINES, 1.0))
        images = max(min(planned, int(least / each)), int(all_of_it / each))
        return max(FEWEST if least > 0 else LATE, images)

    def for_baselines(self) -> float:
        """Seconds for what needs no network; 0 where there is no time for it."""
        spare = min(self.slower * self.BASELINES, self.left - self.slower * self.PAGE)
        return spare if spare >= LEAST_BASELINES * self.slower * self.BASELINES else 0.0

    def drawn(self, most: int) -> int:
        """Images that the page shows, of at `most` so many."""
        return most if self.left >= self.slower * self.PAGE else min(most, 4)

    def kept_back(
        self, choose: int, report: int, found: Fingerprint, speed: Speed, *, candidates: int = MOST_CANDIDATES
    ) -> float:
        """Seconds for what is no training, from `choose` and `report` images, of which so many `candidates` are measured; with
        one, that is what comes after the last training.
        """
        each = self.later * self.larger[CHOOSE] * image_seconds(speed, found)
        choose = min(choose, self.images(self.CHOOSING, speed, found))
        settings = min(self.CHOOSING * self.seconds, 14 * choose * each)
        trials = 1.4 * sum(range(2, candidates + 1)) * choose * each
        rest = self._reporting(report, speed, found) + self.after_export(speed, found)
        return settings + trials + rest + self.SPARE * self.seconds

    def affordable(
        self, choose: int, report: int, found: Fingerprint, speeds: Mapping[str, Speed]
    ) -> Mapping[str, Speed]:
        """Those detectors for which what follows training leaves time to train; all where it does for none.

        So a number of minutes that was named by the quickest, the only one that few minutes leave time to measure, holds.
        """
        spare = self.seconds - self.state.seconds - self._least(speeds)
        fitting = {
            name: speed for name, speed in speeds.items() if self.kept_back(choose, report, found, speed) <= spare
        }
        return fitting or speeds

    def _least(self, speeds: Mapping[str, Speed]) -> float:
        """Seconds below which no training is worth a name."""
        quickest = max(one.images_per_second for one in speeds.values())
        return max(self.LEAST_TRAINING, rules.LEAST_STEPS * 4 / quickest)

    def for_training(self, choose: int, report: int, found: Fingerprint, speeds: Mapping[str, Speed]) -> float:
        """Seconds of training, all candidates together. Raises UserError where they are too few to learn anything."""
        tier, _ = tiers.best_tier(found, speeds, 0.7 * self.minutes)
        speed, used = speeds[tier.name], self.state.seconds
        kept = self.kept_back(choose, report, found, speed)
        left = self.seconds - used - kept
        least = self._least(speeds)
        if left >= least:
            return round(left, 1)
        raise UserError(
            f"{counted(self.minutes, 'minute')} {'is' if self.minutes == 1 else 'are'} too short:"
            f" looking and timing took {used:.0f} s, choosing, exporting and reporting"
            f" take about {kept:.0f} s, and {rules.LEAST_STEPS} steps of training {least:.0f} s",
            where="--minutes",
            fix=f"give {self._enough(choose, report, found, speeds, used=used, least=least)} or more",
        )

    def _enough(
        self,
        choose: int,
        report: int,
        found: Fingerprint,
        speeds: Mapping[str, Speed],
        *,
        used: float,
        least: float,
    ) -> int:
        """Whole minutes with time to train; what is not training, and the timing before it, grow with them."""
        minutes = math.floor(self.minutes) + 1
        while minutes < MOST_MINUTES:
            longer = Budget(minutes, self.state, slowness=self._slowness)
            longer.larger = self.larger
            tier, _ = tiers.best_tier(found, speeds, 0.7 * minutes)
            kept = longer.kept_back(choose, report, found, speeds[tier.name])
            more = timing(longer.seconds) - timing(self.seconds)
            more += 0.0 if found.compared else COMPARING * longer.seconds
            if longer.seconds - ANOTHER_TIME * (used + more + kept) >= 1.5 * least:
                break
            minutes += 1
        return minutes
