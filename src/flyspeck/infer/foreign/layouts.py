"""How the outputs of other programs' detectors become boxes: one function each, NumPy, all images of a batch at once.

A layout's numbers are facts of the programs' public documentation and of the graphs that they export:

=================  =====================================================================================================
name               outputs; boxes in pixels of the input unless said otherwise
=================  =====================================================================================================
yolov5             (B, N, 5 + K): centre, size, objectness, classes; also v6, v7 and others without suppression
yolov8             (B, 4 + K, N): centre, size, classes; v8, v9, v11, v12 and others
yolov8_rows        (B, N, 4 + K): the same, transposed
yolov10            (B, D, 6): corners, score, class; v10, v26 and whatever suppresses in the graph
yolov7_end2end     (D, 7): image, corners, class, score
yolox              (B, N, 5 + K) as yolov5, one row a cell, BGR of 0 to 255; `yolox_raw`: cells not decoded yet
rtdetr_rows        (B, Q, 4 + K): centre and size as shares of the input, class scores
detr               logits (B, Q, K), pred_boxes (B, Q, 4) as shares: RT-DETR and D-FINE as transformers exports them
detr_softmax       the same with "no object" as the last class: DETR and others of before
rf_detr            dets (B, Q, 4) as shares, labels (B, Q, K) logits; pixels normalised as for ImageNet
detr_deploy        labels, boxes, scores (B, Q ...) with an input orig_target_sizes: RT-DETR, D-FINE, DEIM
torchvision        boxes (D, 4), labels (D), scores (D), labels from 1
ssd                scores (B, N, 1 + K) with background first, boxes (B, N, 4) corners as shares; pixels (x - 127) / 128
tf_detection       detection_boxes (B, D, 4) y x y x as shares, detection_scores, detection_classes from 1; (B, H, W, C)
=================  =====================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Outputs = Mapping[str, np.ndarray]
One = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of one image: boxes (N, 4) xyxy pixels of the input, scores (N,), labels (N,) from 0."""
Found = list[One]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How the image's 8-bit values enter."""

    order: Literal["rgb", "bgr"] = "rgb"
    scale: float = 255.0
    """Values are divided by this ..."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """... and then normalised."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way of giving boxes."""

    name: str
    decode: Callable[[Outputs, tuple[int, int]], Found]
    """Outputs, and (H, W) of the input, to boxes."""
    pixels: Pixels = Pixels()
    suppressed: bool = False
    """The graph has suppressed doubles, or needs no suppression."""
    background: int = 0
    """Labels before the first class, in the graph's numbers; `decode` has taken them off."""


def corners(centres: np.ndarray) -> np.ndarray:
    """`(..., 4)` of centre and size as xyxy."""
    half = centres[..., 2:4] / 2
    return np.concatenate([centres[..., :2] - half, centres[..., :2] + half], axis=-1)


def _best(boxes: np.ndarray, classes: np.ndarray) -> Found:
    """The best class of each row: boxes (B, N, 4), classes (B, N, K)."""
    labels = classes.argmax(axis=-1)
    scores = np.take_along_axis(classes, labels[..., None], axis=-1)[..., 0]
    return list(zip(boxes, scores, labels, strict=True))


def _best_pairs(boxes: np.ndarray, classes: np.ndarray) -> Found:
    """Of each image as many pairs of a query and a class as there are queries, best first: how DETRs are decoded."""
    found = []
    for mine, scores in zip(boxes, classes, strict=True):
        best = np.argsort(-scores, axis=None, kind="stable")[: len(mine)]
        queries, labels = np.unravel_index(best, scores.shape)
        found.append((mine[queries], scores.ravel()[best], labels))
    return found


def _only(outputs: Outputs) -> np.ndarray:
    """The one output with the boxes: the first of three axes, else the first (others are maps of single levels)."""
    return next((array for array in outputs.values() if array.ndim == 3), next(iter(outputs.values())))


def _shares(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shares of the input's sides as pixels."""
    height, width = size
    return boxes * np.array([width, height, width, height], boxes.dtype)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-logits.astype(np.float64).clip(-80, 80)))).astype(np.float32)


def _yolov5(outputs: Outputs, _: tuple[int, int]) -> Found:
    rows = _only(outputs)
    return _best(corners(rows[..., :4]), rows[..., 4:5] * rows[..., 5:])


def _yolov8(outputs: Outputs, _: tuple[int, int]) -> Found:
    rows = _only(outputs).transpose(0, 2, 1)
    return _best(corners(rows[..., :4]), rows[..., 4:])


def _yolov8_rows(outputs: Outputs, _: tuple[int, int]) -> Found:
    rows = _only(outputs)
    return _best(corners(rows[..., :4]), rows[..., 4:])


def _yolov10(outputs: Outputs, _: tuple[int, int]) -> Found:
    return [(rows[:, :4], rows[:, 4], np.rint(rows[:, 5]).astype(np.int64)) for rows in _only(outputs)]


