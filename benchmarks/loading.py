"""What the data side of training costs per image in CPU time of one thread: decoding, each augmentation, padding.

    python benchmarks/loading.py ANNOTATIONS [--size 256 320] [--channels 1|3] [--images 200]

Images are resized to `--size` first (the benchmark set is half the size of its source), except for the decoding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from flyspeck.data.copy_paste import CopyPaste
from flyspeck.data.loading import DetectionDataset, collate
from flyspeck.data.readers import read_annotations
from flyspeck.data.transforms import (
    Compose,
    Mosaic,
    Photometric,
    RandomFlip,
    RandomScaleCrop,
    RandomTurn,
    Transform,
    resize,
)


def milliseconds(function: Callable[[int], object], repeats: int) -> float:
    function(0)  # first calls import codecs
    start = time.process_time()
    for number in range(repeats):
        function(number)
    return (time.process_time() - start) / repeats * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320))
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3)
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = read_annotations(options.annotations)
    table = table.select_images(np.linspace(0, len(table) - 1, options.images).astype(int))
    plain = DetectionDataset(table, channels=options.channels)
    cached = DetectionDataset(table, channels=options.channels, cache="ram")
    size = tuple(options.size)
    samples = [resize(cached.raw(number), size) for number in range(options.images)]
    rng = np.random.default_rng(0)

    def another(rng: np.random.Generator, index: int | None = None) -> object:
        return samples[int(rng.integers(len(samples)))]

    usual = Compose((CopyPaste(0.5), RandomFlip(), RandomScaleCrop((0.8, 1.5), size), Photometric()))
    steps: dict[str, Transform] = {
        "flip": RandomFlip(0.5, 0.5),
        "quarter turn": RandomTurn(),
        "scale 0.8-1.5 + crop": RandomScaleCrop((0.8, 1.5), size),
        "photometric": Photometric(),
        "copy-paste (always)": CopyPaste(1.0),
        "mosaic (always)": Mosaic(size, 1.0),
        "copy-paste 0.5 + flip + scale + crop + photometric": usual,
    }
    print(f"{options.images} images, {options.channels} channel(s), augmented at {size[1]} x {size[0]}, one thread")
    height, width = samples[0].pixels.shape[1:]
    print(f"{milliseconds(plain.raw, options.images):8.2f} ms  read and decode ({width} x {height} file)")
    print(f"{milliseconds(cached.raw, options.images):8.2f} ms  from the cache in memory")
    for name, step in steps.items():
        spent = milliseconds(lambda n, step=step: step(samples[n % len(samples)], rng, another), 3 * options.images)
        print(f"{spent:8.2f} ms  {name}")
    print(
        f"{milliseconds(lambda n: collate(samples[:8], divisor=32), 100) / 8:8.2f} ms  padding, per image of a batch of 8"
    )


if __name__ == "__main__":
    main()
