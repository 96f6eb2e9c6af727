"""Cost as the image grows: predicting by tiles, and training on crops, at 1, 2, 4 and 8 megapixels.

    python benchmarks/image_size.py --model runs/hituav_half [--threads 2] [--out results.json]

Every size runs in a process of its own; its peak memory is the operating system's metric for the whole process, and the
metric beside it is what the image added to the process after import, model load and a warm-up. Scenes are generated.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {1: (864, 1152), 2: (1224, 1632), 4: (1728, 2304), 8: (2448, 3264)}
STEPS = 12


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def predict_one(model: Path, folder: Path, threads: int) -> dict[str, float]:
    """Seconds and memory of the one image in `folder`."""
    import torch

    from flyspeck import load_predictor

    torch.set_num_threads(threads)
    predictor = load_predictor(model, device="cpu", precision="bf16")
    predictor.predict([str(next(Path(folder).parent.glob("warm/images/*.png")))])
    before = peak_mib()
    start, cpu = time.perf_counter(), time.process_time()
    (found,) = predictor.predict([str(next(folder.glob("images/*.png")))])
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "boxes": len(found),
        "peak_mib": round(peak_mib()),
        "beyond_start_mib": round(peak_mib() - before),
    }


def train_some(model: Path, folder: Path, threads: int) -> dict[str, float]:
    """Seconds a step of 8 crops of the training size from images of this size, and memory."""
    import torch

    from flyspeck.data.loading import DetectionDataset, make_loader
    from flyspeck.data.readers import read_annotations
    from flyspeck.data.transforms import RandomScaleCrop
    from flyspeck.train.build import load_described

    torch.set_num_threads(threads)
    detector, description = load_described(model)
    detector.train()
    table = read_annotations(folder / "annotations.json", classes=None)
    table = table.select_images([0] * 8)
    crop = RandomScaleCrop(size=tuple(description["training_size"]), toward_objects=1.0)
    channels = len(description["mean"])
    loader = make_loader(
        DetectionDataset(table, channels=channels, transform=crop), batch_size=8, workers=0, divisor=32
    )  # type: ignore[arg-type]
    times = []
    for step in range(STEPS):
        start = time.perf_counter()
        images, targets, _ = next(iter(loader.epoch(step)))
        loaded = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            losses = detector.losses(images, targets)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        times.append((time.perf_counter() - start, loaded - start))
        detector.zero_grad()
    steps = sorted(times[2:])
    total, load = steps[len(steps) // 2]
    return {"step_seconds": round(total, 3), "of_it_loading": round(load, 3), "peak_mib": round(peak_mib())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what = {"predict": predict_one, "train": train_some}[options.one[0]]
        print(json.dumps(what(options.model, Path(options.one[1]), options.threads)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        flyspeck = [sys.executable, "-m", "flyspeck.cli.main", "data", "scenes", "--num-images", "1", "--seed", "5"]
        subprocess.run([*flyspeck, "--size", "300x400", "--out", f"{scratch}/warm"], check=True, capture_output=True)
        for megapixels, (height, width) in SIZES.items():
            folder = f"{scratch}/{megapixels}"
            subprocess.run([*flyspeck, "--size", f"{height}x{width}", "--out", folder], check=True, capture_output=True)
            for what in ("predict", "train"):
                call = [sys.executable, __file__, "--model", str(options.model), "--threads", str(options.threads)]
                done = subprocess.run([*call, "--one", what, folder], check=True, capture_output=True, text=True)
                rows.append({"megapixels": megapixels, "what": what, **json.loads(done.stdout.splitlines()[-1])})
                print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
