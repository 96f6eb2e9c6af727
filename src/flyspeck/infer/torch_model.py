"""A trained `Detector` as the callable that the predictor runs. The one module of `infer` that needs torch."""

from __future__ import annotations

import copy
import threading
from typing import Literal

import numpy as np
import torch

from flyspeck.data.images import match_channels
from flyspeck.data.padding import padded_side
from flyspeck.devices import torch_device
from flyspeck.errors import UserError
from flyspeck.infer.padding import padded, within
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.pooling import is_dynamic
from flyspeck.models.dynamic.router import FactorRouter, FoldedFactors
from flyspeck.models.fold import fold_norms, probe_images
from flyspeck.types import Detections, ImageBatch

_entering = threading.Lock()


class TorchModel:
    """Windows (H, W, C) uint8 or uint16, all of one size, to their `Detections`, on one device.

    The norms of a copy are folded into its convolutions. Grey windows are repeated for a colour model and colour ones
    turned to luma (ITU-R 601) for a grey one. `bf16` runs the network under autocast: faster on recent CPUs and GPUs, at
    slightly different scores.
    """

    def __init__(
        self, detector: Detector, *, device: str = "auto", precision: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise UserError(f"unknown precision '{precision}'", fix="fp32 or bf16")
        self.device = torch_device(device)
        self.precision = precision
        self.classes = detector.classes
        self.channels = int(detector.pixel_norm.mean.shape[1])
        self.divisor, self._smallest = detector.divisor, detector.smallest_side
        self.fill = detector.pixel_norm.fill
        self._limit = detector.detection_limit
        self._threads, self._share = 0, 1
        # The caller's keeps its norms, and may train on.
        mine: Detector | FoldedFactors = (
            _folded(detector) if not is_dynamic(detector) else FoldedFactors(detector).eval()
        )
        self.detector = mine.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def taken(self) -> dict[float, int]:
        """Of a detector that chooses its factor: how many windows took which so far; empty for any other."""
        router = self.detector.router
        if not isinstance(router, FactorRouter):
            return {}
        return dict(zip(router.switch.factors, router.taken.tolist(), strict=True))

    @property
    def threads(self) -> int:
        """PyTorch's on the CPU; 1 on another device, and where a detector counts what it takes: its passes come one at a time."""
        alone = self.device.type != "cpu" or self.detector.router is not None
        return 1 if alone else self._threads or torch.get_num_threads()

    def split(self, passes: int) -> None:
        """From now on so many calls may come at a time, each with its share of PyTorch's threads."""
        self._threads = self._threads or torch.get_num_threads()
        self._share = max(1, self._threads // passes)

    def enter(self) -> None:
        """Give the calling thread its share. PyTorch's number of threads is each thread's own, and one for those that come."""
        with _entering:
            everyone = torch.get_num_threads()
            torch.set_num_threads(self._share)
            restoring = threading.Thread(target=torch.set_num_threads, args=(everyone,))
            restoring.start()
            restoring.join()

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        """Detections of each window in its own frame."""
        batch = self.to_images(windows)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.detector.detect(batch)
        return [within(one, (w.shape[0], w.shape[1])) for one, w in zip(found, windows, strict=True)]

    def detection_limit(self, size: tuple[int, int]) -> int:
        """Detections that a window of `size` (H, W) can have at most."""
        height, width = (padded_side(side, divisor=self.divisor, smallest=self._smallest) for side in size)
        return self._limit((height, width))

    def to_images(self, windows: list[np.ndarray]) -> ImageBatch:
        """Windows of one size as the network's input: its channels, padded with each band's mean, as in training."""
        rule = {"divisor": self.divisor, "smallest": self._smallest, "fill": self.fill}
        pixels = to_batch([padded(match_channels(window, self.channels), **rule) for window in windows]).to(self.device)
        # An exported graph knows no more than this size either: both clip to the window itself afterwards.
        return ImageBatch(pixels, ((int(pixels.shape[2]), int(pixels.shape[3])),) * len(windows))


def _folded(detector: Detector) -> Detector:
    """A copy for inference, norms folded into the convolutions."""
    mine = copy.deepcopy(detector).eval()
    images = probe_images(int(mine.pixel_norm.mean.shape[1]), 128, device=mine.pixel_norm.mean.device)
    fold_norms(mine, lambda: mine.pyramid(images))
    return mine


def to_batch(windows: list[np.ndarray]) -> torch.Tensor:
    """Windows (H, W, C) of one size to `(B, C, H, W)`, channels-last in memory: uint8, or float in [0, 1] from uint16."""
    batch = torch.from_numpy(np.stack(windows)) if windows[0].dtype == np.uint8 else None
    if batch is None:
        batch = torch.from_numpy(np.stack(windows).astype(np.float32) / np.float32(65535))
    return batch.permute(0, 3, 1, 2)
