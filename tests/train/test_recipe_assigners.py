"""Assigners by recipe: what is taken from the training set, what is refused, and the table of positives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flyspeck.cli.data import app
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.models.assigners.build import ASSIGNER_OPTIONS
from flyspeck.models.assigners.hosts import priors_of
from flyspeck.models.assigners.nwd import NWD, NWDOptions
from flyspeck.models.assigners.rfla import RFLA
from flyspeck.models.assigners.simd import SimD, SimDOptions
from flyspeck.train.assigners import settled_assigner, simd_ratios
from flyspeck.train.build import build_detector, load_detector
from flyspeck.train.config import ModelConfig, Recipe, dump_recipe
from flyspeck.train.positives import positives_by_size
from flyspeck.train.run import train


def model(host: str = "faster_rcnn", **more: object) -> ModelConfig:
    return ModelConfig.model_validate({"name": f"{host}:mobilenet_v2", "width": 0.25, "channels": 16, **more})


def write_set(folder: Path, boxes: list[list[float]], num_images: int = 1) -> Path:
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(num_images)]
    entries = [
        {"id": i * 100 + j, "image_id": i, "category_id": 1, "bbox": box}
        for i in range(num_images)
        for j, box in enumerate(boxes)
    ]
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "p"}]}
    (folder / "gt.json").write_text(json.dumps(content))
    return folder / "gt.json"


def build(config: ModelConfig):
    return build_detector(config, classes=["p"], mean=[0.5], std=[0.25], load=False)


def test_the_training_set_gives_the_constant_and_the_means(tmp_path: Path) -> None:
    table = read_annotations(write_set(tmp_path, [[10, 10, 4, 4], [30, 20, 9, 16]], num_images=3))
    bare = build(model())
    nwd = settled_assigner(NWDOptions(), bare, table)
    assert nwd.constant == 8.0  # sizes 4 and 12
    assert settled_assigner(NWDOptions(constant=5), bare, table).constant == 5
    simd = settled_assigner(SimDOptions(), bare, table)
    assert simd.ratios is not None
    # The slow way: every object against every anchor of an image.
    anchors = priors_of(bare, (48, 64)).boxes.double().numpy()
    objects = table.boxes[:2]
    center = lambda b: (b[:, :2] + b[:, 2:]) / 2  # noqa: E731
    distance = np.abs(center(objects)[:, None] - center(anchors)[None])
    sides = (objects[:, 2:] - objects[:, :2])[:, None] + (anchors[:, 2:] - anchors[:, :2])[None]
    assert simd.ratios == pytest.approx((distance / sides).mean((0, 1)), abs=1e-4)
    assert simd_ratios(bare, table) == pytest.approx(simd.ratios, abs=1e-4)


def test_sets_without_objects_or_sizes_are_refused(tmp_path: Path) -> None:
    empty = read_annotations(write_set(tmp_path, []))
    for name in ("nwd", "simd"):
        with pytest.raises(UserError, match="no objects to fit an assigner to"):
            settled_assigner(ASSIGNER_OPTIONS[name](), build(model()), empty)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no objects to assign"):
        positives_by_size(empty, "faster_rcnn:mobilenet_v2")


def test_a_recipe_builds_the_assigner_with_its_options() -> None:
    part = build(model(assigner={"name": "nwd", "constant": 5.0, "foreground": 0.6})).head.assigning_part()
    assert isinstance(part.assigner, NWD)
    assert (part.assigner.constant, part.assigner.foreground, part.assigner.background) == (5.0, 0.6, 0.3)
    part = build(model("fcos", assigner={"name": "simd", "ratios": [3, 2]})).head.assigning_part()
    assert isinstance(part.assigner, SimD)
    assert (part.assigner.m, part.assigner.n) == (3, 2)
    part = build(model("retinanet", assigner={"name": "rfla", "k": 2})).head.assigning_part()
    assert isinstance(part.assigner, RFLA)
    assert part.assigner.effective == (9.5, 29.5, 133.5, 245.5, 309.5)  # half of MobileNetV2's fields
    part = build(model("retinanet", assigner={"name": "rfla", "receptive_fields": "resnet50"})).head.assigning_part()
    assert isinstance(part.assigner, RFLA)
    assert part.assigner.effective == (17.5, 45.5, 133.5, 213.5, 277.5)  # half of 35, 91, 267, 427, 555: the paper's
    assert build(model("fcos", assigner={"name": "center_sampling"})).head.assigning_part().assigner is None


def test_receptive_fields_take_the_place_of_anchors() -> None:
    for word, side in ((True, 9.5), ("own", 9.5), ("resnet50", 17.5)):
        part = build(model(anchors={"receptive_fields": word, "ratios": [1.0]})).head.assigning_part()
        sides = part.anchors.shapes[0][0]  # type: ignore[union-attr]
        assert sides == pytest.approx((side, side))


@pytest.mark.parametrize(
    ("host", "name", "words"),
    [
        ("ssd", "rfla", "ssd assigns by its own rule; rfla works with retinanet, faster_rcnn, cascade_rcnn"),
        ("reppoints", "nwd", "reppoints assigns by its own rule"),
        ("retinanet", "center_sampling", "retinanet takes max_iou, nwd, simd, rfla; center_sampling works with fcos"),
    ],
)
def test_heads_that_cannot_take_an_assigner_say_which_can(host: str, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(model(host, assigner={"name": name}))


def test_a_run_keeps_what_it_took_from_the_training_set(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(train={"epochs": 1}, model={"assigner": {"name": "simd"}})
    train(recipe, tmp_path / "run")
    part = load_detector(tmp_path / "run").head.assigning_part()
    assert isinstance(part.assigner, SimD)
    assert part.assigner.m > 0
    assert "ratios:" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_positives_by_size(tmp_path: Path) -> None:
    path = write_set(tmp_path, [[8, 8, 3, 3], [20, 20, 8, 8], [40, 20, 16, 16], [30, 30, 0, 5]], num_images=2)
    found = positives_by_size(read_annotations(path), "fcos:mobilenet_v2")
    assert found["images"] == 2
    assert list(found["assigners"]) == ["center_sampling", "max_iou", "nwd", "simd", "rfla"]
    for name, parts in found["assigners"].items():
        assert [parts[b]["objects"] for b in ("[2,8)", "[8,12)", "[12,20)")] == [2, 2, 2]  # a box without area is none
        assert all(part["mean"] * part["objects"] == pytest.approx(part["positives"]) for part in parts.values())
        if name != "center_sampling":
            assert all(part["none"] == 0 for part in parts.values())
    # (8, 8, 11, 11) lies between the points at 6, 10 and 14: one point of stride 4 is inside.
    assert found["assigners"]["center_sampling"]["[2,8)"]["mean"] == 1
    with pytest.raises(UserError, match="takes no assigner"):
        positives_by_size(read_annotations(path), "reppoints:mobilenet_v2")


def test_positives_of_a_recipes_own_anchors(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> None:
    path = write_set(tmp_path, [[8, 8, 6, 6], [20, 20, 6, 6]], num_images=2)
    # Anchors of 6 px on a stride of 4 fit these objects; those of 64 px do not, and each takes the few that overlap it best.
    counts = {}
    for scale in (1.5, 16.0):
        anchors = {"base_scale": scale, "ratios": [1.0]}
        recipe = make_recipe(model={"anchors": anchors, "assigner": {"name": "max_iou", "foreground": 0.25}})
        file = tmp_path / f"{scale}.yaml"
        file.write_text(dump_recipe(recipe))
        counts[scale] = positives_by_size(read_annotations(path), str(file))["assigners"]
    plain = make_recipe(model={"anchors": {"base_scale": 1.5, "ratios": [1.0]}})
    (tmp_path / "plain.yaml").write_text(dump_recipe(plain))
    counts["plain"] = positives_by_size(read_annotations(path), str(tmp_path / "plain.yaml"))["assigners"]
    few, many = counts["plain"]["max_iou"]["[2,8)"]["mean"], counts[1.5]["max_iou"]["[2,8)"]["mean"]
    assert 1 <= few < many  # the recipe's threshold of 0.25 against the host's
    assert counts[1.5]["nwd"]["[2,8)"]["mean"] > counts[16.0]["nwd"]["[2,8)"]["mean"]
    fitted = make_recipe(model={"anchors": {"fit": True}})
    (tmp_path / "fit.yaml").write_text(dump_recipe(fitted))
    found = positives_by_size(read_annotations(path), str(tmp_path / "fit.yaml"))["assigners"]
    assert found["max_iou"]["[2,8)"]["none"] == 0
    with pytest.raises(UserError, match="no such recipe"):
        positives_by_size(read_annotations(path), str(tmp_path / "gone.yaml"))


def test_inspect_prints_the_table_and_the_json(tmp_path: Path) -> None:
    path = write_set(tmp_path, [[8, 8, 3, 3], [20, 20, 9, 9]])
    plain = CliRunner().invoke(app, ["inspect", str(path), "--positives", "--no-check-files"])
    assert plain.exit_code == 0, plain.output
    assert "anchors or points of faster_rcnn:mobilenet_v2 for one object" in plain.output
    found = CliRunner().invoke(
        app, ["inspect", str(path), "--positives", "--no-check-files", "--json", "--detector", "retinanet:mobilenet_v2"]
    )
    facts = json.loads(found.stdout)
    assert set(facts["assign"]["assigners"]) == {"max_iou", "nwd", "simd", "rfla"}
    assert facts["assign"]["assigners"]["nwd"]["[2,8)"]["objects"] == 1
