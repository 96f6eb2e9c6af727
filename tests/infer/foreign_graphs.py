"""Graphs as other programs export them, with known answers: constant boxes, whose scores follow the image's pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH = 96, 128
BOXES = np.array([[10.25, 20.5, 14.25, 23.5], [70, 40, 78, 44.125], [100.5, 80, 103.5, 83]], np.float32)
SCORES = np.array([0.9, 0.6, 0.3], np.float32)
LABELS = np.array([0, 2, 1])
NUM_CLASSES = 3


@dataclass(frozen=True)
class Fixture:
    """One program's way of giving `BOXES`, `SCORES` and `LABELS`."""

    outputs: Mapping[str, np.ndarray]
    """Of one image."""
    input_name: str = "images"
    channels_last: bool = False
    input_type: int = TensorProto.FLOAT
    batch: int | str = 1
    size: tuple[int, int] | None = (HEIGHT, WIDTH)
    axes: int = 4
    metadata: Mapping[str, str] = field(default_factory=dict)
    has_exp: bool = False
    asks_size: bool = False
    scored: str = ""
    """The output that is scaled by the mean of the image's first channel over `white`; empty: the pixels do not matter."""
    white: float = 1.0


def centres(boxes: np.ndarray = BOXES) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def shares(boxes: np.ndarray) -> np.ndarray:
    return boxes / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)


