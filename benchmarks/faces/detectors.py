"""Two published face detectors as callables: images (H, W, 3) RGB uint8 to `Detections` of the one class `face`.

* YuNet-n (Wu et al., 2023; OpenCV Zoo, Apache-2.0), an ONNX file with inputs of any size, by onnxruntime.
* RetinaFace with MobileNetV1-0.25 (Deng et al., 2020; weights of biubug6, MIT). The network is written out here from the
  paper and from the names and shapes of its weights: a backbone of depthwise convolutions, a pyramid at strides 8, 16 and 32,
  a context block (SSH), two anchors a cell. Anchors and activation are not in the file. Of twelve images with 69 faces, plain
  ReLUs and anchors of 10 to 256 px find 63 at a score of 0.4, leaky ReLUs and anchors of 16 to 512 px (the author's other
  release) find 9; so the first it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from flyspeck.models.weights import read_weights
from flyspeck.types import Detections

SCORE, OVERLAP = 0.02, 0.4
ANCHORS = ((10, 20), (32, 64), (128, 256))
"""Of RetinaFace, in px, at strides 8, 16 and 32."""


def as_detections(boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Detections:
    """Suppressed, clipped to the image of `size` (H, W), best first."""
    keep = scores > SCORE
    boxes, scores = boxes[keep], scores[keep]
    rows = nms(boxes, scores, OVERLAP)[:500]
    limit = torch.tensor([size[1], size[0]] * 2)
    clipped = torch.minimum(boxes[rows].clamp(min=0), limit)
    return Detections(clipped.numpy(), scores[rows].numpy(), np.zeros(len(rows), np.int64), size, ("face",))


def padded(image: np.ndarray, divisor: int = 32) -> np.ndarray:
    """Zeros at the bottom and on the right, to multiples of `divisor`."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % divisor), (0, -width % divisor), (0, 0)))


class YuNet:
    """`YuNet(path)(images)`."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, images: list[np.ndarray]) -> list[Detections]:
        """One `Detections` an image."""
        return [self._one(image) for image in images]

    def _one(self, image: np.ndarray) -> Detections:
        seen = padded(image)
        blob = seen[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32)  # blue, green, red, 0 to 255
        outputs = dict(zip(self.names, self.session.run(None, {"input": blob}), strict=True))
        boxes, scores = [], []
        for stride in (8, 16, 32):
            rows, columns = seen.shape[0] // stride, seen.shape[1] // stride
            y, x = np.divmod(np.arange(rows * columns), columns)
            shift = outputs[f"bbox_{stride}"][0]
            center = (np.stack([x, y], 1) + shift[:, :2]) * stride
            half = np.exp(shift[:, 2:]) * stride / 2
            boxes.append(np.concatenate([center - half, center + half], 1))
            product = outputs[f"cls_{stride}"][0, :, 0].clip(0, 1) * outputs[f"obj_{stride}"][0, :, 0].clip(0, 1)
            scores.append(np.sqrt(product))
        return as_detections(
            torch.from_numpy(np.concatenate(boxes)).float(),
            torch.from_numpy(np.concatenate(scores)).float(),
            image.shape[:2],
        )


class RetinaFace:
    """`RetinaFace(path)(images)`."""

    def __init__(self, path: Path) -> None:
        self.weights = read_weights(path)

    def __call__(self, images: list[np.ndarray]) -> list[Detections]:
        """One `Detections` an image."""
        with torch.inference_mode():
            return [self._one(image) for image in images]

    def _block(self, x: Tensor, name: str, *, stride: int = 1, active: bool = True, at: int = 0) -> Tensor:
        """Convolution `name.at`, batch norm `name.(at + 1)`, ReLU; depthwise where its weight says so."""
        w = self.weights
        kernel = w[f"{name}.{at}.weight"]
        groups = x.shape[1] // kernel.shape[1]
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=groups)
        n = f"{name}.{at + 1}"
        x = F.batch_norm(x, w[f"{n}.running_mean"], w[f"{n}.running_var"], w[f"{n}.weight"], w[f"{n}.bias"])
        return F.relu(x) if active else x

    def _backbone(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage, strides in (("stage1", (2, 1, 2, 1, 2, 1)), ("stage2", (2, 1, 1, 1, 1, 1)), ("stage3", (2, 1))):
            for i, stride in enumerate(strides):
                name = f"body.{stage}.{i}"
                x = self._block(x, name, stride=stride)
                if f"{name}.3.weight" in self.weights:  # depthwise, then pointwise
                    x = self._block(x, name, at=3)
            maps.append(x)
        return maps

    def _pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        one, two, three = (self._block(m, f"fpn.output{i + 1}") for i, m in enumerate(maps))
        two = self._block(two + F.interpolate(three, size=two.shape[-2:], mode="nearest"), "fpn.merge2")
        one = self._block(one + F.interpolate(two, size=one.shape[-2:], mode="nearest"), "fpn.merge1")
        return [one, two, three]

    def _context(self, x: Tensor, name: str) -> Tensor:
        small = self._block(x, f"{name}.conv3X3", active=False)
        first = self._block(x, f"{name}.conv5X5_1")
        middle = self._block(first, f"{name}.conv5X5_2", active=False)
        large = self._block(self._block(first, f"{name}.conv7X7_2"), f"{name}.conv7x7_3", active=False)
        return F.relu(torch.cat([small, middle, large], 1))

    def _one(self, image: np.ndarray) -> Detections:
        seen = padded(image)
        x = torch.from_numpy(np.ascontiguousarray(seen[..., ::-1])).permute(2, 0, 1)[None].float()
        x = x - torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)
        boxes, scores = [], []
        for i, m in enumerate(self._pyramid(self._backbone(x))):
            feature = self._context(m, f"ssh{i + 1}")
            out = [
                F.conv2d(feature, self.weights[f"{head}.{i}.conv1x1.weight"], self.weights[f"{head}.{i}.conv1x1.bias"])
                for head in ("ClassHead", "BboxHead")
            ]
            logits, shift = (o[0].permute(1, 2, 0).reshape(-1, width) for o, width in zip(out, (2, 4), strict=True))
            rows, columns = m.shape[-2:]
            stride = 8 * 2**i
            y, x_ = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            point = ((torch.stack([x_, y], -1).reshape(-1, 1, 2) + 0.5) * stride).expand(-1, 2, 2).reshape(-1, 2)
            size = torch.tensor(ANCHORS[i], dtype=torch.float32).repeat(rows * columns)[:, None]
            center = point + 0.1 * shift[:, :2] * size
            half = size * torch.exp(0.2 * shift[:, 2:]) / 2
            boxes.append(torch.cat([center - half, center + half], 1))
            scores.append(logits.softmax(1)[:, 1])
        return as_detections(torch.cat(boxes), torch.cat(scores), image.shape[:2])
