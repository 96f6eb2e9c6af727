"""Other people's models under our tiles: each layout's boxes equal to its own decoding, and doubt said, never guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from foreign_graphs import BOXES, FIXTURES, HEIGHT, LABELS, NAMES, SCORES, WIDTH, Fixture, centres, one_hot, rows
from foreign_graphs import write_graph as write

from flyspeck.errors import UserError
from flyspeck.infer.foreign.layouts import LAYOUTS
from flyspeck.infer.foreign.opening import open_graph
from flyspeck.infer.load import load_predictor
from flyspeck.infer.openvino_model import the_core
from flyspeck.types import Detections

WHITE = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
CLASSES = ("person", "it's", "car")


def assert_known(found: Detections, *, tolerance: float = 1e-3) -> None:
    """The boxes of the fixtures, best first."""
    assert len(found) == len(BOXES)
    np.testing.assert_allclose(found.boxes, BOXES, atol=tolerance)
    np.testing.assert_allclose(found.scores, SCORES, atol=1e-5)
    assert found.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("name", FIXTURES)
def test_a_layout_is_told_and_decoded(name: str, engine: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", FIXTURES[name])
    if engine == "openvino":
        path = to_openvino(path, FIXTURES[name])
    model = open_graph(path, classes=CLASSES)
    assert model.description["layout"] == name
    (found,) = model([WHITE])
    assert_known(found)
    assert found.classes == CLASSES
    # In tiles of a larger image each answers in its own place; smaller ones are laid into the input.
    (small,) = model([WHITE[:60, :80]])
    assert small.image_size == (60, 80)
    assert small.boxes[:, 2].max(initial=0) <= 80
    assert len(model([WHITE] * 3)) == 3


@pytest.mark.parametrize("name", ["yolov8", "yolov5", "yolox", "yolov8_rows", "detr", "rtdetr_rows", "yolov10"])
def test_a_layout_is_told_though_every_side_is_left_open(name: str, tmp_path: Path) -> None:
    """As exports with dynamic axes are: a graph is run once to see what it gives."""
    import onnx

    path = write(tmp_path / "model.onnx", FIXTURES[name])
    fixed = open_graph(path, classes=CLASSES)
    model = onnx.load(str(path))
    for value in model.graph.output:
        for axis, side in enumerate(value.type.tensor_type.shape.dim):
            side.dim_param = f"{value.name}_{axis}"
    if name == "detr":
        for kept in (model.graph.output, *(node.output for node in model.graph.node)):
            for place, value in enumerate(kept):
                if getattr(value, "name", value) == "logits":
                    if isinstance(value, str):
                        kept[place] = "pred_logits"
                    else:
                        value.name = "pred_logits"
    onnx.save(model, str(path))
    opened = open_graph(path, classes=CLASSES)
    assert opened.description["layout"] == fixed.description["layout"] == name
    (found,) = opened([WHITE])
    assert_known(found)


def to_openvino(path: Path, fixture: Fixture) -> Path:
    """One layout by OpenVINO's converter, as users call it, which takes two seconds; the others by what it rests on."""
    openvino = pytest.importorskip("openvino")
    by_hand = fixture is FIXTURES["yolov8"]
    model = openvino.convert_model(str(path)) if by_hand else the_core().read_model(str(path))
    for key, value in fixture.metadata.items():
        model.set_rt_info(value, ["model_info", key])
    openvino.save_model(model, str(path.with_suffix(".xml")), compress_to_fp16=False)
    return path.with_suffix(".xml")


def test_every_layout_has_a_fixture() -> None:
    assert set(FIXTURES) == set(LAYOUTS)


@pytest.mark.parametrize("name", [name for name in FIXTURES if FIXTURES[name].metadata])
def test_names_come_from_the_file(name: str, tmp_path: Path) -> None:
    assert open_graph(write(tmp_path / "m.onnx", FIXTURES[name])).classes == CLASSES


