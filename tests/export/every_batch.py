"""A detector as ONNX and OpenVINO files, run at every batch and at sizes that are no multiples of anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flyspeck.export.batches import BATCHES
from flyspeck.export.onnx import describe, trace, write_onnx
from flyspeck.export.openvino import write_openvino
from flyspeck.export.parity import Difference, Rule, compare
from flyspeck.infer.engines import open_exported
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.detector import Detector

SIZES = ((64, 96), (101, 77), (160, 128), (75, 130), (97, 33))


def differences(
    detector: Detector, folder: Path, *, sizes: Sequence[tuple[int, int]] = SIZES, openvino: bool = True
) -> dict[str, Difference]:
    """By engine, batch and size: the exported file against the detector."""
    model, told = trace(detector), describe(detector, {})
    write_onnx(model, folder / "model.onnx", told)
    files = [folder / "model.onnx"]
    if openvino:
        write_openvino(model, folder / "model.xml", told)
        files.append(folder / "model.xml")
    suppression = detector.head.suppression
    rule = Rule(suppression.score, suppression.iou, suppression.max_detections)
    eager, engines = TorchModel(detector), {file.suffix: open_exported(file) for file in files}
    found = {}
    for height, width in sizes:
        windows = list(np.random.default_rng(height).integers(0, 256, (max(BATCHES), height, width, 3), np.uint8))
        wanted = [eager([window])[0] for window in windows]
        for name, engine in engines.items():
            for batch in BATCHES:
                key = f"{name} {batch}x{height}x{width}"
                found[key] = compare(wanted[:batch], engine(windows[:batch]), rule)
    return found


def assert_same(found: dict[str, Difference]) -> None:
    """All alike, and more than nothing was compared."""
    for key, difference in found.items():
        assert difference.boxes > 5, key
        assert difference.unmatched == 0, f"{key}: {difference.text}"
        assert difference.ties <= max(2, 0.002 * difference.boxes), f"{key}: {difference.text}"
