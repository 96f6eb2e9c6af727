"""Integer files run in both engines at every batch and size: OpenVINO's passes for integers lost shapes that others keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from every_batch import SIZES
from every_model import CHOOSING, OPTIONS, names
from tiny_exports import make_detector

from flyspeck.data.enlarge import described_enlargement
from flyspeck.export.frame import Frame
from flyspeck.export.onnx import describe, trace
from flyspeck.export.package import write_all
from flyspeck.export.plain_run import BATCHES, PlainRun
from flyspeck.export.quantize import quantise

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
ONCE = sorted({name.partition(":")[0]: name for name in names() if name != CHOOSING and "timm/" not in name}.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("bands", [1, 3])
def test_an_integer_file_runs_at_every_batch_and_size(name: str, bands: int, tmp_path: Path) -> None:
    head = name.partition(":")[0]
    ssd = {"levels": None, "norm": "bn"}
    detector, _ = make_detector(name, bands=bands, **(ssd if head == "ssd" else OPTIONS.get(head, {})))
    sizes = ((300, 300), SIZES[1]) if head == "ssd" else SIZES[:2]
    random = np.random.default_rng(0)
    graph = quantise(trace(detector), [random.integers(0, 256, (2, *size, bands), np.uint8) for size in sizes])
    told = describe(detector, {})
    counts: list[list[int]] = []
    for ending in ("onnx", "xml"):
        file = tmp_path / f"model.{ending}"
        write_all(graph, {}, file, told, Frame.of(detector, described_enlargement({})))
        run = PlainRun(file, told)
        for height, width in sizes:
            images = list(np.random.default_rng(height).integers(0, 256, (7, height, width, bands), np.uint8))
            counts.append([len(found) for batch in BATCHES for found in run(images[:batch])])
    half = len(sizes)
    assert sum(map(sum, counts)) > 10
    # The engines round integers differently; what is lost is not.
    assert np.sum(counts[:half]) == pytest.approx(np.sum(counts[half:]), rel=0.3)
