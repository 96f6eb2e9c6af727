"""A training step of a small Faster R-CNN against torchvision's own of the same parts, and against PyTorch's stock kernels.

    python benchmarks/train_step.py [--runs 10] [--precision bf16] [--out FILE]

MobileNetV2 and a pyramid of 64 channels on strides 4-64, anchors of 8-128 px, 1000 candidates a level and 500 proposals, a
box head of 256 on 128 regions: the detector of the laptop-sized tables. Eight random images of 320x256 with ten objects
of 4-14 px each, one thread, forward and backward. `stock` is flyspeck with torchvision's RoIAlign and PyTorch's gradient of
depthwise convolutions. In turn in one process; CPU seconds, medians; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import yaml
from distill_step import CLASSES, build, noise_set, rounds, stepper
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from flyspeck.data.loading import collate
from flyspeck.models.depthwise import DepthwiseConv2d
from flyspeck.models.roi_align import torchvision_roi_align
from flyspeck.train.config import ModelConfig
from flyspeck.train.loop import DetectionObjective
from flyspeck.types import ImageBatch, Targets

RECIPE = Path(__file__).parent / "recipes" / "cpu.yaml"
CHANNELS, HIDDEN = 64, 256


def torchvision_detector() -> nn.Module:
    """Stages 1 to 4 are the ends of blocks 3, 6, 13 and 17, as in flyspeck's MobileNetV2."""
    features = mobilenet_v2(weights=None).features[:18]
    layers = {"3": "0", "6": "1", "13": "2", "17": "3"}
    backbone = BackboneWithFPN(features, layers, [24, 32, 96, 320], CHANNELS, LastLevelMaxPool())
    return FasterRCNN(
        backbone,
        min_size=256,
        max_size=320,
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in (8, 16, 32, 64, 128)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=500,
        box_batch_size_per_image=128,
        box_head=TwoMLPHead(CHANNELS * 49, HIDDEN),
        box_predictor=FastRCNNPredictor(HIDDEN, len(CLASSES) + 1),
    )


class TorchvisionObjective(nn.Module):
    """torchvision's detector behind the interface of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = torchvision_detector().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: ImageBatch, targets: list[Targets]) -> dict[str, Tensor]:
        """The losses by torchvision's names."""
        return self.detector(
            list(images.pixels.repeat(1, 3 // images.pixels.shape[1], 1, 1).float() / 255),
            [{"boxes": t.objects, "labels": t.labels[~t.ignore] + 1} for t in targets],
        )


def with_stock_kernels(step: Callable[[], None]) -> Callable[[], None]:
    def stock() -> None:
        with (
            mock.patch("flyspeck.models.roi_align.weighted_cells", torchvision_roi_align),
            mock.patch.object(DepthwiseConv2d, "_conv_forward", nn.Conv2d._conv_forward),
        ):
            step()

    return stock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bf16 = options.precision == "bf16"
    content = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["model"]
    model = ModelConfig.model_validate({**content, "weights": None, "norm": "none"})
    with tempfile.TemporaryDirectory() as name:
        dataset = noise_set(Path(name), options.batch)
        images, targets, _ = collate([dataset.raw(i) for i in range(options.batch)], divisor=32)
    ours = DetectionObjective(build(model))
    step = stepper(ours, images, targets, bf16)
    times = rounds(
        {
            "flyspeck": step,
            "stock": with_stock_kernels(step),
            "torchvision": stepper(TorchvisionObjective(), images, targets, bf16),
        },
        options.runs,
    )
    result = {
        "batch": options.batch,
        "precision": options.precision,
        "runs": options.runs,
        "cpu_seconds": {side: round(statistics.median(values), 4) for side, values in times.items()},
        "times_faster_than": {
            side: round(statistics.median(t / o for t, o in zip(times[side], times["flyspeck"], strict=True)), 2)
            for side in ("stock", "torchvision")
        },
    }
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
