"""The comparators as parts of flyspeck: found by name, counted, trained on every neck, and exported."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from every_batch import assert_same, differences
from tiny_exports import make_detector

from flyspeck import plugins
from flyspeck.cli.main import main
from flyspeck.export.graph import DetectorGraph
from flyspeck.export.parity import Rule, compare
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.names import parse_name
from flyspeck.models.profile import profile
from flyspeck.models.zoo import BACKBONES, DETECTORS, NECKS
from flyspeck.types import Detections, ImageBatch
from one_step import train_a_step

NAMES = ("free_anchor", "grid_rcnn", "libra_rcnn")
OTHERS = ("pelee", "pyramidbox", "retinaface", "rfb_net", "rfcn", "rfcn_fpn", "s3fd", "ssd_fpn")
NARROW = {
    "grid_rcnn": {"point_channels": 4, "grid_depth": 2}
}  # its convolutions by the point are nearly all of the time
KINDS = ("resnet18", "mobilenet_v2", "hrnet18", "swin_t")  # one backbone of each kind


def test_the_package_brings_them_as_a_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["flyspeck.plugins"] == {"comparators": "flyspeck_lab.comparators"}
    assert {plugins.owner("detector", name) for name in NAMES} == {"flyspeck_lab.comparators"}
    assert plugins.owner("backbone", "peleenet") == "flyspeck_lab.comparators"
    # What flyspeck says of them where they are not.
    assert sorted(plugins.COMPARATORS) == sorted([*NAMES, *OTHERS, "peleenet"])


def test_flyspeck_finds_them_where_the_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run or recipe of flyspeck 0.1 names them, which notes no plugin."""
    point = plugins.EntryPoint("comparators", "flyspeck_lab.comparators", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins, "_failed", {})
    monkeypatch.setattr(plugins, "_owners", {})
    for name in (*NAMES, *OTHERS):
        monkeypatch.delitem(DETECTORS, name)
    monkeypatch.delitem(BACKBONES, "peleenet")
    assert parse_name("libra_rcnn:resnet18").detector == "libra_rcnn"
    assert set(NAMES) <= set(DETECTORS)


@pytest.mark.parametrize(
    ("name", "gflops", "parameters"),
    [("free_anchor", 177.52, 36.40e6), ("libra_rcnn", 75.93, 41.61e6), ("grid_rcnn", 189.07, 64.47e6)],
)
def test_they_cost_what_their_page_says(name: str, gflops: float, parameters: float) -> None:
    with torch.device("meta"):
        counted = profile(build(f"{name}:resnet50"), (512, 640), convention="mmcv")
    assert counted.gflops == pytest.approx(gflops, abs=0.006)
    assert counted.params == pytest.approx(parameters, abs=0.006e6)
    page = (Path(__file__).parents[2] / "docs" / "papers" / "comparators.md").read_text(encoding="utf-8")
    assert f"{gflops:.2f}" in page
    assert f"{parameters / 1e6:.2f}" in page


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("neck", NECKS)
def test_every_part_counts_on_every_neck(name: str, neck: str) -> None:
    with torch.device("meta"):
        parts = profile(build(f"{name}:resnet18:{neck}", width=0.125), (128, 160)).parts
    assert all(count > 0 for count in parts.values())


@pytest.mark.parametrize("backbone", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_they_train_a_step_on_every_kind_of_backbone(backbone: str) -> None:
    """With the necks in turn, so that each comparator meets each of them."""
    start, necks = KINDS.index(backbone), list(NECKS)
    train_a_step(backbone, [(necks[(start + i) % len(necks)], name) for i, name in enumerate(NAMES)], options=NARROW)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_they_train_a_step_on_every_neck_of_every_backbone(backbone: str) -> None:
    train_a_step(backbone, [(neck, name) for neck in NECKS for name in NAMES], options=NARROW)


def test_necks_give_two_stages_what_they_give_faster_rcnn() -> None:
    for name in ("libra_rcnn", "grid_rcnn"):
        with torch.device("meta"):
            ours, theirs = (build(f"{kind}:resnet18:sspnet", width=0.125) for kind in (name, "faster_rcnn"))
        assert ours.head.rpn.negative_weight is theirs.head.rpn.negative_weight is not None  # type: ignore[union-attr]


EXPORTS: dict[str, dict] = {
    "free_anchor:resnet18": {"norm": "gn"},
    "libra_rcnn:resnet18": {"head": {"hidden": 16, "proposals": 60}},
    "grid_rcnn:resnet18": {"head": {"hidden": 16, "proposals": 60, "point_channels": 4, "grid_depth": 1}},
    "rfb_net:mobilenet_v1": {},
    "pelee:peleenet": {},
    "retinaface:mobilenet_v1": {},
    "s3fd:resnet18": {},
    "pyramidbox:resnet18": {},
    "ssd_fpn:resnet18": {},
    "rfcn:resnet18": {"head": {"proposals": 60, "bins": 3}, "anchors": {"base_scale": 1.0}},
    "rfcn_fpn:resnet18": {"head": {"proposals": 60, "bins": 3}},
}


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("size", [(96, 128), (75, 97)])
def test_the_exported_graph_finds_what_the_detector_finds(name: str, size: tuple[int, int]) -> None:
    detector, config = make_detector(name, **EXPORTS[name])
    _spread_out(detector)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, *size, 3), np.uint8))
    wanted = detector.detect(ImageBatch(pixels.permute(0, 3, 1, 2), (size, size)))
    with torch.no_grad():
        boxes, scores, labels, counts = DetectorGraph(detector).eval()(pixels)
    found = [
        Detections(boxes[i, :n].numpy(), scores[i, :n].numpy(), labels[i, :n].numpy(), size)
        for i, n in enumerate(counts.tolist())
    ]
    assert min(len(w) for w in wanted) > 10
    difference = compare(
        wanted, found, Rule(config.min_score, config.nms or 0.5, config.max_detections, config.suppression)
    )
    assert difference.unmatched == 0, difference.text
    assert difference.ties <= max(2, 0.002 * difference.boxes), difference.text


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTS)
def test_they_run_at_every_batch_and_size_in_every_engine(name: str, tmp_path: Path) -> None:
    detector, _ = make_detector(name, classes=("dot", "dash", "dab"), **EXPORTS[name])
    _spread_out(detector)
    assert_same(differences(detector, tmp_path))


@torch.no_grad()
def _spread_out(detector: Detector) -> None:
    """What begins at next to nothing counts: the attention of Libra, heat maps that are all alike, and means of many bins."""
    for name, parameter in detector.named_parameters():
        if "attention.out" in name:
            parameter.normal_(0, 0.3)
        if "grid.deconv" in name and name.endswith("weight"):
            parameter.mul_(100)
        if "pool.class_maps" in name:
            parameter.mul_(30)


def test_the_command_line_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--size", "64x64", "--plugin", "flyspeck_lab.comparators"]
    assert main(["profile", "grid_rcnn:resnet18", *options]) == 0
    assert "grid_rcnn:resnet18" in capsys.readouterr().out
