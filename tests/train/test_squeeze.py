"""A run whose images are squeezed: what the network sees, and that every result stays in the pixels of the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image
from torch import nn

import flyspeck
from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.data.enlarge import Enlarge, described_enlargement, enlarged_table
from flyspeck.data.loading import DetectionDataset
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.explain.run import ExplainOptions, explain_models
from flyspeck.explain.run import Images as ExplainedImages
from flyspeck.explain.similarity import View
from flyspeck.explain.subjects import Subject, load_subjects
from flyspeck.infer.load import load_predictor
from flyspeck.report.runs import read_run
from flyspeck.train.build import load_described
from flyspeck.train.config import Recipe, parse_recipe
from flyspeck.train.detecting import shrunk_back
from flyspeck.train.distill.cache import digest
from flyspeck.train.distill.stages import _scale
from flyspeck.train.inputs import augmentation, training_loader
from flyspeck.train.measure import measure
from flyspeck.train.run import train
from flyspeck.train.viewing import Viewing
from flyspeck.types import Detections, ImageBatch

SIZES = ((720, 960), (960, 720), (600, 900))
"""(height, width) of the images, in turn."""
KINDS = {"small": (20, 4), "medium": (50, 3), "large": (100, 1)}
"""Of each image: objects of these sides. 400, 2500 and 10,000 px: COCO's small, medium and large (below 1024, from 9216)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images: 24 objects are small, 18 medium and 6 large by COCO's areas. Squeezed to 300x300, 42, 6 and none are."""
    folder = tmp_path_factory.mktemp("areas")
    images, boxes = [], []
    for number in range(6):
        height, width = SIZES[number % 3]
        pixels = np.random.default_rng(number).integers(60, 90, (height, width), np.uint8)
        x = 10
        for side, count in KINDS.values():
            for k in range(count):
                y = 37 * k + 10 * number
                pixels[y : y + side, x : x + side] = 250
                box = {"image_id": number + 1, "bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
                boxes.append({"id": len(boxes) + 1, "category_id": 1, **box})
                x += side + 20
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
    (folder / "set.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def table(folder: Path) -> Annotations:
    return read_annotations(folder / "set.json")


def recipe_of(folder: Path, squeeze: tuple[int, int] = (300, 300), **sections: dict) -> Recipe:
    data = {"train": str(folder / "set.json"), "val": str(folder / "set.json"), "squeeze": list(squeeze)}
    content: dict = {
        "data": data,
        "model": {"name": "ssd:mobilenet_v1", "width": 0.1, "min_score": 0.01},
        "train": {"epochs": 1, "batch_size": 2, "workers": 0},
        "evaluate": {"protocol": "coco_bbox", "best": "ap_all", "batch_size": 3},
    }
    return parse_recipe({name: {**content.get(name, {}), **sections.get(name, {})} for name in {**content, **sections}})


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("run") / "ssd"
    train(recipe_of(folder, augment={"scale": [0.5, 2.0]}), where)
    return where


class KnowsOneKind(nn.Module):
    """Finds the objects of one kind exactly, in the frame of the squeezed images that it is shown, in the order of the set."""

    divisor, smallest_side = 1, 1

    def __init__(self, table: Annotations, kind: str, size: tuple[int, int]) -> None:
        super().__init__()
        seen = enlarged_table(table, Enlarge(squeeze=size))
        wanted = table.area == KINDS[kind][0] ** 2
        self.boxes = [seen.boxes[(seen.image_index == row) & wanted] for row in range(len(table))]
        self.size, self.next = size, 0

    def detect(self, images: ImageBatch) -> list[Detections]:
        assert tuple(images.pixels.shape[-2:]) == self.size
        assert set(images.sizes) == {self.size}
        found = []
        for _ in images.sizes:
            boxes = self.boxes[self.next].astype(np.float32)
            found.append(Detections(boxes, np.full(len(boxes), 0.9), np.zeros(len(boxes), np.int64), self.size))
            self.next += 1
        return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(300, 300), (200, 333)])
def test_areas_are_coco_s_in_training_in_eval_and_in_the_report(
    kind: str, size: tuple[int, int], table: Annotations, run: Path, folder: Path, tmp_path: Path
) -> None:
    """Of 24 small, 18 medium and 6 large objects those of one kind are found: its AP is 1, that of the two others 0."""
    measured = measure(
        KnowsOneKind(table, kind, size),
        table,
        protocol="coco_bbox",
        viewing=Viewing(rule=PixelRule(channels=1), enlarge=Enlarge(squeeze=size), batch_size=4),
        accelerator=Accelerator(cpu=True),
    )
    metrics = measured.metrics
    measured.write(tmp_path, table)
    again = flyspeck.evaluate(
        ground_truth=folder / "set.json", detections=tmp_path / "detections.json", protocol="coco_bbox"
    )
    (tmp_path / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    report = read_run(tmp_path)
    counted = {"small": 24, "medium": 18, "large": 6}
    for letter, name in zip("sml", KINDS, strict=True):
        expected = pytest.approx(float(name == kind))
        assert metrics[f"ap{letter}_all"] == expected
        for result in (again, report.evaluation):
            assert {row["metric"]: row["value"] for row in result.rows}[f"AP{letter}"] == expected
    assert metrics["ar100_all"] == pytest.approx(counted[kind] / 48)


def test_a_run_counts_all_three_areas_and_eval_and_report_agree_with_it(run: Path, folder: Path) -> None:
    stored = json.loads((run / "evaluation.json").read_text())["rows"]
    values = {row["metric"]: row["value"] for row in stored if "category_id" not in row}
    assert all(values[name] >= 0 for name in ("APs", "APm", "APl"))  # -1 where there is nothing of an area
    again = flyspeck.evaluate(
        ground_truth=folder / "set.json", detections=run / "detections.json", protocol="coco_bbox"
    )
    for rows in (again.rows, read_run(run).evaluation.rows):
        assert {r["metric"]: r["value"] for r in rows if "category_id" not in r} == pytest.approx(values)


def test_the_run_stores_the_squeeze_and_everything_obeys_it(run: Path, folder: Path, tmp_path: Path) -> None:
    _, description = load_described(run)
    assert description["enlarge"] == {"factor": 1.0, "short_side": None, "squeeze": [300, 300]}
    assert description["training_size"] == [300, 300]
    assert description["object_side_99"] == 100  # of the files: the unit of tiles
    predictor = load_predictor(run)
    assert predictor.tile is None
    frames, seen = predictor.tiles_of((720, 960))
    assert (frames.tolist(), seen) == ([[0, 0, 960, 720]], (300, 300))
    tiled = load_predictor(run, tile=(400, 500))
    frames, seen = tiled.tiles_of((720, 960))
    assert seen == (300, 300)
    assert {(y2 - y1, x2 - x1) for x1, y1, x2, y2 in frames.tolist()} == {(400, 500)}
    with pytest.raises(UserError, match="squeezed to 300x300: no scale"):
        load_predictor(run, scale=2.0)
    found = predictor.predict([folder / "0.png", folder / "1.png"])
    assert [one.image_size for one in found] == [(720, 960), (960, 720)]
    assert found[0].boxes[:, 2].max() > 300  # pixels of the file


def test_predict_shows_the_model_the_pixels_of_training_s_evaluation(run: Path, table: Annotations) -> None:
    predictor, windows = load_predictor(run), []

    def watched(batch: list[np.ndarray]) -> list[Detections]:
        windows.extend(batch)
        return [Detections.empty((300, 300)) for _ in batch]

    predictor.model = watched
    predictor.predict([table.path(row) for row in range(3)])
    for row, window in enumerate(windows):
        np.testing.assert_array_equal(window.transpose(2, 0, 1), evaluated(table, row).numpy())


def test_explain_shows_whole_images_as_the_model_sees_them(
    run: Path, table: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (subject,) = load_subjects([run])
    view = subject.view(table.path(0), np.array([[96.0, 72.0, 192.0, 144.0]]), (0, 0, 960, 720))
    assert tuple(view.images.pixels.shape[-2:]) == (300, 300)
    assert_allclose(view.boxes, [[30, 30, 60, 60]])
    regions, plain = [], Subject.view

    def watched(self: Subject, path: Path, boxes: np.ndarray, region: tuple[int, int, int, int]) -> View:
        regions.append(region)
        return plain(self, path, boxes, region)

    monkeypatch.setattr(Subject, "view", watched)
    options = ExplainOptions(images=1, sample=1, max_side=128)
    explain_models([subject], ExplainedImages(table, (1,)), tmp_path, options, tell=lambda _: None)
    assert set(regions) == {(0, 0, 720, 960), (0, 0, 960, 720)}  # the case, and the sample of the table's first image


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2500), st.integers(1, 2500), st.integers(8, 640), st.integers(8, 640), st.integers(0, 2**32 - 1))
def test_a_box_mapped_to_the_squeezed_frame_and_back_is_the_same(
    height: int, width: int, tall: int, wide: int, seed: int
) -> None:
    """Within 1e-3 px, through float32 as networks give boxes."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (20, 2, 2)), axis=1) * [width, height]
    boxes = corners.reshape(20, 4)
    size = Enlarge(squeeze=(tall, wide)).size((height, width))
    assert size == (tall, wide)
    seen = (boxes * np.array([wide / width, tall / height] * 2)).astype(np.float32)
    found = Detections(seen, np.ones(20), np.zeros(20, np.int64), size)
    assert np.abs(shrunk_back(found, (height, width)).boxes - boxes).max() < 1e-3


