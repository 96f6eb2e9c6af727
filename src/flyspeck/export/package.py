"""`export_model`: a trained detector to a file that finds the same boxes without torch, or no file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.bands import rule_of
from flyspeck.data.enlarge import described_enlargement
from flyspeck.errors import UserError
from flyspeck.export.check_images import ImageSet, detect, named_set, run_sets, tiles_of
from flyspeck.export.frame import Frame, framed
from flyspeck.export.onnx import PIXELS, describe, trace, trace_factors, write_onnx
from flyspeck.export.openvino import write_openvino
from flyspeck.export.parity import AP, BOX_PX, SCORE, TIE_SHARE, Difference, Rule, ap_by_size, ap_table, compare
from flyspeck.export.plain_run import BATCHES, PlainRun, compare_plainly, images_of, odd_sizes, run_plainly
from flyspeck.infer.engines import open_exported
from flyspeck.infer.factor_model import factor_file
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.norms import at_factor
from flyspeck.models.dynamic.pooling import find_switch, is_dynamic
from flyspeck.models.dynamic.router import FactorRouter
from flyspeck.models.postprocess import Method
from flyspeck.train.build import load_for_use

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
Say = Callable[[str], None]


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


def export_model(run: Path, out: Path, options: ExportOptions, *, say: Say = print) -> Exported:
    """Writes `out` if it finds the detector's boxes on real images; else raises UserError and leaves nothing.

    INT8 finds other boxes by its nature: it is written after the fp32 graph has passed, with what it costs by size bin.
    """
    _check_options(out, options)
    detector, description = load_for_use(run, options.suppression)
    detector = _prepared(detector, options)
    checked, calibrated = _sets(run, options, detector.classes)
    rule = _rule(detector)
    bits = options.bits or rule_of(description).bits
    told = describe(detector, description, bits=bits)
    say(f"tracing {told['model'] or 'the detector'}")
    graph, by_factor = traced(detector, bits=bits)
    frame = Frame.of(detector, described_enlargement(description))
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.part{out.suffix}")
    try:
        write_all(graph, by_factor, temporary, told, frame)
        say(f"checking on {len(checked.paths)} images of {checked.name}")
        model, exported = TorchModel(detector, device="cpu"), open_exported(temporary, device="cpu")
        some = images_of(checked, description, odd_sizes(description))
        plain = compare_plainly(model, PlainRun(temporary, told), some, rule, enlarge=frame.enlarge)
        eager, reference = detect(model, checked, description, score=rule.score)
        found, windows = detect(exported, checked, description, score=rule.score)
        difference = compare(reference, windows, rule)
        ap = _accuracy(checked, eager=eager, exported=found)
        say(difference.text)
        _require_parity(difference, plain, ap, out)
        sizes = [list(own[0].shape[:2]) for own in some]
        parity = {"images": len(checked.paths), "batches": list(BATCHES), "sizes": sizes}
        parity |= {**difference.to_dict(), "ap50": ap}
        told = {**told, "parity": parity}
        if options.int8:
            graph, told, ap = _quantised(graph, temporary, told, options, (checked, calibrated), eager, frame, say)
            small = PlainRun(temporary, told)
            for own in some:  # other boxes are its nature, but not to stop
                run_plainly(small, own)
        elif ap:
            say(ap_table(ap))
        _write(graph, temporary, told, frame)
        for factor in by_factor:  # the first graph last: without it the others are not looked at
            _move(factor_file(temporary, factor), factor_file(out, factor))
        _move(temporary, out)
    finally:
        for part in (temporary, *(factor_file(temporary, factor) for factor in by_factor)):
            part.unlink(missing_ok=True)
            part.with_suffix(".bin").unlink(missing_ok=True)
    return Exported(out, difference, ap)


def _prepared(detector: Detector, options: ExportOptions) -> Detector:
    """With the suppression and the factor that were asked for."""
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


def traced(detector: Detector, *, bits: int = 8) -> tuple[Any, dict[float, Any]]:
    """The graph, and where the detector chooses its factor those that go on from it."""
    if isinstance(detector.router, FactorRouter):
        return trace_factors(detector, bits=bits)
    return trace(detector, bits=bits), {}


def write_all(
    graph: Any, by_factor: Mapping[float, Any], path: Path, description: Mapping[str, Any], frame: Frame
) -> None:
    """The first graph at `path`, the others beside it, each in its frame."""
    for factor, part in by_factor.items():
        _write(part, factor_file(path, factor), {**description, "factor": factor}, frame)
    _write(graph, path, description, frame)


def with_hard_nms(detector: Detector, iou: float) -> Detector:
    """The detector with class-wise suppression at `iou` in the place of soft-NMS, in place."""
    if not 0 < iou <= 1:
        raise UserError(f"an IoU of {iou}", where="--hard-nms", fix="choose one above 0 and up to 1")
    detector.head.suppression = replace(detector.head.suppression, soft=None, iou=iou)
    return detector


def _check_options(out: Path, options: ExportOptions) -> None:
    if options.format not in SUFFIX:
        raise UserError(f"no format '{options.format}'", where="--to", fix="onnx or openvino")
    if out.suffix.lower() != SUFFIX[options.format]:
        raise UserError(
            f"'{out.name}' is no name for {options.format}", where="--out", fix=f"end it with {SUFFIX[options.format]}"
        )
    if options.bits not in (None, *PIXELS):
        raise UserError(f"pixels of {options.bits} bits", where="--bits", fix="8 or 16")
    if options.check_limit < 1 or options.calibration_tiles < 1:
        raise UserError("no images to check or calibrate on", where="--limit", fix="give at least 1")
    if not out.parent.is_dir():
        raise UserError("no such folder", where=out.parent, fix="make it first")


def _sets(run: Path, options: ExportOptions, classes: tuple[str, ...]) -> tuple[ImageSet, ImageSet]:
    """Images to check on and to calibrate on."""
    train = None
    if options.check is not None:
        check = named_set(options.check, classes)
    else:
        train, check = run_sets(run)
    if options.calibrate is not None:
        train = named_set(options.calibrate, classes)
    return check.spread(options.check_limit), train or check


def _rule(detector: Detector) -> Rule:
    rule = detector.head.suppression
    return Rule(rule.score, rule.iou, rule.max_detections, rule.method)


def _write(graph: Any, path: Path, description: Mapping[str, Any], frame: Frame) -> None:
    try:
        if path.suffix == ".xml":
            write_openvino(framed(graph, frame, switch=False), path, description)
        else:
            write_onnx(framed(graph, frame), path, description)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"could not be written ({reason})", where=path.parent, fix="free some space") from error


def _move(temporary: Path, out: Path) -> None:
    if out.suffix == ".xml":
        os.replace(temporary.with_suffix(".bin"), out.with_suffix(".bin"))
    os.replace(temporary, out)


def _accuracy(images: ImageSet, **found: list[Any]) -> dict[str, dict[str, float]]:
    if images.annotations is None:
        return {}
    return {name: ap_by_size(images.annotations, one) for name, one in found.items()}


def _require_parity(
    difference: Difference, plain: Difference, ap: Mapping[str, Mapping[str, float]], out: Path
) -> None:
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


def _quantised(
    graph: Any,
    temporary: Path,
    told: Mapping[str, Any],
    options: ExportOptions,
    sets: tuple[ImageSet, ImageSet],
    eager: list[Any],
    frame: Frame,
    say: Say,
) -> tuple[Any, dict[str, Any], dict[str, dict[str, float]]]:
    """The INT8 graph, its description, and AP50 by size before and after."""
    from flyspeck.export.quantize import quantise

    checked, calibrated = sets
    model = open_exported(temporary, device="cpu")
    tiles = tiles_of(calibrated, told, limit=options.calibration_tiles)
    say(f"calibrating INT8 on {len(tiles)} tiles of {calibrated.name}")
    graph = quantise(graph, [model.to_batch([tile]) for tile in tiles])
    told = {**told, "precision": "int8", "calibration_tiles": len(tiles)}
    _write(graph, temporary, told, frame)
    found, _ = detect(open_exported(temporary, device="cpu"), checked, told, score=told["suppression"]["score"])
    ap = _accuracy(checked, eager=eager, int8=found)
    counts = np.array([sum(map(len, eager)), sum(map(len, found))])
    say(f"INT8 finds {counts[1]} boxes where fp32 finds {counts[0]}")
    if ap:
        told["int8_ap50"] = ap
        say(ap_table(ap))
    else:
        say("its loss cannot be stated: the images have no annotations")
    return graph, dict(told), ap