@pytest.mark.parametrize(
    ("name", "white"), [("yolov8", (255, 0, 0)), ("yolox", (0, 0, 255)), ("rf_detr", (255, 0, 0)), ("ssd", (255, 0, 0))]
)
def test_pixels_enter_as_the_layout_has_them(name: str, white: tuple[int, int, int], tmp_path: Path) -> None:
    """The first channel's mean multiplies the scores: red or blue first, 0 to 1, 0 to 255 or normalised."""
    full = {"yolov8": 1.0, "yolox": 255.0, "rf_detr": (1 - 0.485) / 0.229, "ssd": 128 / 128}[name]
    fixture = replace(FIXTURES["yolov8"], white=full)
    model = open_graph(write(tmp_path / "m.onnx", fixture), classes=CLASSES)
    plain = model.layout.pixels  # pyright: ignore[reportAttributeAccessIssue]
    model.layout = replace(model.layout, pixels=LAYOUTS[name].pixels)  # pyright: ignore[reportAttributeAccessIssue]
    (found,) = model([np.full((HEIGHT, WIDTH, 3), white, np.uint8)])
    np.testing.assert_allclose(found.scores, SCORES, atol=1e-4)
    assert plain == LAYOUTS["yolov8"].pixels


def test_boxes_of_one_object_are_suppressed_where_the_graph_does_not(tmp_path: Path) -> None:
    twice = rows(centres(), one_hot(), 252)
    twice[0, 7] = twice[0, 5]
    twice[0, 7, :4] += 0.2
    twice[0, 7, 4:] *= 0.9
    (found,) = open_graph(write(tmp_path / "m.onnx", Fixture({"o": twice.transpose(0, 2, 1)}, metadata=NAMES)))([WHITE])
    assert_known(found)


def test_tiles_of_a_large_image(tmp_path: Path) -> None:
    predictor = load_predictor(write(tmp_path / "m.onnx", FIXTURES["yolov8"]), overlap=0)
    assert predictor.tile == (HEIGHT, WIDTH)
    found = predictor.predict(np.tile(WHITE, (2, 3, 1)))[0]
    shifts = [(x * WIDTH, y * HEIGHT) for y in range(2) for x in range(3)]
    expected = np.concatenate([BOXES + np.array([x, y, x, y]) for x, y in shifts])
    order = np.lexsort(found.boxes.T)
    np.testing.assert_allclose(found.boxes[order], expected[np.lexsort(expected.T)], atol=1e-3)


@pytest.mark.parametrize("batch", ["batch", 2])
def test_open_and_fixed_batches_and_sizes(batch: int | str, tmp_path: Path) -> None:
    fixture = replace(FIXTURES["detr"], batch=batch, size=None if batch == "batch" else (HEIGHT, WIDTH))
    if batch == 2:
        fixture = replace(fixture, outputs={k: np.repeat(v, 2, axis=0) for k, v in fixture.outputs.items()})
    model = open_graph(write(tmp_path / "m.onnx", fixture), classes=CLASSES)
    assert [len(found) for found in model([WHITE] * (1 if batch == "batch" else 3))] == [3] * (
        1 if batch == "batch" else 3
    )


def unknown(outputs: dict[str, np.ndarray], **rest: object) -> Fixture:
    return replace(Fixture(outputs), **rest)  # type: ignore[arg-type]


CELLS = 252
WRONG = {
    "two readings": (unknown({"o": np.zeros((1, CELLS, 9), np.float32)}), {}, "yolox_raw with 4 classes or yolov8_rows with 5"),
    "open size": (
        unknown({"o": np.zeros((1, 900, 9), np.float32)}, size=None), {}, "yolov5 with 4 classes or yolov8_rows with 5"
    ),
    "no layout": (unknown({"o": np.zeros((1, 8), np.float32)}), {}, r"in no layout that is known: o \(1, 8\)"),
    "image to image": (unknown({"o": np.zeros((1, 3, 96, 128), np.float32)}), {}, "in no layout that is known"),
    "classes unknown": (FIXTURES["yolov7_end2end"], {"classes": None}, "does not say its classes; name them"),
    "too few classes": (FIXTURES["yolov7_end2end"], {"classes": ("a", "b")}, "finds class 2, counted from 0, and 2 classes"),
    "unknown layout": (FIXTURES["yolov8"], {"layout": "yolov88"}, "unknown layout 'yolov88'; did you mean"),
    "another layout": (FIXTURES["detr"], {"layout": "rf_detr"}, "the layout rf_detr has outputs called dets, labels"),
    "a task": (replace(FIXTURES["yolov8"], metadata={"task": "pose"}), {}, "a model for the task 'pose'"),
    "names": (replace(FIXTURES["yolov8"], metadata={"names": "{0: __import__('os')}"}), {"classes": None}, "'names' cannot be"),
}  # fmt: skip