def test_training_sees_what_evaluation_sees(table: Annotations, folder: Path) -> None:
    """Without augmentation the pixels are the same, bit for bit, and the batches have the size of the squeeze."""
    recipe = recipe_of(folder, augment={"flip": 0.0})
    assert all(digest(training_pixels(recipe, table, row)) == digest(evaluated(table, row)) for row in range(6))
    flipped = recipe_of(folder, augment={"flip": 1.0})
    assert all(
        digest(training_pixels(flipped, table, row)) == digest(evaluated(table, row).flip(2)) for row in range(6)
    )
    loader = training_loader(
        recipe_of(folder, augment={"scale": [0.25, 3.0], "rot90": 0.5, "extra": [{"name": "mosaic", "size": [50, 70]}]}),
        table, rule=PixelRule(channels=1), divisor=1, rank=0, world_size=1,
    )  # fmt: skip
    for images, targets, _ in loader.epoch(0):
        assert images.pixels.shape[1:] == (1, 300, 300)
        assert set(images.sizes) == {(300, 300)}
        assert all((t.boxes <= 300 + 1e-3).all() for t in targets)


def evaluated(table: Annotations, row: int) -> torch.Tensor:
    return DetectionDataset(table, channels=1, enlarge=Enlarge(squeeze=(300, 300))).raw(row).pixels


