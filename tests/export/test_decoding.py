"""Every head's decoding as tensors finds what the head finds image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_exports import make_detector

from flyspeck.errors import UserError
from flyspeck.export.graph import DetectorGraph, check_exportable
from flyspeck.export.parity import Rule, compare
from flyspeck.types import Detections, ImageBatch
from needs import OF_TRANSFORMERS, with_extras

# SSD's narrow maps are dead in places, where many scores are exactly equal: without suppression their order is no matter.
HEADS = {
    "fcos:resnet18": {"norm": "bn"},
    "retinanet:resnet18": {"norm": "gn"},
    "reppoints:resnet18": {"norm": "gn"},
    "faster_rcnn:resnet18": {"head": {"hidden": 16, "proposals": 60}},
    "cascade_rcnn:resnet18": {"head": {"hidden": 16, "proposals": 60}, "nms": 0.3},
    "speck:specknet_n": {"levels": "4-5"},
    "dfine:resnet18": {"head": {"queries": 40, "layers": 1}, "min_score": 0.002},
    "rtdetrv2:resnet18": {"head": {"queries": 40, "layers": 1}, "min_score": 0.002},
    "tinaface:resnet18": {"norm": "bn", "levels": "3-6"},
    "tinaface_gn_dcn:resnet50": {"norm": "gn", "levels": "3-6"},
    "ssd:mobilenet_v1": {
        "levels": None,
        "norm": "bn",
        "max_detections": 3000,
        "nms": 1.0,
        "min_score": 0.8,
        "suppression": "nms",
    },
}


@pytest.mark.parametrize("name", with_extras(HEADS))
@pytest.mark.parametrize(("size", "suppression"), [((96, 128), "tiny"), ((75, 97), "nms")])
def test_the_graph_finds_what_the_detector_finds(name: str, size: tuple[int, int], suppression: str) -> None:
    same_detections(name, {"suppression": suppression, **HEADS[name]}, size)


@pytest.mark.parametrize("name", [name for name in HEADS if not name.startswith(("ssd", *OF_TRANSFORMERS))])
def test_the_graph_finds_it_from_stride_2_on(name: str) -> None:
    other = "bh_resnet50" if name.endswith("resnet50") else "bh_resnet14"
    same_detections(f"{name.partition(':')[0]}:{other}", {**HEADS[name], "levels": "1-5"}, (64, 96))


def same_detections(name: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    detector, config = make_detector(name, **options)
    if name.startswith("ssd") and size == (96, 128):
        size = (300, 300)  # the nominal size, at which SSD takes its table's steps
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, *size, 3), np.uint8))
    wanted = detector.detect(ImageBatch(pixels.permute(0, 3, 1, 2), (size, size)))
    with torch.no_grad():
        boxes, scores, labels, counts = DetectorGraph(detector).eval()(pixels)
    found = [
        Detections(boxes[i, :n].numpy(), scores[i, :n].numpy(), labels[i, :n].numpy(), size)
        for i, n in enumerate(counts.tolist())
    ]
    assert min(len(w) for w in wanted) > 5
    assert len({round(float(s), 4) for s in wanted[0].scores}) > 5  # not all alike: the order means something
    method = detector.head.suppression.method
    rule = Rule(config.min_score, config.nms or 0.5, config.max_detections, method)
    difference = compare(wanted, found, rule)
    assert difference.unmatched == 0, difference.text
    assert difference.ties <= max(2, 0.002 * difference.boxes), difference.text
    assert (np.diff(scores.numpy(), axis=1) <= 0).all()
    assert_allclose(scores[0, counts[0] :].numpy(), 0)


@pytest.mark.parametrize("size", [(96, 128), (75, 97)])
def test_a_head_that_needs_no_suppression_has_none_in_its_graph(size: tuple[int, int]) -> None:
    same_detections("speck:specknet_n", {"head": {"one_to_one": True}, "levels": "4-5"}, size)


def test_private_norms_of_a_tower_are_folded() -> None:
    detector, _ = make_detector("fcos:resnet18", norm="bn")
    graph = DetectorGraph(detector)
    assert not [m for m in graph.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # the caller's keeps its own


def test_what_a_graph_cannot_hold_is_refused() -> None:
    detector, _ = make_detector("fcos:resnet18", soft_nms="linear")
    with pytest.raises(UserError, match="--hard-nms"):
        check_exportable(detector)
