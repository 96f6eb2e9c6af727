"""Hosts on what starves or breaks detectors: boxes of 1-8 px, nothing, only ignore regions, a crowd of 800."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.dfine import dfine
from flyspeck.models.heads.faster_rcnn import FasterRCNNHead, faster_rcnn
from flyspeck.models.heads.retinanet import RetinaNetHead, retinanet
from flyspeck.models.heads.rtdetrv2 import rtdetrv2
from flyspeck.models.heads.speck import speck
from flyspeck.types import ImageBatch, Targets
from needs import with_extras

HEIGHT, WIDTH = 96, 128
HOSTS: dict[str, Callable[..., Detector]] = {
    "retinanet": retinanet,
    "faster_rcnn": faster_rcnn,
    "speck": speck,
    "speck_one_to_one": partial(speck, one_to_one=True),
    "dfine": dfine,
    "rtdetrv2": rtdetrv2,
}
NAMES = with_extras(HOSTS)
EXTRA: dict[str, dict[str, int]] = {
    "faster_rcnn": {"hidden": 32, "samples": 64},
    "dfine": {"layers": 1, "queries": 40, "noise_queries": 8},
    "rtdetrv2": {"layers": 1, "queries": 40, "noise_queries": 8},
}


def build(host: str, channels: int = 3) -> Detector:
    torch.manual_seed(0)
    norm = PixelNorm([0.5] * channels, [0.25] * channels)
    return HOSTS[host](
        mobilenet_v2(width=0.25), classes="ab", pixel_norm=norm, channels=16, **EXTRA.get(host, {"depth": 1})
    )


def images(count: int = 1, channels: int = 3, dtype: torch.dtype = torch.uint8) -> ImageBatch:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, channels, HEIGHT, WIDTH), generator=generator)
    pixels = pixels.to(torch.uint8) if dtype == torch.uint8 else pixels.float() / 255
    return ImageBatch(pixels, ((HEIGHT, WIDTH),) * count)


def targets(boxes: Tensor, ignore: Tensor | None = None) -> Targets:
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else ignore
    return Targets(boxes, torch.where(ignore, -1, torch.arange(len(boxes)) % 2), ignore)


def step(detector: Detector, batch: ImageBatch, truth: list[Targets]) -> dict[str, float]:
    losses = detector.losses(batch, truth)
    torch.stack([*losses.values()]).sum().backward()
    for parameter in detector.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    return {name: float(value.detach()) for name, value in losses.items()}


@pytest.mark.parametrize("host", NAMES)
@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_boxes_of_a_few_pixels_are_learnt(host: str, side: int) -> None:
    box = torch.tensor([[40.5, 30.25, 40.5 + side, 30.25 + side]])
    losses = step(build(host), images(), [targets(box)])
    assert losses["rpn_box" if host == "faster_rcnn" else "box"] > 0  # some anchor took it


@pytest.mark.parametrize("host", NAMES)
def test_a_crowd_an_empty_image_and_only_ignore_regions_in_one_batch(host: str) -> None:
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(800, 2, generator=generator) * torch.tensor([WIDTH - 8.0, HEIGHT - 8.0])
    crowd = torch.cat([corner, corner + 1 + 7 * torch.rand(800, 2, generator=generator)], 1)
    nothing = torch.zeros(0, 4)
    region = torch.tensor([[10.0, 10, 60, 60]])
    truth = [targets(crowd), targets(nothing), targets(region, torch.tensor([True]))]
    assert all(value >= 0 for value in step(build(host), images(3), truth).values())


@pytest.mark.parametrize("host", NAMES)
def test_a_batch_without_any_object_trains(host: str) -> None:
    losses = step(build(host), images(2), [targets(torch.zeros(0, 4))] * 2)
    assert losses["box"] == 0
    assert losses["classification"] > 0


def test_retinanet_does_not_punish_what_lies_under_an_ignore_region() -> None:
    assert isinstance(build("retinanet").head, RetinaNetHead)
    _spares("retinanet")


def test_speck_does_not_punish_what_lies_under_an_ignore_region() -> None:
    _spares("speck")
    _spares("speck_one_to_one", "one_classification")


@pytest.mark.parametrize("host", with_extras(["dfine", "rtdetrv2"]))
def test_a_detection_transformer_does_not_punish_what_lies_under_an_ignore_region(host: str) -> None:
    _spares(host)


def _spares(host: str, loss: str = "classification") -> None:
    detector = build(host)
    whole = targets(torch.tensor([[0.0, 0, WIDTH, HEIGHT]]), torch.tensor([True]))
    plain, under = step(detector, images(), [targets(torch.zeros(0, 4))]), step(detector, images(), [whole])
    # Only anchors that reach out of the image by more than half are left.
    assert under[loss] < 0.1 * plain[loss]


def test_faster_rcnn_draws_no_negatives_under_an_ignore_region() -> None:
    head = build("faster_rcnn").head
    assert isinstance(head, FasterRCNNHead)
    proposals = torch.tensor([[5.0, 5, 15, 15], [70, 70, 80, 80]])
    region = targets(torch.tensor([[0.0, 0, 30, 30]]), torch.tensor([True]))
    regions, label, _ = head.sample(proposals, region)
    assert regions.tolist() == [[70, 70, 80, 80]]
    assert label.tolist() == [2]  # background


@pytest.mark.parametrize("host", NAMES)
@pytest.mark.parametrize(("channels", "dtype"), [(1, torch.uint8), (1, torch.float32), (3, torch.uint8)])
def test_channels_and_depths(host: str, channels: int, dtype: torch.dtype) -> None:
    detector = build(host, channels)
    box = torch.tensor([[40.0, 30.0, 48.0, 38.0]])
    step(detector, images(1, channels, dtype), [targets(box)])
    (found,) = detector.eval().detect(images(1, channels, dtype))
    assert found.image_size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("host", NAMES)
def test_padding_changes_nothing(host: str) -> None:
    """An image alone and the same image padded in a batch give the same detections, up to the border's reach."""
    detector = build(host).eval()
    alone = images()
    padded = torch.full((1, 3, HEIGHT + 32, WIDTH + 64), 77, dtype=torch.uint8)
    padded[:, :, :HEIGHT, :WIDTH] = alone.pixels
    one = detector.pixel_norm(alone)
    two = detector.pixel_norm(ImageBatch(padded, alone.sizes))
    assert torch.equal(two[:, :, :HEIGHT, :WIDTH], one)
    assert int(two[:, :, HEIGHT:].count_nonzero()) == int(two[:, :, :, WIDTH:].count_nonzero()) == 0
    (found,) = detector.detect(ImageBatch(padded, alone.sizes))
    assert found.image_size == (HEIGHT, WIDTH)
    assert (found.boxes[:, 2] <= WIDTH).all()
    assert (found.boxes[:, 3] <= HEIGHT).all()
