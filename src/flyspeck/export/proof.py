"""What every format of an export shares: what is asked for, the images that prove it, and when a file is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flyspeck.errors import UserError
from flyspeck.export.check_images import ImageSet, named_set, run_sets
from flyspeck.export.parity import AP, BOX_PX, SCORE, TIE_SHARE, Difference, Rule, ap_by_size
from flyspeck.files import make_folder
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.norms import at_factor
from flyspeck.models.dynamic.pooling import find_switch, is_dynamic
from flyspeck.models.dynamic.router import FactorRouter
from flyspeck.models.fake_quantised import is_fake_quantised
from flyspeck.models.postprocess import Method

SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "litert": ".tflite"}
_ENDINGS = ".onnx, .xml (OpenVINO) or .tflite (LiteRT)"
INT8_AP = 0.03
"""By how much AP50 of tiny objects of an INT8 file may be below that of the detector that was trained for it."""
BITS = (8, 16)
"""Of a band of an image."""


@dataclass(frozen=True)
class ExportOptions:
    """What to make, and what to prove it on."""

    format: str = "onnx"
    int8: bool = False
    bits: int | None = None
    """Of a band of an image: 16 takes 8 too, as float32; None: those of the training's images."""
    hard_nms: float | None = None
    """IoU of the suppression in place of the trained one; a detector with soft-NMS needs it."""
    suppression: Method | None = None
    """See `train.build.load_for_use`."""
    factor: float | None = None
    """Of a detector with factors: this one alone; None: the choice of each image, or the default without a predictor."""
    tile: tuple[int, int] | None = None
    """(H, W) of the one window of a LiteRT file; None: the training's."""
    check: Path | None = None
    """Images or annotations to check on; None: the run's validation set."""
    check_limit: int = 48
    calibrate: Path | None = None
    """Images to calibrate INT8 on; None: the run's training set, or `check`."""
    calibration_tiles: int = 64


@dataclass(frozen=True)
class Exported:
    """What was written, and what the check found."""

    path: Path
    difference: Difference
    ap: Mapping[str, Mapping[str, float]]
    """AP50 by size of `eager` and `exported`; empty where the images have no annotations."""


def prepared(detector: Detector, options: ExportOptions) -> Detector:
    """With the suppression and the factor that were asked for.

    Raises UserError where it has none, and where a detector that was trained for INT8 is to become another file.
    """
    if is_fake_quantised(detector):
        _check_int8(options)
    if options.hard_nms is not None:
        detector = with_hard_nms(detector, options.hard_nms)
    if options.factor is not None:
        return at_factor(detector, options.factor)  # says so where the detector has no factors
    if is_dynamic(detector) and detector.router is None:
        return at_factor(detector, find_switch(detector).default)
    if options.int8 and isinstance(detector.router, FactorRouter):
        raise UserError(
            "a detector that chooses its factor has no INT8 form",
            where="--int8",
            fix="add --factor, as in --factor 0.5",
        )
    return detector


def _check_int8(options: ExportOptions) -> None:
    if options.format == "litert":
        raise UserError(
            "LiteRT's INT8 has ranges of its own, not those that were trained",
            where="--to litert",
            fix="write .onnx or .xml, or export the run that it was made of",
        )
    if not options.int8:
        raise UserError(
            "the run was trained for INT8: in float32 it is not what was measured",
            where="model.quantised",
            fix="add --int8, or export the run that it was made of",
        )


def with_hard_nms(detector: Detector, iou: float) -> Detector:
    """The detector with class-wise suppression at `iou` in the place of soft-NMS, in place."""
    if not 0 < iou <= 1:
        raise UserError(f"an IoU of {iou}", where="--hard-nms", fix="choose one above 0 and up to 1")
    detector.head.suppression = replace(detector.head.suppression, soft=None, iou=iou)
    return detector


def format_by_ending(out: Path) -> str:
    """The format whose files are called so; raises UserError where none are."""
    found = [name for name, suffix in SUFFIX.items() if suffix == out.suffix.lower()]
    if not found:
        raise UserError(f"'{out.name}' says no format", where="--out", fix=f"end it with {_ENDINGS}")
    return found[0]


