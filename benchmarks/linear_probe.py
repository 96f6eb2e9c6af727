"""Are a backbone's weights loaded as they were trained? `python benchmarks/linear_probe.py --data tinyimagenet32 [--classes 40]`.

Images of 32 px, enlarged to `--side`, go once through each frozen backbone; a linear classifier on the mean of its last map is
fitted to a few thousand of them and measured on others. A network whose padding, pixel statistics or order of tensors were
wrong would lose most of what it knows; random weights are measured beside it.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from verdict import RESULTS, at_least, conclude

from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.build import build_backbone
from flyspeck.models.names import find_backbone


def images_of(file: Path, classes: int, each: int) -> tuple[np.ndarray, Tensor]:
    """`(N, 32, 32, 3)` uint8 and their labels: the first `each` of the first `classes`."""
    packed = np.load(file)
    labels, offsets, data = packed["labels"], packed["offsets"], packed["data"]
    rows = np.concatenate([np.flatnonzero(labels == label)[:each] for label in range(classes)])
    read = [
        np.asarray(Image.open(io.BytesIO(data[offsets[r] : offsets[r + 1]].tobytes())).convert("RGB")) for r in rows
    ]
    return np.stack(read), torch.as_tensor(labels[rows].astype(np.int64))


@torch.no_grad()
def features(name: str, weights: str | None, images: np.ndarray, side: int) -> Tensor:
    """`(N, C)`: the mean over the last map of the enlarged images, normalised as the backbone's weights want it."""
    torch.manual_seed(0)
    backbone: StagedBackbone = build_backbone(name, weights=weights).eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in find_backbone(name).pixels())
    found = []
    for start in range(0, len(images), 32):
        pixels = torch.as_tensor(images[start : start + 32]).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)
        found.append(backbone((pixels - mean) / std)[-1].mean((2, 3)))
    return torch.cat(found)


def probe(train: Tensor, labels: Tensor, val: Tensor, val_labels: Tensor, classes: int, decay: float = 3e-3) -> float:
    """Accuracy in percent of a linear classifier on standardised features."""
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    train, val = (train - mean) / std, (val - mean) / std
    weight = torch.zeros(train.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(train @ weight + bias, labels) + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return 100 * float(((val @ weight + bias).argmax(1) == val_labels).float().mean())


def main() -> None:
    """Measures MobileNetV2, EfficientNet-Lite0 and Lite2, and Lite0 with random weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder of train.npz and val.npz.")
    parser.add_argument(
        "--mobilenet", required=True, help="A file of torchvision's MobileNetV2, or the name of its weights."
    )
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--each", type=int, default=60, help="Images of a class to learn from.")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULTS / "linear_probe.json")
    args = parser.parse_args()
    train, labels = images_of(args.data / "train.npz", args.classes, args.each)
    val, val_labels = images_of(args.data / "val.npz", args.classes, 25)
    print(
        f"{len(train)} images to learn from, {len(val)} to measure on, {args.classes} classes, {args.side} px",
        flush=True,
    )
    accuracy: dict[str, float] = {}
    rows = [
        ("mobilenet_v2", args.mobilenet),
        ("efficientnet_lite0", "package:efficientnet_lite0"),
        ("efficientnet_lite2", "package:efficientnet_lite2"),
        ("efficientnet_lite0", None),
    ]
    for name, weights in rows:
        began = time.perf_counter()
        known, seen = (features(name, weights, images, args.side) for images in (train, val))
        key = name if weights is not None else f"{name}, random weights"
        accuracy[key] = probe(known, labels, seen, val_labels, args.classes)
        print(f"{key}: {accuracy[key]:.1f} % ({time.perf_counter() - began:.0f} s)", flush=True)
    base = accuracy["mobilenet_v2"]
    claims = [
        at_least(f"{name} within 5 points of MobileNetV2", accuracy[name], base - 5, " %")
        for name in ("efficientnet_lite0", "efficientnet_lite2")
    ]
    conclude({"images": [len(train), len(val)], "side": args.side, "accuracy": accuracy}, claims, args.out)


if __name__ == "__main__":
    main()
