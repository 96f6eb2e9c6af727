"""A detector as ONNX and OpenVINO files, run plainly at every batch and at sizes that are no multiples of anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.enlarge import described_enlargement
from flyspeck.errors import UserError
from flyspeck.export.frame import Frame
from flyspeck.export.onnx import describe
from flyspeck.export.package import traced, write_all
from flyspeck.export.parity import Difference, Rule, compare
from flyspeck.export.plain_run import BATCHES, PlainRun, reference_of
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.detector import Detector

SIZES = ((67, 97), (101, 77), (163, 127), (75, 130), (97, 33))


Images = Sequence[Sequence[np.ndarray]]
"""Of each size some images (H, W, C)."""


def noise(sizes: Sequence[tuple[int, int]], channels: int) -> Images:
    """As many images of each size as the largest batch holds."""
    return [list(np.random.default_rng(h).integers(0, 256, (max(BATCHES), h, w, channels), np.uint8)) for h, w in sizes]


def differences(
    detector: Detector,
    folder: Path,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    openvino: bool = True,
    description: Mapping[str, Any] | None = None,
    images: Images | None = None,
) -> dict[str, Difference]:
    """By engine, batch and size: the exported file against `flyspeck predict` of the detector; without `images` on noise."""
    graph, by_factor = traced(detector)
    told, enlarge = describe(detector, description or {}), described_enlargement(description or {})
    files = [folder / "model.onnx", *([folder / "model.xml"] if openvino else [])]
    for file in files:
        write_all(graph, by_factor, file, told, Frame.of(detector, enlarge))
    suppression = detector.head.suppression
    rule = Rule(suppression.score, suppression.iou, suppression.max_detections, suppression.method)
    eager, engines = TorchModel(detector), {file.suffix: PlainRun(file, told) for file in files}
    found = {}
    for own in images or noise(sizes, int(detector.pixel_norm.mean.shape[1])):
        reference = reference_of(eager, own, rule, enlarge=enlarge)
        height, width = own[0].shape[:2]
        for name, engine in engines.items():
            for batch in BATCHES:
                rows = [i % len(own) for i in range(batch)]
                try:
                    answer = engine([own[row] for row in rows])
                except UserError as error:  # no refusal: the file was made
                    raise AssertionError(f"{name} {batch}x{height}x{width}: {error.what}") from error
                found[f"{name} {batch}x{height}x{width}"] = compare([reference[row] for row in rows], answer, rule)
    return found


def assert_same(found: dict[str, Difference]) -> None:
    """All alike, and more than nothing was compared."""
    for key, difference in found.items():
        assert difference.boxes > 5, key
        assert difference.unmatched == 0, f"{key}: {difference.text}"
        assert difference.ties <= max(2, 0.002 * difference.boxes), f"{key}: {difference.text}"
