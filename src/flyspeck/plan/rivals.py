"""What `auto` tries against each other."""

from __future__ import annotations

from collections.abc import Mapping

from flyspeck.plan.choices import Choice, Speed, Tier
from flyspeck.plan.fingerprint import Fingerprint
from flyspeck.plan.rules import CROPS, enlargement
from flyspeck.plan.tiers import FEW_IMAGES, FEW_PASSES, allowed_tiers, best_tier, images_seen

ONE_ALONE, TWO = 6.0, 15.0
"""Minutes below which there is one candidate, and below which there are two."""


Rival = tuple[str, Tier, Choice | None, str]
"""Name, detector, enlargement (None: by its rule) and why."""


def candidates(found: Fingerprint, speeds: Mapping[str, Speed], minutes: float) -> list[Rival]:
    """What `auto` tries against each other in so many minutes of training, the best guess first.

    Below `ONE_ALONE` minutes the guess alone, up to `TWO` minutes two, else three.
    """
    guess, why = best_tier(found, speeds, minutes)
    picked: list[Rival] = [(guess.name, guess, None, why)]
    if minutes < ONE_ALONE:
        return picked
    others = [_neighbour(found, speeds, minutes, guess), _rescaled(found, guess) if minutes >= TWO else None]
    fast = _fast(found, speeds, minutes, guess)
    # What begins at random is held against what is quicker; weights to begin with were worth more than that.
    others = [*others, fast] if guess.pretrained else [fast, *others]
    return (picked + [one for one in others if one is not None])[: 2 if minutes < TWO else 3]


def _neighbour(found: Fingerprint, speeds: Mapping[str, Speed], minutes: float, guess: Tier) -> Rival | None:
    """The next larger detector, where it sees half of the images that it takes or more; else the next smaller one."""
    tiers = [tier for tier in allowed_tiers(found) if tier.name in speeds and tier.fast == guess.fast]
    place, seen = tiers.index(guess), images_seen(tiers, speeds, minutes)
    larger = [one for one in tiers[place + 1 :] if seen[one.name] >= _wanted(found) / 2]
    if larger:
        return larger[0].name, larger[0], None, "larger, and sees half of the images that it takes or more"
    smaller = tiers[place - 1] if place else None
    return None if smaller is None else (smaller.name, smaller, None, "smaller, and sees more images")


def _fast(found: Fingerprint, speeds: Mapping[str, Speed], minutes: float, guess: Tier) -> Rival | None:
    """The largest of the fast ones that sees enough images, else the one that sees most; none where the guess is one."""
    tiers = [tier for tier in allowed_tiers(found) if tier.name in speeds and tier.fast]
    if guess.fast or not tiers:
        return None
    seen = images_seen(tiers, speeds, minutes)
    enough = [one for one in tiers if seen[one.name] >= _wanted(found)]
    tier = enough[-1] if enough else max(tiers, key=lambda one: seen[one.name])
    ratio = speeds[tier.name].detect_per_second / speeds[guess.name].detect_per_second
    words = (
        f"finds objects in {ratio:.1f} times as many images a second as {guess.name}; which is better is for measuring"
    )
    return tier.name, tier, None, words


def _rescaled(found: Fingerprint, guess: Tier) -> Rival | None:
    """The guess on images of another size, where the objects are small or large for a network and still fit into a crop."""
    rule = enlargement(found)
    factor = rule.value * (
        2 if found.quantile(50) * rule.value < 16 else 0.5 if found.quantile(25) * rule.value > 16 else 1
    )
    if factor == rule.value or 2 * 1.5 * found.long_side * factor > 2 * CROPS[-1][0]:
        return None
    words = f"`auto` measures whether images at {factor:g} of their size are better than at {rule.value:g}"
    return f"{guess.name}-x{factor:g}", guess, Choice("data.enlarge", factor, words), words


def _wanted(found: Fingerprint) -> int:
    return max(FEW_IMAGES, FEW_PASSES * found.images)
