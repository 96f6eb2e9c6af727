"""`export_model`: a trained detector to a file that finds the same boxes without torch, or no file."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.bands import rule_of
from flyspeck.errors import UserError, counted
from flyspeck.export.check_images import ImageSet, detect, tiles_of
from flyspeck.export.frame import Frame, framed
from flyspeck.export.graph import DetectorGraph
from flyspeck.export.onnx import describe, trace, trace_factors, write_onnx
from flyspeck.export.openvino import write_openvino
from flyspeck.export.parity import ap_table, compare
from flyspeck.export.plain_run import BATCHES, PlainRun, compare_plainly, images_of, odd_sizes, run_plainly
from flyspeck.export.proof import (
    Exported,
    ExportOptions,
    accuracy,
    check_options,
    detector_rule,
    image_sets,
    prepared,
    require_parity,
    require_trained_int8,
)
from flyspeck.export.undecided import asked_again
from flyspeck.infer.engines import open_exported
from flyspeck.infer.factor_model import factor_file
from flyspeck.infer.shown import shown_enlargement
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.router import FactorRouter
from flyspeck.models.fake_quantised import input_ranges, is_fake_quantised, set_rounding
from flyspeck.train.build import load_for_use
from flyspeck.types import Detections

Say = Callable[[str], None]


def export_model(run: Path, out: Path, options: ExportOptions, *, say: Say = print) -> Exported:
    """Writes `out` if it finds the detector's boxes on real images; else raises UserError and leaves nothing.

    INT8 finds other boxes by its nature: it is written after the fp32 graph has passed, with what it costs by size bin. What was
    trained for INT8 passes as floats first, then keeps the ranges that training found, and must find as much as it does.
    """
    check_options(out, options)
    detector, description = load_for_use(run, options.suppression)
    detector, trained = _as_floats(prepared(detector, options))
    checked, calibrated = image_sets(run, options, detector.classes)
    rule = detector_rule(detector)
    bits = options.bits or rule_of(description).bits
    told = describe(detector, description, bits=bits)
    say(f"tracing {told['model'] or 'the detector'}")
    graph, by_factor = traced(detector, bits=bits)
    frame = Frame.of(detector, shown_enlargement(description))
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.part{out.suffix}")
    try:
        write_all(graph, by_factor, temporary, told, frame)
        say(f"checking on {counted(len(checked.paths), 'image')} of {checked.name}")
        model, exported = TorchModel(detector, device="cpu"), open_exported(temporary, device="cpu")
        some = images_of(checked, description, odd_sizes(description))
        plain = compare_plainly(
            model, PlainRun(temporary, told), some, rule, enlarge=frame.enlarge, network=model.detector
        )

        def look() -> tuple[list[Detections], list[Detections]]:
            return detect(model, checked, description, score=rule.score)

        eager, reference = look()
        found, windows = detect(exported, checked, description, score=rule.score)
        difference = compare(reference, windows, rule, again=lambda: asked_again(model.detector, lambda: look()[1]))
        ap = accuracy(checked, eager=eager, exported=found)
        say(difference.text)
        require_parity(difference, plain, ap, out)
        sizes = [list(own[0].shape[:2]) for own in some]
        parity = {"images": len(checked.paths), "batches": list(BATCHES), "sizes": sizes}
        parity |= {**difference.to_dict(), "ap50": ap}
        told = {**told, "parity": parity}
        if options.int8:
            graph, told, ap = _quantised(
                graph, temporary, told, options, (checked, calibrated), (eager, trained), frame, say
            )
            if trained is not None:
                require_trained_int8(ap, out)
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


def _as_floats(detector: Detector) -> tuple[Detector, Detector | None]:
    """The detector as it computes without rounding, and itself where it was trained for INT8."""
    if not is_fake_quantised(detector):
        return detector, None
    plain = copy.deepcopy(detector)
    set_rounding(plain, False)
    return plain, detector


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


def _quantised(
    graph: Any,
    temporary: Path,
    told: Mapping[str, Any],
    options: ExportOptions,
    sets: tuple[ImageSet, ImageSet],
    before: tuple[list[Any], Detector | None],
    frame: Frame,
    say: Say,
) -> tuple[Any, dict[str, Any], dict[str, dict[str, float]]]:
    """The INT8 graph, its description, and AP50 by size before and after.

    `before` is what the detector finds as floats and, where it was trained for INT8, itself: its ranges hold, and what it finds
    as it was trained stands in the table too.
    """
    from flyspeck.export.quantize import quantise

    checked, calibrated = sets
    model = open_exported(temporary, device="cpu")
    tiles = tiles_of(calibrated, told, limit=options.calibration_tiles)
    say(f"calibrating INT8 on {counted(len(tiles), 'tile')} of {calibrated.name}")
    eager, trained = before
    score, columns, learnt = told["suppression"]["score"], {"eager": eager}, {}
    if trained is not None:
        learnt = {f"{name}.weight": bounds for name, bounds in input_ranges(DetectorGraph(trained)).items()}
        columns["trained"], _ = detect(TorchModel(trained, device="cpu"), checked, told, score=score)
        say(f"of {counted(len(learnt), 'layer')} the ranges hold that they were trained with")
    graph = quantise(graph, [model.to_batch([tile]) for tile in tiles], ranges=learnt)
    told = {**told, "precision": "int8", "calibration_tiles": len(tiles)}
    _write(graph, temporary, told, frame)
    found, _ = detect(open_exported(temporary, device="cpu"), checked, told, score=score)
    ap = accuracy(checked, **columns, int8=found)
    counts = np.array([sum(map(len, eager)), sum(map(len, found))])
    say(f"INT8 finds {counted(int(counts[1]), 'box')} where fp32 finds {counts[0]}")
    if ap:
        told["int8_ap50"] = ap
        say(ap_table(ap))
    else:
        say("its loss cannot be stated: the images have no annotations")
    return graph, dict(told), ap