def check_options(out: Path, options: ExportOptions) -> None:
    """Raises UserError for what cannot be, before any work."""
    if options.format not in SUFFIX:
        raise UserError(f"no format '{options.format}'", where="--to", fix="onnx, openvino or litert")
    if format_by_ending(out) != options.format:
        raise UserError(
            f"'{out.name}' is a name for {format_by_ending(out)}, and --to says {options.format}",
            where="--out",
            fix=f"end it with {SUFFIX[options.format]}, or leave --to out",
        )
    if options.bits not in (None, *BITS):
        raise UserError(f"pixels of {options.bits} bits", where="--bits", fix="8 or 16")
    if options.tile is not None and options.format != "litert":
        raise UserError(f"{options.format} takes every size", where="--tile", fix="leave it out: it is for --to litert")
    if options.check_limit < 1 or options.calibration_tiles < 1:
        raise UserError("no images to check or calibrate on", where="--limit", fix="give at least 1")
    make_folder(out.parent)


def image_sets(run: Path, options: ExportOptions, classes: tuple[str, ...]) -> tuple[ImageSet, ImageSet]:
    """Images to check on and to calibrate on."""
    train = None
    if options.check is not None:
        check = named_set(options.check, classes)
    else:
        train, check = run_sets(run)
    if options.calibrate is not None:
        train = named_set(options.calibrate, classes)
    return check.spread(options.check_limit), train or check


def detector_rule(detector: Detector) -> Rule:
    """What can be a tie of this detector's boxes."""
    rule = detector.head.suppression
    return Rule(rule.score, rule.iou, rule.max_detections, rule.method)


def accuracy(images: ImageSet, **found: list[Any]) -> dict[str, dict[str, float]]:
    """AP50 by size of what was `found`, by name; nothing where the images have no annotations."""
    if images.annotations is None:
        return {}
    return {name: ap_by_size(images.annotations, one) for name, one in found.items()}


def require_parity(difference: Difference, plain: Difference, ap: Mapping[str, Mapping[str, float]], out: Path) -> None:
    """Raises UserError where the exported model does not find the same."""
    if difference.boxes == 0:
        raise UserError(
            "the detector finds nothing in the images: nothing could be compared",
            where="--on",
            fix="give images with objects, or train it first",
        )
    faults = []
    limits = f"{BOX_PX} px, {SCORE:g} in score, ties in {TIE_SHARE:.1%} of the boxes"
    if difference.undecided or (difference.same and plain.undecided):
        told = difference if difference.undecided else plain
        raise UserError(
            f"not exported: the detector's scores are so alike that rounding decides which boxes it gives ({told.text})",
            where=out,
            fix="train it further: what it gives can be compared once its scores differ",
        )
    if not difference.same:
        faults.append(f"boxes differ beyond the limits ({limits}): {difference.text}")
    elif not plain.same:
        faults.append(f"as it is, on images of other sizes, boxes differ beyond the limits ({limits}): {plain.text}")
    if ap and abs(ap["exported"]["tiny"] - ap["eager"]["tiny"]) > AP:
        faults.append(f"AP50 of tiny objects is {ap['exported']['tiny']:.4f}, was {ap['eager']['tiny']:.4f}")
    if faults:
        raise UserError(
            "not exported: " + "; ".join(faults), where=out, fix="use the run folder; please report this model"
        )


def require_trained_int8(ap: Mapping[str, Mapping[str, float]], out: Path) -> None:
    """Raises UserError where an INT8 file is worse than the detector that was trained for INT8, which rounds as it does."""
    if ap and ap["trained"]["tiny"] - ap["int8"]["tiny"] > INT8_AP:
        raise UserError(
            f"not exported: AP50 of tiny objects is {ap['int8']['tiny']:.4f} in integers,"
            f" was {ap['trained']['tiny']:.4f} as trained",
            where=out,
            fix="train it for longer, so that its ranges settle, or report this model",
        )
