"""A protocol: the rules of an evaluation, as one value. Every metric follows from its fields; `catalogue` has the named ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from flyspeck.evaluate.matching import MatchRule

INFINITE = 1e10
COCO_IOUS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
MEAN_IOU = "0.50:0.95"
COCO_RULE = MatchRule()
CALTECH_RULE = MatchRule(iod_for="ignored", ignored_choice="first", unlimited="ignored")
WIDER_RULE = MatchRule(pixel=1.0, candidates="best", iod_for="never", unlimited="ignored")


@dataclass(frozen=True)
class Bin:
    """A range of object size, closed at both ends as in COCO: an object on a bound is in both bins."""

    name: str
    low: float
    high: float


def size_bins(**edges: tuple[float, float]) -> tuple[Bin, ...]:
    """Area bins from sizes in pixels: `tiny=(2, 20)` is the area range [4, 400]."""
    return tuple(Bin(name, float(low**2), float(high**2)) for name, (low, high) in edges.items())


COCO_BINS = (Bin("all", 0.0, INFINITE), *size_bins(s=(0, 32), m=(32, 96), l=(96, INFINITE**0.5)))


@dataclass(frozen=True)
class APProtocol:
    """Average precision in the manner of COCO: greedy matching in each image and class, 101 recall points."""

    name: str
    source: str
    bins: tuple[Bin, ...]
    """Area ranges in square pixels, on the ground truth's area field and on a detection's w*h."""
    ious: tuple[float, ...]
    max_dets: tuple[int, ...]
    """The last one holds for AP; recall is reported for each."""
    max_dets_per: Literal["class", "image"] = "class"
    """Whether the best `max_dets` are kept of each image and class, or of each image."""
    rule: MatchRule = COCO_RULE
    ignore: tuple[Literal["crowd", "ignore", "uncertain"], ...] = ("crowd",)
    """The flags that make a ground truth an ignored one."""
    every_class: bool = False
    """True: ignored ground truths hold for every class; False: for their own (regions without a class always for every)."""
    drop_under_ignored: float | None = None
    """Detections with at least this share of their area under an ignore region leave before matching (VisDrone)."""
    affinity: Literal["iou", "centre", "nwd"] = "iou"
    """What `ious` are thresholds of: IoU; 1 - distance of centres / size of the ground truth; NWD (see `affinity`)."""
    interpolation: Literal["101 points", "area"] = "101 points"
    """Mean precision at 101 recall points, or the area under the curve."""
    class_weights: Literal["equal", "images"] = "equal"
    """What a class counts in a mean: the same, or the number of images that have it (VisDrone's loop)."""
    id_zero_matches: bool = True
    """False: a detection matched to the annotation with id 0 counts as a false positive, as in pycocotools."""
    report: Literal["tinybenchmark", "sizes", "coco"] = "sizes"
    """Which rows are printed."""
    quirks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line for the head of a table."""
        ious = MEAN_IOU if self.ious == COCO_IOUS else ",".join(f"{iou:g}" for iou in self.ious)
        dets = "/".join(str(count) for count in self.max_dets)
        measure = {"iou": "IoU", "centre": "centre affinity", "nwd": "NWD"}[self.affinity]
        words = f"maxDets {dets}, ignored: {', '.join(self.ignore)}{_matching_text(self.rule)}"
        sizes = [(area.name, area.low**0.5, area.high**0.5) for area in self.bins]
        return f"{self.name}: AP at {measure} {ious}, {words}{_ranges_text('sizes', sizes)}"


@dataclass(frozen=True)
class Setup:
    """A subset for the miss rate, closed ranges of size (or height) in pixels and of the visible share."""

    name: str
    low: float
    high: float
    visible_low: float = 0.65
    visible_high: float = INFINITE


@dataclass(frozen=True)
class MissRateProtocol:
    """Log-average miss rate over false positives per image in [0.01, 1] (Dollar et al., 2012; CityPersons' script)."""

    name: str
    source: str
    setups: tuple[Setup, ...]
    ious: tuple[float, ...]
    measure: Literal["size", "height"]
    """What `setups` range over: the square root of the area, or the height."""
    ignore: tuple[Literal["ignore", "uncertain"], ...] = ("ignore",)
    max_dets: int = 1000
    expand: float = 1.25
    """Detections with a size outside [low / expand, high * expand) are removed."""
    rule: MatchRule = CALTECH_RULE
    fppi: tuple[float, ...] | None = None
    """The nine points; None: exp(ln .01 + k ln(100) / 8) in doubles, slightly above the decimals."""
    wrap: bool = True
    """True: a curve that starts above a point wraps to the final recall there (a reference's flaw); False: recall 0."""
    floor: float = 0.0
    """Least miss rate inside the logarithm; 0: one zero makes the average 0."""
    first_class_only: bool = False
    id_zero_matches: bool = False
    quirks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line for the head of a table."""
        ious = ",".join(f"{iou:g}" for iou in self.ious)
        return (
            f"{self.name}: log-average miss rate over FPPI [0.01, 1] at IoU {ious}, by {self.measure}, "
            f"maxDets {self.max_dets}, ignored: {', '.join(self.ignore)}{_matching_text(self.rule)}"
            f"{_ranges_text(f'{self.measure}s', [(setup.name, setup.low, setup.high) for setup in self.setups])}"
            f"; visible share {Setup.visible_low:g}+{self._other_visibility()}"
        )

    def _other_visibility(self) -> str:
        """The setups that take other visible shares than usual."""
        other = [s for s in self.setups if (s.visible_low, s.visible_high) != (Setup.visible_low, Setup.visible_high)]
        words = [
            f"{s.name} {s.visible_low:g}" + ("+" if s.visible_high >= 1 else f"-{s.visible_high:g}") for s in other
        ]
        return f" ({', '.join(words)})" if words else ""


@dataclass(frozen=True)
class DelegatedCOCO:
    """COCO's own protocol, computed by faster-coco-eval."""

    name: str
    source: str
    max_dets: tuple[int, int, int] = (1, 10, 100)
    quirks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line for the head of a table."""
        return (
            f"{self.name}: AP at IoU {MEAN_IOU}, maxDets {'/'.join(map(str, self.max_dets))}, ignored: crowd; "
            "sizes in px: s 0-32, m 32-96, l 96+"
        )


@dataclass(frozen=True)
class VOCProtocol:
    """The PASCAL VOC rule: best ground truth only; a second detection of it is a false positive."""

    name: str
    source: str
    rule: MatchRule
    ious: tuple[float, ...] = (0.5,)
    difficult: Literal["ignored", "ordinary"] = "ignored"
    truncate_truth: bool = False
    """DOTA's parser cuts the corners' decimals off."""
    single_precision: bool = False
    """mmdet computes in float32."""
    classes: tuple[str, ...] | None = None
    """The classes the mean is taken over; None: those of the ground truth."""
    absent_class: Literal["excluded", "zero"] = "excluded"
    """What a class without ground truth adds to the mean of the 11-point AP (`zero`: 0, and the area mean is undefined)."""
    quirks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line for the head of a table."""
        sign = ">" if self.rule.strict else ">="
        plus = ", +1 pixel" if self.rule.pixel else ""
        ious = ",".join(f"{iou:g}" for iou in self.ious)
        return f"{self.name}: AP at IoU {sign} {ious}{plus}, best ground truth only, difficult {self.difficult}"


@dataclass(frozen=True)
class WiderProtocol:
    """WIDER FACE: 1000 score thresholds over the whole submission, area AP in three settings."""

    name: str
    source: str
    iou: float = 0.5
    thresholds: int = 1000
    rule: MatchRule = WIDER_RULE
    quirks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line for the head of a table."""
        return (
            f"{self.name}: AP at IoU >= {self.iou:g} (+1 pixel), {self.thresholds} thresholds of the normalised score"
        )


Protocol = APProtocol | MissRateProtocol | DelegatedCOCO | VOCProtocol | WiderProtocol


def _ranges_text(what: str, ranges: list[tuple[str, float, float]]) -> str:
    """`; sizes in px: tiny 2-20, small 20-32`; nothing where everything is in one range."""
    if len(ranges) == 1:
        return ""
    words = [
        f"{name} {low:g}-{high:g}" if high < 1e5 else f"{name} {max(low, 0):g}+"
        for name, low, high in ranges
        if not name.startswith(f"{low:g}")  # a bin of one's own is called by its range
    ]
    return f"; {what} in px: {', '.join(words)}"


def _matching_text(rule: MatchRule) -> str:
    words = {"crowd": "", "flagged": "; ignore regions by IoD", "ignored": "; ignored by IoD", "never": ""}[
        rule.iod_for
    ]
    if rule.second_pass is not None:
        words += f"; second pass by IoD ({rule.second_pass.threshold})"
    return words


def describe(protocol: Protocol) -> dict[str, Any]:
    """Every field, for storing with the numbers."""
    return {"kind": type(protocol).__name__, **asdict(protocol)}
