"""What `speck` is made of, chosen by short trainings that differ in one thing.

    python benchmarks/speck_choices.py --fit FIT.json --hold HOLD.json

FIT and HOLD are two parts of a training set that share no group of frames (`flyspeck data split`): nothing that a claim is
measured on takes part in a choice. All trainings of a seed have the same images, order, steps and crops of 96x128; only what its
name says differs from `base`. Written after each: AP50 by size on HOLD, seconds of processor time of the whole, multiply-adds at
256x320. A line that is in the result file already is not run again, so that the table may grow.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from verdict import RESULTS

import flyspeck
from flyspeck.files import write_json
from flyspeck.models.profile import profile
from flyspeck.train.build import load_detector

ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "task-aligned": {"head": {"rule": "task_aligned"}},
    "rule as published": {"head": {"closeness": "iou", "prior": "none"}},
    "CIoU": {"head": {"box_loss": "ciou"}},
    "separable": {"backbone": {"blocks": "separable"}},
    "stride 2": {"levels": "1-4"},
    "RFLA assigner": {"assigner": {"name": "rfla"}},
    "NWD assigner": {"assigner": {"name": "nwd"}},
    "RFLA prior": {"head": {"prior": "rfla"}},
    "no prior": {"head": {"prior": "none"}},
    "varifocal": {"head": {"score_loss": "varifocal"}},
    "rep head": {"head": {"blocks": "rep"}},
    "one to one": {"head": {"one_to_one": True}},
}
"""What differs from `base`: SimOTA with closeness and prior by NWD, NWD + CIoU, quality focal loss, strides 4 to 16, `rep` blocks
in
the backbone and `separable` ones in the head."""
KEYS = ("ap50_tiny", "ap50_tiny1", "ap50_tiny2", "ap50_tiny3", "ap50_all")


def recipe(args: argparse.Namespace, model: dict[str, Any], seed: int) -> dict[str, Any]:
    """A short training; `model` wins over what all have."""
    return {
        "name": "choice",
        "data": {
            "train": str(args.fit),
            "val": str(args.hold),
            "classes": args.classes.split(",") if args.classes else None,
            "cache": "ram",
            "val_limit": 200,
        },
        "augment": {"flip": 0.5, "scale": [0.8, 1.3], "crop": [96, 128], "toward_objects": 0.5, "photometric": 0.5},
        "model": {"name": args.model, "pixel_norm": "data", **model},
        "train": {
            "epochs": args.epochs, "batch_size": 16, "optimizer": "adamw", "lr": 0.002, "weight_decay": 0.02,
            "warmup_steps": 100, "schedule": "cosine", "clip_grad": 10, "ema": 0.99, "precision": "bf16", "workers": 0,
            "eval_every": args.epochs, "log_every": 50, "seed": seed,
        },
        "evaluate": {"protocol": "flyspeck", "tile": "off"},
    }  # fmt: skip


def measure(args: argparse.Namespace, model: dict[str, Any], seed: int) -> dict[str, Any]:
    """One training and what it gave."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        run = flyspeck.train(recipe(args, model, seed), out=Path(folder) / "run")
        seconds = time.process_time() - start
        detector = load_detector(run.folder)
        cost = profile(detector, (256, 320), convention="macs").gflops
        return {
            **{key: round(100 * run.metrics[key], 2) for key in KEYS},
            "cpu_s": round(seconds),
            "gmacs": round(cost, 3),
        }


def main() -> None:
    """Runs what is not in the result file yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", type=Path, required=True)
    parser.add_argument("--hold", type=Path, required=True)
    parser.add_argument("--classes", default="")
    parser.add_argument("--model", default="speck_n")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--set", default="hituav_half", help="Name in the result file.")
    parser.add_argument("--out", type=Path, default=RESULTS / "speck_choices.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for seed in map(int, args.seeds.split(",")):
        for arm in args.arms.split(","):
            key = f"{args.set}, {args.model}, {args.epochs} epochs: {arm}, seed {seed}"
            if key not in rows:
                rows[key] = measure(args, ARMS[arm], seed)
                write_json(args.out, rows)
            print(key, rows[key], flush=True)


if __name__ == "__main__":
    main()