def _yolov7_end2end(outputs: Outputs, _: tuple[int, int]) -> Found:
    rows = next(iter(outputs.values()))
    images = np.rint(rows[:, 0]).astype(np.int64)
    found = []
    for image in range(int(images.max(initial=0)) + 1):
        mine = rows[images == image]
        found.append((mine[:, 1:5], mine[:, 6], np.rint(mine[:, 5]).astype(np.int64)))
    return found


def cells(size: tuple[int, int], strides: tuple[int, ...]) -> np.ndarray:
    """(x, y, stride) of every cell `(N, 3)`, finest level first, row by row."""
    height, width = size
    levels = []
    for stride in strides:
        y, x = np.mgrid[: height // stride, : width // stride]
        levels.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, stride)], axis=1))
    return np.concatenate(levels).astype(np.float32)


STRIDES = ((8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (4, 8, 16), (8, 16), (16, 32))
"""Levels that detectors have, the usual ones first."""


def strides_for(rows: int, size: tuple[int, int], per_cell: int = 1) -> tuple[int, ...] | None:
    """The strides whose cells make so many rows; None where none do."""
    for strides in STRIDES:
        if per_cell * sum((size[0] // s) * (size[1] // s) for s in strides) == rows:
            return strides
    return None


def _yolox_raw(outputs: Outputs, size: tuple[int, int]) -> Found:
    rows = _only(outputs)
    grid = cells(size, strides_for(rows.shape[1], size) or STRIDES[0])
    stride = grid[:, 2:]
    centre, sides = (rows[..., :2] + grid[:, :2]) * stride, np.exp(rows[..., 2:4]) * stride
    return _best(corners(np.concatenate([centre, sides], axis=-1)), rows[..., 4:5] * rows[..., 5:])


def _rtdetr_rows(outputs: Outputs, size: tuple[int, int]) -> Found:
    rows = _only(outputs)
    return _best(_shares(corners(rows[..., :4]), size), rows[..., 4:])


def _detr(outputs: Outputs, size: tuple[int, int]) -> Found:
    return _best_pairs(_shares(corners(outputs["pred_boxes"]), size), _sigmoid(outputs["logits"]))


def _detr_softmax(outputs: Outputs, size: tuple[int, int]) -> Found:
    logits = outputs["logits"].astype(np.float64)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    classes = (shares / shares.sum(axis=-1, keepdims=True))[..., :-1].astype(np.float32)
    return _best(_shares(corners(outputs["pred_boxes"]), size), classes)


def _rf_detr(outputs: Outputs, size: tuple[int, int]) -> Found:
    return _best_pairs(_shares(corners(outputs["dets"]), size), _sigmoid(outputs["labels"]))


def _detr_deploy(outputs: Outputs, _: tuple[int, int]) -> Found:
    labels = np.rint(outputs["labels"]).astype(np.int64)
    return list(zip(outputs["boxes"], outputs["scores"], labels, strict=True))


def _torchvision(outputs: Outputs, _: tuple[int, int]) -> Found:
    return [(outputs["boxes"], outputs["scores"], np.rint(outputs["labels"]).astype(np.int64) - 1)]


def _ssd(outputs: Outputs, size: tuple[int, int]) -> Found:
    return _best(_shares(outputs["boxes"], size), outputs["scores"][..., 1:])


def _tf_detection(outputs: Outputs, size: tuple[int, int]) -> Found:
    boxes = _shares(outputs["detection_boxes"][..., [1, 0, 3, 2]], size)
    labels = np.rint(outputs["detection_classes"]).astype(np.int64) - 1
    return list(zip(boxes, outputs["detection_scores"], labels, strict=True))


_IMAGENET = Pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(name="yolov5", decode=_yolov5),
        Layout(name="yolov8", decode=_yolov8),
        Layout(name="yolov8_rows", decode=_yolov8_rows),
        Layout(name="yolov10", decode=_yolov10, suppressed=True),
        Layout(name="yolov7_end2end", decode=_yolov7_end2end, suppressed=True),
        Layout(name="yolox", decode=_yolov5, pixels=Pixels(order="bgr", scale=1.0)),
        Layout(name="yolox_raw", decode=_yolox_raw, pixels=Pixels(order="bgr", scale=1.0)),
        Layout(name="rtdetr_rows", decode=_rtdetr_rows, suppressed=True),
        Layout(name="detr", decode=_detr, suppressed=True),
        Layout(name="detr_softmax", decode=_detr_softmax, suppressed=True, pixels=_IMAGENET),
        Layout(name="rf_detr", decode=_rf_detr, suppressed=True, pixels=_IMAGENET),
        Layout(name="detr_deploy", decode=_detr_deploy, suppressed=True),
        Layout(name="torchvision", decode=_torchvision, suppressed=True, background=1),
        Layout(
            name="ssd", decode=_ssd, pixels=Pixels(scale=128.0, mean=(127 / 128, 127 / 128, 127 / 128)), background=1
        ),
        Layout(name="tf_detection", decode=_tf_detection, suppressed=True, pixels=Pixels(scale=1.0), background=1),
    )
}
