"""How the images of a set are shown to a model that is measured: small ones whole, large ones in tiles, in bounded memory.

What a pass takes is known beforehand from the detector's shapes (`activation_bytes_per_pixel`), so a batch has as many pixels
as fit into `PASS_BYTES`. Whether an image goes whole or in tiles depends on the recipe, the detector and the image's size alone,
never on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.data.enlarge import Enlarge, described_enlargement, native_sizes
from flyspeck.data.padding import padded_side
from flyspeck.errors import UserError
from flyspeck.infer.tiles import default_tiles
from flyspeck.models.detector import Detector
from flyspeck.models.profile import activation_bytes_per_pixel
from flyspeck.train.sections import EvaluateConfig, TrainConfig

PASS_BYTES = 500_000_000
"""Activations of one pass, as counted; with the libraries' scratch up to 1.3 times as much was measured."""
WHOLE_PIXELS = 2_000_000
"""An image of more pixels, as the network sees it, goes in tiles."""
WHOLE_SIDES = 2
"""So does one with a side of more than so many times the training's."""
FILE_PIXELS = 16_000_000
"""An image file of more pixels is read by windows where its format can be."""
WORTH_A_LINE = 1.5
"""Times the training's area from which a line says that counts grow with it."""
OFF = "off"


@dataclass(frozen=True, kw_only=True)
class Viewing:
    """What of an image the model is given at a time. The defaults show every image whole."""

    rule: PixelRule
    """How the files are read."""
    enlarge: Enlarge = field(default_factory=Enlarge)
    """How large the network sees the images."""
    batch_size: int = 8
    """Images, or tiles, at a time at most."""
    precision: str = "fp32"
    tile: tuple[int, int] | None = None
    """(height, width) of the tiles of images that do not go whole, in pixels that the network sees (of the image, where each tile
    is squeezed); None: all go whole."""
    overlap: int = 0
    """Pixels that neighbouring tiles share at least."""
    whole_sides: tuple[int, int] = (0, 0)
    """With `tile`: (shorter, longer) side in the same pixels up to which an image goes whole all the same."""
    whole_pixels: int = 0
    """With `tile`: and how many pixels it may have."""
    pixels_at_once: int = 10**12
    """Pixels of a batch, padding included; one image, or tile, is always allowed."""

    def goes_whole(self, size: tuple[int, int]) -> bool:
        """Whether an image of `size` (H, W), in pixels of its file, is shown whole."""
        if self.tile is None:
            return True
        height, width = size if self.enlarge.squeeze is not None else self.enlarge.size(size)
        if height <= self.tile[0] and width <= self.tile[1]:
            return True
        short, long = sorted((height, width))
        return short <= self.whole_sides[0] and long <= self.whole_sides[1] and height * width <= self.whole_pixels

    def at_once(self, size: tuple[int, int]) -> int:
        """Images of `size` (H, W), padded as the network takes them, in a batch."""
        return max(1, min(self.batch_size, self.pixels_at_once // (size[0] * size[1])))


class MeasuredSections(Protocol):
    """What is read here of a recipe."""

    evaluate: EvaluateConfig
    train: TrainConfig


def viewing_of(
    recipe: MeasuredSections, description: Mapping[str, Any], detector: Detector, rule: PixelRule, *, scale: float = 1.0
) -> Viewing:
    """How the recipe's run is measured; `description` is what its weights say (`enlarge`, `training_size`, `object_side_99`).

    `scale` is how much larger than the recipe's network `detector` sees the images (a teacher's). Raises UserError for an
    `evaluate.tile` that the detector cannot take.
    """
    asked, enlarge = recipe.evaluate.tile, described_enlargement(description)
    pixels = max(1, int(PASS_BYTES / activation_bytes_per_pixel(detector) / scale**2))
    whole = Viewing(
        rule=rule,
        enlarge=enlarge,
        batch_size=recipe.evaluate.batch_size,
        precision=recipe.train.precision,
        pixels_at_once=pixels,
    )
    if asked == OFF or (asked is None and enlarge.squeeze is not None):
        return whole
    if asked is not None:
        if min(asked) * scale < detector.smallest_side and enlarge.squeeze is None:
            raise UserError(
                f"a tile of {asked[0]}x{asked[1]} for a detector that needs {detector.smallest_side} px a side",
                where="evaluate.tile",
                fix="give larger tiles, or leave it out",
            )
        return _tiled(whole, description, asked)
    sides, _ = default_tiles(None, None, description)
    assert sides is not None  # only squeezed images have none
    training = sides[0] * sides[1]
    limit = min(WHOLE_PIXELS, max(pixels, training))
    if training > limit:
        sides = _shrunk(sides, limit, detector.divisor)
    short, long = sorted(sides)
    return _tiled(whole, description, sides, (WHOLE_SIDES * short, WHOLE_SIDES * long), limit)


def _tiled(
    whole: Viewing,
    description: Mapping[str, Any],
    tile: tuple[int, int],
    whole_sides: tuple[int, int] = (0, 0),
    whole_pixels: int = 0,
) -> Viewing:
    _, overlap = default_tiles(tile, None, description)
    return replace(whole, tile=tile, overlap=overlap, whole_sides=whole_sides, whole_pixels=whole_pixels)


def _shrunk(size: tuple[int, int], pixels: int, divisor: int) -> tuple[int, int]:
    """(H, W) of the same proportions with no more than so many pixels, in multiples of `divisor`."""
    ratio = (pixels / (size[0] * size[1])) ** 0.5
    return max(divisor, int(size[0] * ratio) // divisor * divisor), max(
        divisor, int(size[1] * ratio) // divisor * divisor
    )


def remarks_on(viewing: Viewing, annotations: Annotations, detector: Looking) -> list[str]:
    """Lines for people on how the set is shown: what goes in tiles, what takes more memory than a pass should, and where the
    detector keeps more of an image than the recipe says, because it learns from small crops.
    """
    sizes = [(int(h), int(w)) for h, w in native_sizes(annotations)]
    tiled = [size for size in sizes if not viewing.goes_whole(size)]
    lines, passes = [], [viewing.enlarge.size(size) for size in sizes if viewing.goes_whole(size)]
    if tiled and viewing.tile is not None:
        height, width = viewing.tile
        passes.append(viewing.enlarge.squeeze or viewing.tile)
        lines.append(
            f"evaluation: {len(tiled)} of {len(sizes)} images are large and go in tiles of {height}x{width} that share"
            f" {viewing.overlap} px (evaluate.tile sets others)"
        )
    height, width = max((padded(size, detector) for size in passes), key=lambda size: size[0] * size[1], default=(0, 0))
    if height * width > viewing.pixels_at_once:
        size, taken = f"{height}x{width}", height * width / viewing.pixels_at_once * PASS_BYTES / 1e9
        lines.append(f"evaluation: {size} px at once take about {taken:.1f} GB; evaluate.tile sets smaller tiles")
    share = height * width / (detector.counts_area or max(height * width, 1))
    if share >= WORTH_A_LINE:
        lines.append(
            f"evaluation: {height}x{width} px have {share:.1f} times the area of what the detector learns from, so that it looks"
            f" at {share:.1f} times as many proposals or candidates there and keeps as many more detections; model.counts: fixed"
            " keeps the recipe's numbers"
        )
    return lines


def images_at_once(
    detector: Detector, annotations: Annotations, enlarge: Enlarge | None, *, batch_size: int, scale: float = 1.0
) -> int:
    """Of a set whose images must go whole: how many at a time, so that the largest ones fit into `PASS_BYTES`; at least one.

    `scale` is how much larger than by `enlarge` the detector sees them.
    """
    rule = enlarge or Enlarge()
    seen = [padded(rule.size((int(h), int(w))), detector) for h, w in native_sizes(annotations)]
    largest = max((height * width for height, width in seen), default=1) * scale**2
    return max(1, min(batch_size, int(PASS_BYTES / activation_bytes_per_pixel(detector) / largest)))


class Padding(Protocol):
    """What a detector says of the sides of its input; see `flyspeck.models.detector.Detector`."""

    @property
    def divisor(self) -> int:
        """What they must divide by."""
        ...

    @property
    def smallest_side(self) -> int:
        """What they must have at least."""
        ...


class Looking(Padding, Protocol):
    """And what it keeps of it."""

    @property
    def counts_area(self) -> int | None:
        """Pixels of the input that the counts of its recipe are for (`models.counts`); None: of any."""
        ...


def padded(size: tuple[int, int], detector: Padding) -> tuple[int, int]:
    """(H, W) of the network's input for an image, or tile, of `size`."""
    height, width = (padded_side(side, divisor=detector.divisor, smallest=detector.smallest_side) for side in size)
    return height, width
