"""The sets that backbones are pre-trained on: CIFAR-100, ImageNet at 32x32 and ImageNet, in their authors' files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fakes.drawing import write_image, write_pickle


def write_cifar100(root: Path) -> None:
    """`train`, `test` and `meta` of the python version."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3072), dtype=np.uint8)
    for name in ("train", "test"):
        write_pickle(root / name, {b"data": pixels, b"fine_labels": [0, 1, 2, 3] * 2, b"coarse_labels": [0] * 8})
    names = {b"fine_label_names": [b"apple", b"bear", b"cup", b"dog"], b"coarse_label_names": [b"x"]}
    write_pickle(root / "meta", names)


def write_imagenet32(root: Path) -> None:
    """Ten training files and one for validation; labels count from 1."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    for name in (*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"):
        write_pickle(root / name, {"data": pixels, "labels": [1, 1000], "mean": np.zeros(3072)})


def write_imagenet(root: Path) -> None:
    """A folder a class."""
    for split in ("train", "val"):
        write_image(root / split / "n01440764" / "a.JPEG", 40, 50)
        write_image(root / split / "n01443537" / "b.JPEG", 50, 40)
