"""The parts of the traced graph by themselves: sizes after a factor, what goes in, and what is refused before any tracing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_allclose
from tiny_exports import make_detector
from torch.nn import functional as F

from flyspeck.errors import UserError
from flyspeck.export.graph import DetectorGraph, FixedResize, check_exportable
from flyspeck.export.onnx import as_onnx
from flyspeck.export.proof import ExportOptions, check_options, format_by_ending, prepared, with_hard_nms
from flyspeck.models.dynamic.pooling import resized
from flyspeck.models.fake_quantised import fake_quantise


@pytest.mark.parametrize("factor", [0.25, 0.33, 0.5, 0.75, 1, 1.5, 2])
def test_a_fixed_factor_gives_the_sizes_that_the_detector_has(factor: float) -> None:
    """In whole numbers, where the detector rounds a product: halves up in both."""
    part = FixedResize(factor)
    for side in range(2, 60):
        x = torch.arange(side * (side + 3), dtype=torch.float32).reshape(1, 1, side, side + 3)
        size = resized(side, factor), resized(side + 3, factor)
        assert tuple(part(x).shape[-2:]) == size, side
    wanted = x if factor == 1 else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(part(x), wanted, rtol=0, atol=0)


def test_grey_images_go_into_a_network_of_three_channels() -> None:
    detector, _ = make_detector("fcos:resnet18", norm="bn", head={"depth": 1})
    graph = DetectorGraph(detector)
    colour = torch.randint(0, 256, (1, 8, 9, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = graph.normalised(colour)
    mean, std = (getattr(detector.pixel_norm, name).flatten().numpy() for name in ("mean", "std"))
    wanted = (colour[0].numpy() / 255 - mean) / std
    assert_allclose(seen[0].permute(1, 2, 0).numpy(), wanted, atol=1e-5)
    graph.mean, graph.per_std = graph.mean[:, :1], graph.per_std[:, :1]
    grey = graph.normalised(colour[..., :1])
    assert tuple(grey.shape) == (1, 3, 8, 9)
    for channel in grey[0]:
        torch.testing.assert_close(channel, seen[0, 0], rtol=0, atol=0)


def test_what_no_graph_holds_is_said_before_it_is_traced() -> None:
    detector, _ = make_detector("fcos:resnet18", norm="bn", head={"depth": 1})
    check_exportable(detector)
    rule = detector.head.suppression
    detector.head.suppression = replace(rule, score=0.0)
    check_exportable(detector)
    detector.head.suppression = replace(rule, score=-0.1)
    with pytest.raises(UserError, match=r"a score threshold of -0\.1; 0 or more"):
        check_exportable(detector)


@pytest.mark.parametrize("iou", [0.0, -0.5, 1.01, float("nan")])
def test_an_iou_that_suppresses_nothing_sensible(iou: float) -> None:
    detector, _ = make_detector("fcos:resnet18", norm="bn", head={"depth": 1}, soft_nms="linear")
    with pytest.raises(UserError, match="choose one above 0 and up to 1"):
        with_hard_nms(detector, iou)
    for good in (0.01, 1.0):
        rule = with_hard_nms(detector, good).head.suppression
        assert (rule.iou, rule.soft) == (good, None)


def test_what_was_trained_for_int8_becomes_int8_alone() -> None:
    detector, _ = make_detector("fcos:resnet18", norm="bn", head={"depth": 1})
    assert prepared(detector, ExportOptions()) is detector
    fake_quantise(detector)
    with pytest.raises(UserError, match="add --int8"):
        prepared(detector, ExportOptions())
    with pytest.raises(UserError, match="LiteRT's INT8 has ranges of its own"):
        prepared(detector, ExportOptions(format="litert", int8=True))
    assert prepared(detector, ExportOptions(int8=True)) is detector


@pytest.mark.parametrize(("name", "kind"), [("a.onnx", "onnx"), ("a.XML", "openvino"), ("b.tflite", "litert")])
def test_an_ending_says_the_format(name: str, kind: str, tmp_path: Path) -> None:
    assert format_by_ending(Path(name)) == kind
    check_options(tmp_path / name, ExportOptions(format=kind))
    other = "onnx" if kind != "onnx" else "openvino"
    with pytest.raises(UserError, match=f"is a name for {kind}, and --to says {other}"):
        check_options(tmp_path / name, ExportOptions(format=other))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 12}, "pixels of 12 bits"),
        ({"tile": (64, 64)}, "onnx takes every size"),
        ({"check_limit": 0}, "no images to check or calibrate on"),
        ({"calibration_tiles": 0}, "no images to check or calibrate on"),
    ],
)
def test_what_cannot_be_asked_for(options: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        check_options(tmp_path / "a.onnx", replace(ExportOptions(), **options))
    for fine in ({"bits": 8}, {"bits": 16}, {"bits": None}, {"check_limit": 1}, {"calibration_tiles": 1}):
        check_options(tmp_path / "a.onnx", replace(ExportOptions(), **fine))
    check_options(tmp_path / "a.tflite", ExportOptions(format="litert", tile=(64, 64)))


def test_exporting_says_nothing_by_itself(capfd: pytest.CaptureFixture[str]) -> None:
    """PyTorch's exporter counts its steps on the output where it may, among lines that programs read (`--json -`)."""
    as_onnx(torch.nn.ReLU(), [torch.zeros(2, 3, 8, 9)], inputs=["map"], outputs=["map above 0"])
    assert capfd.readouterr() == ("", "")