def training_pixels(recipe: Recipe, table: Annotations, row: int) -> torch.Tensor:
    transform = augmentation(recipe.augment, table, squeeze=recipe.data.squeeze)
    return DetectionDataset(table, channels=1, transform=transform)[row].pixels


def test_zooming_uses_the_whole_file(table: Annotations, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image comes to the augmentation as it is in the file, not squeezed."""
    from flyspeck.data.zoom import RandomZoom

    sizes, plain = set(), RandomZoom.__call__

    def watched(self: RandomZoom, sample, *arguments):  # type: ignore[no-untyped-def]
        sizes.add(tuple(sample.pixels.shape[1:]))
        return plain(self, sample, *arguments)

    monkeypatch.setattr(RandomZoom, "__call__", watched)
    recipe = recipe_of(folder, augment={"scale": [0.5, 2.0]})
    list(training_loader(recipe, table, rule=PixelRule(channels=1), divisor=1, rank=0, world_size=1).epoch(0))
    assert sizes == set(SIZES)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"enlarge": 2.0}}, "data.squeeze takes the place"),
        ({"data": {"short_side": 100}}, "data.squeeze takes the place"),
        ({"augment": {"crop": [300, 300]}}, "data.squeeze and augment.crop exclude each other"),
        ({"data": {"squeeze": [0, 300]}}, "data.squeeze"),
        ({"data": {"squeeze": [300]}}, "data.squeeze"),
        ({"data": {"squeeze": "300x300"}}, "data.squeeze"),
    ],
)
def test_what_does_not_go_with_a_squeeze(sections: dict, words: str, folder: Path) -> None:
    plain = {"train": str(folder / "set.json"), "val": str(folder / "set.json"), "squeeze": [300, 300]}
    with pytest.raises(UserError, match=words):
        recipe_of(folder, **{**sections, "data": {**plain, **sections.get("data", {})}})


def test_old_files_know_no_squeeze() -> None:
    assert described_enlargement({}) == Enlarge()
    assert described_enlargement({"enlarge": {"factor": 2.0, "short_side": None}}) == Enlarge(2.0)
    rule = Enlarge(squeeze=(300, 400))
    assert described_enlargement({"enlarge": json.loads(json.dumps(rule.described()))}) == rule
    assert rule.scaled(0.5) == Enlarge(squeeze=(150, 200))
    assert described_enlargement({}, scale=0.5) == Enlarge(0.5)


@pytest.mark.parametrize(
    ("own", "theirs", "scale"),
    [
        ((300, 300), (300, 300), 1),
        ((300, 300), (600, 600), 2),
        ((300, 300), (300, 600), None),
        ((300, 300), None, None),
    ],
)
def test_a_teacher_s_squeeze_against_the_student_s(
    own: tuple[int, int], theirs: tuple[int, int] | None, scale: float | None, folder: Path
) -> None:
    recipe = recipe_of(folder, own, distill={"teacher": "runs/teacher"})
    described = {"enlarge": Enlarge(squeeze=theirs).described()}
    if scale is not None:
        assert _scale(recipe, described) == scale
        return
    with pytest.raises(UserError, match="by different rules"):
        _scale(recipe, described)
