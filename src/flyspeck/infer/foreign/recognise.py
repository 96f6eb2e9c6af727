"""Which layout a graph has: from the names and shapes of its outputs, its metadata and operators; never from a guess.

Where two readings fit, both are named and the user says which (`--layout`).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from flyspeck.errors import UserError, nearest
from flyspeck.infer.foreign.graph_ports import Port, Ports
from flyspeck.infer.foreign.layouts import LAYOUTS, Layout, strides_for

_MOST_DETECTIONS = 1500
"""A graph that suppresses gives no more boxes an image; raw rows are more."""


def layout_of(
    ports: Ports, path: Path, *, asked: str | None = None, num_classes: int | None = None
) -> tuple[Layout, int | None]:
    """The layout of a graph, the one asked for or the only one that fits, and its number of classes (None: it does not say).

    `num_classes` is how many classes the user, or the metadata, names. Raises UserError where none fits or several do.
    """
    if asked is not None and asked not in LAYOUTS:
        raise UserError(f"unknown layout '{asked}'", where="layout", fix=nearest(asked, LAYOUTS))
    if asked is not None:
        return LAYOUTS[asked], _count(asked, ports, path)
    _refuse_other_tasks(ports, path)
    fits = dict(_readings(ports))
    if num_classes is not None:
        fits = {name: count for name, count in fits.items() if count in (None, num_classes)} or fits
    if len(fits) == 1:
        ((name, count),) = fits.items()
        return LAYOUTS[name], count
    told = "; ".join(map(str, ports.outputs[:4]))
    if not fits:
        raise UserError(
            f"its outputs are in no layout that is known: {told}",
            where=path,
            fix=f"--layout one of {', '.join(LAYOUTS)}",
        )
    readings = " or ".join(name if count is None else f"{name} with {count} classes" for name, count in fits.items())
    raise UserError(
        f"its output {told} can be read as {readings}", where=path, fix=f"say which: --layout {next(iter(fits))}"
    )


def _refuse_other_tasks(ports: Ports, path: Path) -> None:
    task = ports.metadata.get("task", "detect")
    if task != "detect":
        raise UserError(f"a model for the task '{task}'", where=path, fix="only detectors of upright boxes are run")
    if {len(port.shape) for port in ports.outputs} == {3, 4}:  # rows, and the maps that masks are made of
        told = "; ".join(map(str, ports.outputs[:4]))
        fix = "only detectors of upright boxes are run; --layout, if it is one"
        raise UserError(f"a model for outlines, by its outputs {told}", where=path, fix=fix)


_NAMED = {
    "detr": ("logits", "pred_boxes"),
    "detr_softmax": ("logits", "pred_boxes"),
    "rf_detr": ("dets", "labels"),
    "detr_deploy": ("labels", "boxes", "scores"),
    "torchvision": ("boxes", "labels", "scores"),
    "ssd": ("scores", "boxes"),
    "tf_detection": ("detection_boxes", "detection_scores", "detection_classes"),
}
"""Outputs that a layout tells by their names."""
_BESIDE = {"yolov5": 5, "yolox": 5, "yolox_raw": 5, "yolov8_rows": 4, "rtdetr_rows": 4}
"""Columns of a row beside the classes."""


def _count(layout: str, ports: Ports, path: Path) -> int | None:
    """Number of classes, as a layout that was asked for has it; None where it does not say.

    Raises UserError where the graph cannot have this layout.
    """
    told = "; ".join(map(str, ports.outputs[:4]))
    missing = [name for name in _NAMED.get(layout, ()) if name not in ports.names]
    if missing:
        wanted = ", ".join(_NAMED[layout])
        raise UserError(
            f"the layout {layout} has outputs called {wanted}, and this {told}", where=path, fix="rename them"
        )
    if layout in ("detr", "detr_softmax", "rf_detr"):
        classes = ports.output("labels" if layout == "rf_detr" else "logits").shape[-1]
        return classes if classes is None or layout != "detr_softmax" else classes - 1
    if layout == "ssd":
        classes = ports.output("scores").shape[-1]
        return None if classes is None else classes - 1
    main = next((port for port in ports.outputs if len(port.shape) == 3), None)
    if layout in _BESIDE or layout == "yolov8":
        if main is None:
            raise UserError(f"its outputs {told} are no rows, as the layout {layout} has", where=path)
        columns = main.shape[1] if layout == "yolov8" else main.shape[2]
        return None if columns is None else columns - _BESIDE.get(layout, 4)
    return None


def _readings(ports: Ports) -> Iterator[tuple[str, int | None]]:
    """Layouts that fit, each with its number of classes (None: the graph does not say)."""
    names, inputs = ports.names, {port.name for port in ports.inputs}
    if {"logits", "pred_boxes"} <= names:
        classes = ports.output("logits").shape[-1]
        yield "detr", classes
        yield "detr_softmax", None if classes is None else classes - 1
    elif {"dets", "labels"} <= names and len(ports.output("labels").shape) == 3:
        yield "rf_detr", ports.output("labels").shape[-1]
    elif {"detection_boxes", "detection_scores", "detection_classes"} <= names:
        yield "tf_detection", None
    elif {"boxes", "scores", "labels"} <= names:
        yield ("detr_deploy" if "orig_target_sizes" in inputs else "torchvision"), None
    elif {"boxes", "scores"} <= names and len(ports.output("scores").shape) == 3:
        classes = ports.output("scores").shape[-1]
        yield "ssd", None if classes is None else classes - 1
    else:
        yield from _rows(ports)


def _rows(ports: Ports) -> Iterator[tuple[str, int | None]]:
    """Layouts of one output with a row a box."""
    main = next((port for port in ports.outputs if len(port.shape) == 3), None)
    if main is None:
        if len(ports.outputs) == 1 and len(ports.outputs[0].shape) == 2 and ports.outputs[0].shape[1] == 7:
            yield "yolov7_end2end", None
        return
    _, second, third = main.shape
    if second is None and third is None:
        return
    across = _across(ports, main)
    if across is not None:
        yield "yolov8", across
    size = _fixed(ports.size)
    if third == 6 and (second is None or second <= _MOST_DETECTIONS) and not _is_cells(second, size):
        yield "yolov10", None
        return
    if third is None or (second is not None and second < third):
        return  # channels first
    if third < 5:
        return
    if size is None or second is None:
        yield "yolov5", third - 5
        yield "yolov8_rows", third - 4
        yield "yolox", third - 5
    elif strides_for(second, size, per_cell=3) is not None:
        yield "yolov5", third - 5
    elif _is_cells(second, size):
        yield ("yolox" if "Exp" in ports.operators else "yolox_raw"), third - 5
        yield "yolov8_rows", third - 4
    elif second <= _MOST_DETECTIONS:
        yield "rtdetr_rows", third - 4


def _across(ports: Ports, main: Port) -> int | None:
    """Number of classes where the output is (B, 4 + K, N)."""
    _, second, third = main.shape
    size = _fixed(ports.size)
    if second is None or second < 5:
        return None
    if third is None:
        return second - 4
    fits = _is_cells(third, size) if size is not None else third > second
    return second - 4 if fits else None


def _is_cells(rows: int | None, size: tuple[int, int] | None) -> bool:
    return rows is not None and size is not None and strides_for(rows, size) is not None


def _fixed(size: tuple[int | None, int | None]) -> tuple[int, int] | None:
    height, width = size
    return None if height is None or width is None else (height, width)


def stored_names(ports: Ports, path: Path) -> tuple[str, ...] | None:
    """Class names in the metadata: a mapping of numbers to names, or a list, as Python or JSON writes it; None where absent."""
    text = ports.metadata.get("names") or ports.metadata.get("class_names")
    if text is None:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            content = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(content, dict):
            numbers = {int(key): str(name) for key, name in content.items() if str(key).isdigit()}
            if numbers and len(numbers) == len(content) and max(numbers) < 100_000:
                return tuple(numbers.get(k, f"class {k}") for k in range(max(numbers) + 1))
        elif isinstance(content, Sequence) and not isinstance(content, str) and content:
            return tuple(str(name) for name in content)
    raise UserError("its metadata 'names' cannot be read", where=path, fix="name the classes: --classes a,b,c")


def stored_size(ports: Ports) -> tuple[int, int] | None:
    """(H, W) that the model is made for: its fixed input, or what the metadata says (`imgsz`)."""
    fixed = _fixed(ports.size)
    if fixed is not None:
        return fixed
    try:
        told = ast.literal_eval(ports.metadata.get("imgsz", "None"))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if isinstance(told, int):
        return told, told
    if isinstance(told, list | tuple) and len(told) == 2 and all(isinstance(side, int) and side > 0 for side in told):
        return told[0], told[1]
    return None
