"""How the minutes of `auto` are shared out: what follows training is kept back, so that all of it ends in time."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from flyspeck.errors import UserError
from flyspeck.plan import rules, tiers
from flyspeck.plan.choices import Speed, counted
from flyspeck.plan.fingerprint import Fingerprint
from flyspeck.plan.state import State

MOST_CANDIDATES = 3
LOOKING = 0.05
"""Share of a training's time that one evaluation may take: about four are made."""
FEWEST = 20
"""Images that are looked at all the same."""


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


def busy() -> float:
    """By how much other programs slow this machine down, from 1 to 3: those that wait for each of its processors."""
    try:
        return min(3.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))
    except (AttributeError, OSError):  # not on this system
        return 1.0


class Budget:
    """Seconds in all, and what is used of them."""

    CHOOSING = 0.08
    """Share of the time for trying settings."""
    REPORTING = 0.06
    """Share of the time for the images that are reported on."""
    EXPORT, BASELINES, PAGE = 24.0, 25.0, 6.0
    """Seconds for tracing and checking the exported detector, for what needs no network, and for the page, on a quiet machine."""
    SPARE = 0.04
    """Share of the time for what nobody foresees."""
    LEAST_TRAINING = 15.0
    """Seconds below which no training is worth a name."""

    def __init__(self, minutes: float, state: State, *, busy: float = 1.0) -> None:
        """`busy` is how much longer the machine takes, since other programs run on it."""
        self.minutes, self.seconds, self.state = minutes, 60.0 * minutes, state
        self.page, self.baselines = busy * self.PAGE, busy * self.BASELINES
        self.fixed = busy * self.EXPORT + self.baselines + self.page

    @property
    def left(self) -> float:
        """Seconds until the promised end; below 0 after it."""
        return self.seconds - self.state.seconds

    def images(self, share: float, speed: Speed, found: Fingerprint) -> int:
        """Images that can be looked at in a share of the time; of the choosing, four times over."""
        passes = 4 if share == self.CHOOSING else 1.5
        return max(4, int(share * self.seconds / passes / image_seconds(speed, found)))

    def for_settings(self) -> float:
        """Seconds for trying settings: their share, or what is left of the time, should that be less."""
        return max(0.0, min(self.CHOOSING * self.seconds, self.left - self.fixed))

    def still(self, each: float) -> int:
        """Images that can still be reported on, at so many seconds each; some all the same, or nothing would be known."""
        return max(FEWEST, int((self.left - self.baselines - self.page) / max(1.2 * each, 1e-6)))

    def kept_back(
        self, choose: int, report: int, found: Fingerprint, speed: Speed, *, candidates: int = MOST_CANDIDATES
    ) -> float:
        """Seconds for what is no training, from `choose` and `report` images, of which so many `candidates` are measured; with
        one, that is what comes after the last training.
        """
        each = image_seconds(speed, found)
        choose = min(choose, self.images(self.CHOOSING, speed, found))
        report = min(report, self.images(self.REPORTING, speed, found))
        settings = min(self.CHOOSING * self.seconds, 14 * choose * each)
        trials = 1.4 * sum(range(2, candidates + 1)) * choose * each
        return settings + trials + 1.5 * report * each + self.fixed + self.SPARE * self.seconds

    def for_training(self, choose: int, report: int, found: Fingerprint, speeds: Mapping[str, Speed]) -> float:
        """Seconds of training, all candidates together. Raises UserError where they are too few to learn anything."""
        tier, _ = tiers.best_tier(found, speeds, 0.7 * self.minutes)
        speed, used = speeds[tier.name], self.state.seconds
        kept = self.kept_back(choose, report, found, speed)
        left = self.seconds - used - kept
        quickest = max(one.images_per_second for one in speeds.values())
        least = max(self.LEAST_TRAINING, rules.LEAST_STEPS * 4 / quickest)
        if left >= least:
            return round(left, 1)
        needed = math.ceil((used + kept + 1.5 * least) / 60)
        raise UserError(
            f"{counted(self.minutes, 'minute')} {'is' if self.minutes == 1 else 'are'} too short:"
            f" looking and timing took {used:.0f} s, choosing, exporting and reporting"
            f" take about {kept:.0f} s, and {rules.LEAST_STEPS} steps of training {least:.0f} s",
            where="--minutes",
            fix=f"give {max(needed, math.floor(self.minutes) + 1)} or more",
        )