NUMBERS = {
    "nan": ("scores", np.nan, "are no numbers"),
    "infinite": ("boxes", np.inf, "are no numbers"),
    "percent": ("scores", 90.0, "its scores are 0.3 to 90, where 0 to 1 is wanted; --layout names another"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_cannot_be_are_said(case: str, tmp_path: Path) -> None:
    name, value, message = NUMBERS[case]
    outputs = {key: array.copy() for key, array in FIXTURES["torchvision"].outputs.items()}
    outputs[name].flat[0] = value
    with pytest.raises(UserError, match=message):
        open_graph(write(tmp_path / "m.onnx", replace(FIXTURES["torchvision"], outputs=outputs)), classes=CLASSES)(
            [WHITE]
        )


def test_boxes_that_cannot_be_are_said(tmp_path: Path) -> None:
    for change, message in (
        (lambda b: b[:, [2, 3, 0, 1]], "ends before it begins"),
        (lambda b: b / 128, "within one pixel"),
    ):
        outputs = {**FIXTURES["torchvision"].outputs, "boxes": change(BOXES)}
        model = open_graph(
            write(tmp_path / "m.onnx", replace(FIXTURES["torchvision"], outputs=outputs)), classes=CLASSES
        )
        with pytest.raises(UserError, match=message):
            model([WHITE])


def test_names_of_another_number_are_refused_at_once(tmp_path: Path) -> None:
    for layout in ("yolov8", "yolov5", "ssd"):
        path = write(tmp_path / "m.onnx", FIXTURES[layout])
        with pytest.raises(UserError, match="4 classes are named, and its outputs have 3"):
            open_graph(path, classes=tuple("abcd"), layout=layout)


def test_models_for_outlines_are_refused(tmp_path: Path) -> None:
    masks = {**FIXTURES["yolov8"].outputs, "output1": np.zeros((1, 32, 16, 16), np.float32)}
    with pytest.raises(UserError, match="a model for outlines"):
        open_graph(write(tmp_path / "m.onnx", Fixture(masks)), classes=CLASSES)


def test_detr_without_names_may_be_either(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="read as detr with 3 classes or detr_softmax with 2"):
        open_graph(write(tmp_path / "m.onnx", FIXTURES["detr"]))


@pytest.mark.parametrize("case", WRONG)
def test_doubt_is_one_line(case: str, tmp_path: Path) -> None:
    fixture, asked, message = WRONG[case]
    with pytest.raises(UserError, match=message) as caught:
        open_graph(write(tmp_path / "m.onnx", fixture), **{"classes": ("a", "b", "c"), **asked})([WHITE])  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_number_of_classes_decides_between_readings(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", unknown({"o": np.zeros((1, CELLS, 9), np.float32)}))
    assert open_graph(path, classes=tuple("abcde")).description["layout"] == "yolov8_rows"
    assert open_graph(path, classes=tuple("abcd")).description["layout"] == "yolox_raw"


def test_windows_larger_than_a_fixed_input(tmp_path: Path) -> None:
    model = open_graph(write(tmp_path / "m.onnx", FIXTURES["yolov8"]))
    with pytest.raises(UserError, match=r"windows are 97 px high, and its input is 96; --tile 96x128"):
        model([np.zeros((97, 128, 3), np.uint8)])
    (wide,) = model([np.full((96, 128, 3), 65535, np.uint16)])
    assert_known(wide)
