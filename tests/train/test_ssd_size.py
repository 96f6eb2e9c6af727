"""An SSD of 300x300 px sees 300x300 px: in training, in its evaluations, in prediction and as an exported file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flyspeck.export.onnx import describe
from flyspeck.infer.exported import PlainModel, Session
from flyspeck.infer.load import load_predictor
from flyspeck.models.heads.ssd import DefaultBoxes
from flyspeck.train.build import load_described
from flyspeck.train.config import Recipe, parse_recipe
from flyspeck.train.run import train

# Priors of the paper's configurations (docs/papers/stride_elimination.md): of 320x320, the base would have 3,232.
CONFIGURATIONS = {
    "ssd:mobilenet_v1": 2_998,
    "ssd:mobilenet_v1:S1L0-DualPath19-10-S": 11_062,
    "ssd:vgg16": 11_620,
}


def write_images(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """Images of `sizes` (height, width) px with a bright square each, and their `set.json`."""
    entries, boxes = [], []
    for i, (height, width) in enumerate(sizes, 1):
        pixels = np.random.default_rng(i).integers(90, 150, (height, width), np.uint8)
        pixels[20:50, 30 * i : 30 * i + 30] = 250
        Image.fromarray(pixels).save(folder / f"{i}.png")
        entries.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        box = {"image_id": i, "bbox": [30 * i, 20, 30, 30], "area": 900, "category_id": 1, "iscrowd": 0}
        boxes.append({"id": i, **box})
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
    (folder / "set.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of 300x300 px."""
    return write_images(tmp_path_factory.mktemp("ssd"), [(300, 300)] * 3)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of COCO's sizes, none of them square."""
    return write_images(tmp_path_factory.mktemp("photographs"), [(480, 640), (640, 427), (333, 500)])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many priors each pass through an SSD had."""
    counts: list[int] = []
    plain = DefaultBoxes.forward

    def forward(self: DefaultBoxes, *arguments: object) -> torch.Tensor:
        found = plain(self, *arguments)  # type: ignore[arg-type]
        counts.append(len(found))
        return found

    monkeypatch.setattr(DefaultBoxes, "forward", forward)
    return counts


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_papers_priors_on_squeezed_photographs(
    name: str, photographs: Path, counted: list[int], tmp_path: Path
) -> None:
    """In training (with zooms), in its evaluation and in prediction, whatever the sizes of the files."""
    recipe = recipe_of(photographs, name, squeeze=[300, 300])
    train(recipe, tmp_path / "run")
    passes = len(counted)
    assert passes >= 2  # at least a step and an evaluation
    predictor = load_predictor(tmp_path / "run")
    (found,) = predictor.predict(photographs / "1.png")
    assert len(counted) > passes
    assert set(counted) == {CONFIGURATIONS[name]}
    assert found.image_size == (480, 640)


def test_the_papers_priors_on_images_of_the_right_size(images: Path, counted: list[int], tmp_path: Path) -> None:
    train(recipe_of(images, "ssd:mobilenet_v1"), tmp_path / "run")
    passes = len(counted)
    assert passes >= 2
    predictor = load_predictor(tmp_path / "run")
    predictor.predict(images / "1.png")
    assert len(counted) > passes
    assert set(counted) == {2_998}
    predictor.predict(np.zeros((20, 310, 1), np.uint8))  # lower than one cell of the last map: it is seen all the same


def recipe_of(folder: Path, name: str, *, squeeze: list[int] | None = None) -> Recipe:
    return parse_recipe(
        {
            "data": {"train": str(folder / "set.json"), "val": str(folder / "set.json"), "squeeze": squeeze},
            "augment": {"scale": [1.0, 1.0] if squeeze is None else [0.5, 2.0]},
            "model": {"name": name, "width": 0.1},
            "train": {"epochs": 1, "batch_size": 2, "workers": 0},
            "evaluate": {"batch_size": 3},
        }
    )


class Echo(Session):
    """Stands for a graph: finds nothing, and remembers what it was shown."""

    path, text = Path("model.onnx"), None

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:  # type: ignore[override]
        self.shapes.append(inputs[0].shape)
        number = len(inputs[0])
        boxes, scores, labels = np.zeros((number, 0, 4)), np.zeros((number, 0)), np.zeros((number, 0), np.int64)
        return [boxes, scores, labels, np.zeros(number, np.int64)]


def test_an_exported_file_says_what_its_windows_are_padded_to(images: Path, tmp_path: Path) -> None:
    train(recipe_of(images, "ssd:mobilenet_v1"), tmp_path / "run")
    detector, description = load_described(tmp_path / "run")
    told = describe(detector, description)
    assert told["divisor"] == 1
    for said, shape in (
        (told, (1, 300, 300, 1)),
        ({k: v for k, v in told.items() if k != "divisor"}, (1, 320, 320, 1)),
    ):
        session = Echo()
        PlainModel(session, said)([np.zeros((300, 300, 1), np.uint8)])
        assert session.shapes == [shape]
