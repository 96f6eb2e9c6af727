"""How large an image is shown to a detector that knows the metres a pixel of its training: objects as large as it learnt them.

By default (`auto`) an image whose ground resolution lies within 1.25 times of the training's range is left as it is: detectors
bear that, and resampling costs. Others are seen at the training's median, since a detector of tiny objects finds few at twice
or half their size; but never enlarged more than 4 times, where nothing is left to see. Whatever is done is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flyspeck.data.enlarge import described_enlargement
from flyspeck.data.ground import GroundResolution
from flyspeck.errors import UserError
from flyspeck.geo import GeoReference
from flyspeck.projection import metres_per_pixel

NEAR = 1.25
"""Ratio of two ground resolutions up to which they count as equal."""
MOST = 4.0
"""Enlargement beyond which `auto` leaves an image as it is."""


@dataclass(frozen=True)
class ResolutionRule:
    """What is asked of ground resolutions, and what the detector knows of them."""

    asked: Literal["auto", "native", "trained"] | float = "native"
    """A number: metres a pixel that images are brought to."""
    trained: GroundResolution | None = None
    rescales: bool = True
    """Whether the model sees images at a scale of the user's; not where it brings them all to one size."""

    @property
    def rule(self) -> list[object] | None:
        """What decides the scale of an image, for a journal; None where nothing does."""
        if self.asked == "native" or (self.asked == "auto" and (self.trained is None or not self.rescales)):
            return None
        return [self.asked, None if self.trained is None else self.trained.median]

    def of(self, geo: GeoReference | None, size: tuple[int, int], *, name: str) -> tuple[float, str]:
        """(factor, line): how many times as large an image of `size` (H, W) is to be seen, and what is said of it.

        Raises UserError where a resolution is asked for by name or number and the image does not say its own.
        """
        if self.asked in ("auto", "native") and self.trained is None:
            return 1.0, ""
        metres = None
        if geo is not None and geo.crs is not None:
            try:
                metres = metres_per_pixel(geo.transform, geo.crs, size)
            except UserError as error:
                if self.asked not in ("auto", "native"):
                    raise
                return 1.0, f"its ground resolution is not known ({error})"
        if metres is None:
            if self.asked in ("auto", "native"):
                return 1.0, ""
            lack = "does not say how many metres a pixel covers"
            raise UserError(f"{lack} (--resolution {self.asked})", where=name, fix="--resolution native, or --scale")
        own = (metres[0] * metres[1]) ** 0.5
        text = f"{own:.3g} m a pixel"
        if max(metres) > NEAR * min(metres):
            text += f" ({metres[0]:.3g} across, {metres[1]:.3g} down)"
        if isinstance(self.asked, float):
            return own / self.asked, f"{text}, seen at {self.asked:.3g} (scale {own / self.asked:.3g})"
        assert self.trained is not None
        factor = own / self.trained.median
        near = self.trained.lowest / NEAR <= own <= self.trained.highest * NEAR
        if near and self.asked != "trained":
            return 1.0, ""
        apart = f"{text}, trained at {self.trained.words()}"
        if self.asked == "native" or not self.rescales:
            times = f"{factor:.2g} times coarser" if factor > 1 else f"{1 / factor:.2g} times finer"
            return 1.0, f"{apart}: {times}"
        if self.asked == "auto" and factor > MOST:
            return 1.0, f"{apart}: {factor:.2g} times coarser, too much to enlarge it (--resolution trained does)"
        return factor, f"{apart}: seen at {factor:.3g} times its size (--resolution native leaves it)"


def resolution_rule(
    asked: str | float | None, trained: GroundResolution | None, *, scale: float | None, rescales: bool
) -> ResolutionRule:
    """The rule of a job; `asked` None is `auto`, and `native` beside a `scale` that was given.

    Raises UserError for a resolution that cannot be, or that such a model or a given `scale` rules out.
    """
    where = "--resolution"
    if asked is None:
        return ResolutionRule("auto" if scale is None else "native", trained, rescales)
    if asked not in ("auto", "native", "trained"):
        try:
            number = float(asked)
        except ValueError:
            number = 0.0
        if not 0 < number < 1e6:
            fix = "native, trained, auto, or metres a pixel such as 0.1"
            raise UserError(f"'{asked}' is no ground resolution", where=where, fix=fix)
        asked = number
    if asked in ("auto", "native"):
        return ResolutionRule(asked, trained, rescales)  # type: ignore[arg-type]
    if scale is not None:
        raise UserError("a scale and a ground resolution", where=where, fix="give --scale or --resolution")
    if not rescales:
        raise UserError("the model brings every image to one size itself", where=where, fix="leave it out")
    if asked == "trained" and trained is None:
        fix = "give metres a pixel, or train with data.metres_per_pixel"
        raise UserError("the model does not know the metres a pixel of its training", where=where, fix=fix)
    return ResolutionRule(asked, trained, rescales)  # type: ignore[arg-type]


def described_resolution(
    description: Mapping[str, Any], asked: str | float | None, *, scale: float | None
) -> ResolutionRule:
    """The rule for a model, from what its file says of itself. Raises UserError as `resolution_rule` does."""
    enlarge = described_enlargement(description)
    rescales = enlarge.squeeze is None and enlarge.short_side is None
    return resolution_rule(asked, GroundResolution.of(description), scale=scale, rescales=rescales)