def rows(first: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """The boxes spread over `count` rows, all others empty: (1, count, columns)."""
    full = np.zeros((1, count, first.shape[1] + classes.shape[1]), np.float32)
    full[0, [5, count // 2, count - 1]] = np.concatenate([first, classes], axis=1)
    return full


def one_hot(scores: np.ndarray = SCORES) -> np.ndarray:
    classes = np.zeros((len(LABELS), NUM_CLASSES), np.float32)
    classes[np.arange(len(LABELS)), LABELS] = scores
    return classes


def logits(rest: float = -9.0) -> np.ndarray:
    classes = np.full((1, 20, NUM_CLASSES), rest, np.float32)
    classes[0, [2, 9, 19], LABELS] = np.log(SCORES / (1 - SCORES))
    return classes


def softmax_logits() -> np.ndarray:
    """The last class is "no object"."""
    classes = np.full((1, 20, NUM_CLASSES + 1), -30.0, np.float32)
    classes[..., -1] = 0
    classes[0, [2, 9, 19], LABELS] = np.log(SCORES / (1 - SCORES))
    return classes


def queries() -> np.ndarray:
    boxes = np.full((1, 20, 4), 0.5, np.float32)
    boxes[0, [2, 9, 19]] = shares(centres())
    return boxes


CELLS = sum((HEIGHT // s) * (WIDTH // s) for s in (8, 16, 32))
OBJECT = np.full((3, 1), 0.5, np.float32)
_DETECTED = {"boxes": BOXES[None], "scores": SCORES[None], "labels": LABELS[None]}


def yolox_raw() -> np.ndarray:
    """Offsets in cells of stride 8 that give `BOXES`."""
    full = np.zeros((1, CELLS, 5 + NUM_CLASSES), np.float32)
    for centre, classes in zip(centres(), one_hot(SCORES * 2), strict=True):
        x, y = int(centre[0] // 8), int(centre[1] // 8)
        row = y * (WIDTH // 8) + x
        full[0, row, :4] = [centre[0] / 8 - x, centre[1] / 8 - y, *np.log(centre[2:] / 8)]
        full[0, row, 4:] = [0.5, *classes]
    return full


def ssd_scores() -> np.ndarray:
    scores = np.zeros((1, 20, 1 + NUM_CLASSES), np.float32)
    scores[0, :, 0] = 1
    scores[0, [2, 9, 19], LABELS + 1] = SCORES
    return scores


def ssd_boxes() -> np.ndarray:
    boxes = np.zeros((1, 20, 4), np.float32)
    boxes[0, [2, 9, 19]] = shares(BOXES)
    return boxes


NAMES = {"names": "{0: 'person', 1: 'it''s', 2: 'car'}".replace("''", "\\'")}

FIXTURES: dict[str, Fixture] = {
    "yolov5": Fixture(
        {"output0": rows(np.hstack([centres(), OBJECT]), one_hot(SCORES * 2), 3 * CELLS)}, metadata=NAMES
    ),
    "yolov8": Fixture(
        {"output0": rows(centres(), one_hot(), CELLS).transpose(0, 2, 1)},
        metadata={**NAMES, "task": "detect", "stride": "32", "imgsz": "[96, 128]"},
        scored="class",
    ),
    "yolov8_rows": Fixture({"output": rows(centres(), one_hot(), CELLS)}, metadata=NAMES),
    "yolov10": Fixture(
        {"output0": np.concatenate([BOXES, SCORES[:, None], LABELS[:, None].astype(np.float32)], axis=1)[None]},
        metadata=NAMES,
    ),
    "yolov7_end2end": Fixture(
        {"output": np.concatenate([np.zeros((3, 1)), BOXES, LABELS[:, None], SCORES[:, None]], axis=1, dtype=np.float32)}
    ),
    "yolox": Fixture(
        {"output": rows(np.hstack([centres(), OBJECT]), one_hot(SCORES * 2), CELLS)}, metadata=NAMES, has_exp=True
    ),
    "yolox_raw": Fixture({"output": yolox_raw()}, metadata=NAMES),
    "rtdetr_rows": Fixture(
        {"output0": rows(shares(centres()), one_hot(), 300)}, metadata=NAMES
    ),
    "detr": Fixture({"logits": logits(), "pred_boxes": queries()}, input_name="pixel_values"),
    "detr_softmax": Fixture({"logits": softmax_logits(), "pred_boxes": queries()}, input_name="pixel_values"),
    "rf_detr": Fixture({"dets": queries(), "labels": logits()}, input_name="input"),
    "detr_deploy": Fixture(_DETECTED, asks_size=True),
    "torchvision": Fixture(
        {"boxes": BOXES, "labels": LABELS + 1, "scores": SCORES}, input_name="input", axes=3
    ),
    "ssd": Fixture({"scores": ssd_scores(), "boxes": ssd_boxes()}, input_name="input"),
    "tf_detection": Fixture(
        {
            "num_detections": np.array([3], np.float32),
            "detection_boxes": shares(BOXES)[None][..., [1, 0, 3, 2]],
            "detection_scores": SCORES[None],
            "detection_classes": (LABELS[None] + 1).astype(np.float32),
        },
        input_name="image_tensor",
        channels_last=True,
        input_type=TensorProto.UINT8,
    ),
}  # fmt: skip
"""By the name of the layout that each is to be taken for."""


def write_graph(path: Path, fixture: Fixture) -> Path:
    """The fixture as an ONNX file. Its boxes are multiplied by 1 + 0 x (the mean of the image), so that the image is used."""
    height, width = fixture.size or ("height", "width")
    sides = [height, width, 3] if fixture.channels_last else [3, height, width]
    shape = sides if fixture.axes == 3 else [fixture.batch, *sides]
    inputs = [helper.make_tensor_value_info(fixture.input_name, fixture.input_type, shape)]
    first = 0 if fixture.axes == 3 else 1
    nodes = [
        helper.make_node("Cast", [fixture.input_name], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    constants = {"zero": np.float32(0), "axis": np.array([first]), "start": np.array([0]), "stop": np.array([1])}
    if fixture.has_exp:
        nodes += [helper.make_node("Exp", ["nothing"], ["one"]), helper.make_node("Sub", ["one", "unit"], ["nought"])]
        constants["unit"] = np.float32(1)
    if fixture.asks_size:
        inputs.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [fixture.batch, 2]))
        nodes += [
            helper.make_node("Cast", ["orig_target_sizes"], ["sizes"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["sizes"], ["size"], keepdims=0),
            helper.make_node("Mul", ["size", "zero"], ["no_size"]),
            helper.make_node("Add", ["nothing", "no_size"], ["nought"]),
        ]
    added = "nought" if fixture.has_exp or fixture.asks_size else "nothing"
    outputs = []
    for name, answer in fixture.outputs.items():
        kind = TensorProto.INT64 if answer.dtype.kind == "i" else TensorProto.FLOAT
        constants[f"{name}_answer"] = answer.astype(np.float32)
        last = f"{name}_sum"
        nodes.append(helper.make_node("Add", [f"{name}_answer", added], [last]))
        if fixture.scored == "class":  # columns of classes follow the first channel's mean
            nodes += [
                helper.make_node("Slice", ["pixels", "start", "stop", "axis"], ["channel"]),
                helper.make_node("ReduceMean", ["channel"], ["level"], keepdims=0),
                helper.make_node("Mul", ["level", "classes_only"], ["share"]),
                helper.make_node("Add", ["share", "others"], ["factor"]),
                helper.make_node("Mul", [last, "factor"], [f"{last}_scored"]),
            ]
            mask = np.zeros((1, answer.shape[1], 1), np.float32)
            mask[:, 4:] = 1 / fixture.white
            constants |= {"classes_only": mask, "others": (mask == 0).astype(np.float32)}
            last = f"{last}_scored"
        nodes.append(helper.make_node("Cast", [last], [name], to=kind))
        outputs.append(helper.make_tensor_value_info(name, kind, answer.shape))
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "detector", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, dict(fixture.metadata))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
