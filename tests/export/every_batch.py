"""A detector as ONNX and OpenVINO files, run plainly at every batch and at sizes that are no multiples of anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flyspeck.data.enlarge import Enlarge
from flyspeck.export.frame import Frame
from flyspeck.export.onnx import describe
from flyspeck.export.package import traced, write_all
from flyspeck.export.parity import Difference, Rule, compare
from flyspeck.export.plain_run import BATCHES, PlainRun, reference_of
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.detector import Detector

SIZES = ((67, 97), (101, 77), (163, 127), (75, 130), (97, 33))


def differences(
    detector: Detector, folder: Path, *, sizes: Sequence[tuple[int, int]] = SIZES, openvino: bool = True
) -> dict[str, Difference]:
    """By engine, batch and size: the exported file against the detector."""
    graph, by_factor = traced(detector)
    told = describe(detector, {})
    files = [folder / "model.onnx", *([folder / "model.xml"] if openvino else [])]
    for file in files:
        write_all(graph, by_factor, file, told, Frame.of(detector, Enlarge()))
    suppression = detector.head.suppression
    rule = Rule(suppression.score, suppression.iou, suppression.max_detections)
    eager, engines = TorchModel(detector), {file.suffix: PlainRun(file, told) for file in files}
    channels = int(detector.pixel_norm.mean.shape[1])
    found = {}
    for height, width in sizes:
        shape = (max(BATCHES), height, width, channels)
        images = list(np.random.default_rng(height).integers(0, 256, shape, np.uint8))
        wanted = reference_of(eager, images, rule, enlarge=Enlarge())
        for name, engine in engines.items():
            for batch in BATCHES:
                key = f"{name} {batch}x{height}x{width}"
                found[key] = compare(wanted[:batch], engine(images[:batch]), rule)
    return found


def assert_same(found: dict[str, Difference]) -> None:
    """All alike, and more than nothing was compared."""
    for key, difference in found.items():
        assert difference.boxes > 5, key
        assert difference.unmatched == 0, f"{key}: {difference.text}"
        assert difference.ties <= max(2, 0.002 * difference.boxes), f"{key}: {difference.text}"
