"""Pre-training from the disk: whether memory stays flat over a million images, and images a second beside timm's loader.

    python benchmarks/pretrain_reading.py memory --images 1000000
    python benchmarks/pretrain_reading.py speed

`memory`: shards of 32 px JPEGs, a few written and the others links to them, through `pretrain` with a network of 99
weights; the anonymous memory (proportional, of the process and its loader; libraries, which other programs share, are left
out) is read as it goes. `speed`: JPEGs of 500x375 of generated scenes in class folders, at 224 px with the same transforms
in both (crop of .08 to 1 of the area, ratio 3/4 to 4/3, bilinear, mirrored, normalised), one loader process each, in turn,
so that what else the machine does meets both.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from verdict import RESULTS, at_least, at_most, conclude

from flyspeck.data.labelled_files import list_labelled_images
from flyspeck.data.labelled_loading import LabelledLoader
from flyspeck.data.scenes import generate_scene
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.train import pretrain as training
from flyspeck.train.config import TrainConfig
from flyspeck.types import FeatureSpec

WRITTEN, EACH = 10, 5000


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def write_shards(root: Path, images: int) -> None:
    """`train/` of so many images: ten files are written, the others are links; and a `val/` of one shard."""
    (root / "train").mkdir(parents=True)
    (root / "val").mkdir()
    scene = generate_scene(0, height=512, width=640).pixels
    rng = np.random.default_rng(0)
    for shard in range(WRITTEN):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for number in range(EACH):
                y, x = int(rng.integers(480)), int(rng.integers(600))
                content = jpeg(np.ascontiguousarray(scene[y : y + 32, x : x + 32]), 85)
                for ending, data in (("jpg", content), ("cls", b"%d" % (number % 10))):
                    member = tarfile.TarInfo(f"{shard:02d}{number:06d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    for shard in range(images // EACH):
        (root / "train" / f"{shard:06d}.tar").symlink_to(root / f"{shard % WRITTEN}.tar")
    (root / "val" / "000000.tar").symlink_to(root / "0.tar")


def memory_mb() -> float:
    """Proportional anonymous and shared memory of this process and of those that it started; Linux.

    Files are left out: what of a library counts here depends on how many other programs have it open.
    """
    total = 0
    for process in [os.getpid(), *_children(os.getpid())]:
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total / 1024


def _children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    found = [int(word) for word in text.split()]
    return [*found, *(one for child in found for one in _children(child))]


def measure_memory(asked: argparse.Namespace) -> None:
    folder = Path(asked.folder or tempfile.mkdtemp())
    if not (folder / "train").is_dir():
        write_shards(folder, asked.images)
    begun, cpu = time.perf_counter(), time.process_time()
    before = memory_mb()
    train, val = list_labelled_images(folder, "train"), list_labelled_images(folder, "val").limit(20)
    listed, cpu = time.perf_counter() - begun, time.process_time() - cpu
    listing = memory_mb() - before
    print(f"{len(train)} images listed in {listed:.0f} s, {cpu / len(train) * 1e6:.1f} µs each; +{listing:.0f} MB")
    batch, points = 500, []
    every = max(1, len(train) // batch // 20)
    # A stage of one small convolution: what is measured is reading.
    stage = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
    backbone = StagedBackbone({"stage1": stage}, {"stage1": FeatureSpec(3, 8)}, outputs=("stage1",))
    step, count, started = training._Run._step, 0, time.perf_counter()

    def watched(self: Any, x: torch.Tensor, labels: torch.Tensor) -> float:
        nonlocal count
        loss = step(self, x, labels)
        count += 1
        if count % every == 0:
            points.append((count * batch, memory_mb()))
            rate = count * batch / (time.perf_counter() - started)
            print(f"{count * batch:9d} images  {points[-1][1]:7.1f} MB  {rate:.0f} images/s", flush=True)
        return loss

    training._Run._step = watched
    config = TrainConfig(optimizer="sgd", epochs=1, batch_size=batch, lr=0.01, workers=1)
    with tempfile.TemporaryDirectory() as out:
        training.pretrain(backbone, train, val, config, Path(out) / "run", size=32, device="cpu")
    seconds = time.perf_counter() - started
    numbers, values = np.array(points).T
    half = numbers >= numbers[-1] / 4
    slope = float(np.polyfit(numbers[half], values[half], 1)[0] * 1e6)
    metrics = {
        "images": len(train),
        "listing_seconds": listed,
        "listing_processor_us_an_image": cpu / len(train) * 1e6,
        "listing_mb": listing,
        "seconds": seconds,
        "images_per_second": len(train) / seconds,
        "memory_mb": [[int(n), round(float(v), 1)] for n, v in points],
        "growth_mb_a_million": slope,
    }
    claims = [at_most("memory grows by no more than 20 MB over a million images", slope, 20, " MB")]
    conclude(metrics, claims, RESULTS / "pretrain_memory.json")


def write_folders(root: Path, images: int) -> None:
    for number in range(images):
        pixels = generate_scene(number, height=375, width=500).pixels
        for split in ("train", "val")[: 1 + (number < 2)]:
            folder = root / split / f"n{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:06d}.JPEG").write_bytes(jpeg(pixels, 92))


def measure_speed(asked: argparse.Namespace) -> None:
    from timm.data import create_loader
    from timm.data.dataset import ImageDataset

    folder = Path(asked.folder or tempfile.mkdtemp())
    if not (folder / "train").is_dir():
        write_folders(folder, asked.images)
    files = list_labelled_images(folder, "train")
    batch = 50
    ours = LabelledLoader(files, size=224, batch_size=batch, smallest_crop=0.08, workers=1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    theirs = create_loader(
        ImageDataset(str(folder / "train")),
        input_size=(3, 224, 224),
        batch_size=batch,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=1,
        device=torch.device("cpu"),
        persistent_workers=True,
    )

    def run_ours(epoch: int) -> int:
        count = 0
        for pixels, labels in ours.epoch(epoch):
            x = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
            count += len(x) if len(labels) else 0
        return count

    def run_theirs(epoch: int) -> int:
        return sum(len(x) for x, _ in theirs)

    pairs = []
    for number in range(asked.pairs + 1):
        rates = []
        for run in (run_ours, run_theirs) if number % 2 else (run_theirs, run_ours):
            begun = time.perf_counter()
            rates.append(run(number) / (time.perf_counter() - begun))
        mine, other = rates if number % 2 else rates[::-1]
        print(
            f"{'warm-up' if number == 0 else f'pair {number}'}: {mine:.0f} and {other:.0f} images/s, {mine / other:.2f}"
        )
        if number:
            pairs.append((mine, other))
    ratios = [mine / other for mine, other in pairs]
    metrics = {
        "images": len(files),
        "pairs": [[round(value, 1) for value in pair] for pair in pairs],
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
    }
    claims = [at_least("reads as many images a second as timm's loader, within a tenth", metrics["ratio"], 0.9)]
    conclude(metrics, claims, RESULTS / "pretrain_speed.json")
    ours.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "speed"))
    parser.add_argument("--images", type=int, default=None)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--folder", help="keep the images there; what is there already is used")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(1)
    if asked.what == "memory":
        asked.images = asked.images or 10**6
        measure_memory(asked)
    else:
        asked.images = asked.images or 400
        measure_speed(asked)


if __name__ == "__main__":
    main()
