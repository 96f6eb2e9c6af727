"""Base weights: one class-agnostic detector that has seen many kinds of small things, to start from where labels are few.

    python benchmarks/base_weights.py --sets SETS --out runs/base --minutes 120 [--leave-out NAME] [--scenes 4000] [--dry-run]

Every object is `object`. Generated scenes (`flyspeck.write_scenes`: sea, field and road, at two densities; a third of
them made grey and a third thermal-like) are mixed with the training parts of the sets of `SETS` whose licence lets
weights be given away: CC0 and CC BY, none that must be shared alike. `--leave-out` leaves one of them out, for
measuring what the weights are worth on a set that they have not seen. What is validated on are scenes of another seed.
`--dry-run` makes a dozen scenes and trains for a minute.

Licence, seed, minutes and the list of sets go into `base.json` beside the run; `flyspeck card` writes the card.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import flyspeck
from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.files import write_json

SETS = {
    "hituav": ("train_blk.json", "CC BY 4.0"),
    "facemask": ("train.json", "CC BY 4.0"),
    "blimpgoals": ("train.json", "CC BY 4.0"),
    "dronesky": ("train.json", "CC0"),
    "nuclei": ("train.json", "CC0"),
}
"""Folder to annotations and licence. Validation and test parts are never read."""
SIDES, CROP = (256, 320), 192
KINDS = ("sea", "field", "road")
DENSITIES = (0.5, 2.0)


def sensed(pixels: np.ndarray, sensor: int) -> np.ndarray:
    """An RGB image `(H, W, 3)` uint8 as sensor 0 (colour), 1 (grey) or 2 (thermal-like) sees it, with three equal channels.

    Thermal-like is the channel with most contrast, its median dark grey, and bright what is farthest from that.
    """
    if sensor == 0:
        return pixels
    if sensor == 1:
        grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    else:
        channel = pixels[..., int(pixels.reshape(-1, 3).std(0).argmax())].astype(np.float32)
        far = channel - np.median(channel)
        bright = far if np.quantile(far, 0.999) > -np.quantile(far, 0.001) else -far
        grey = 96 + bright * (120 / max(1.0, float(np.abs(bright).max())))
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def scene_tables(out: Path, count: int, seed: int) -> Iterator[Annotations]:
    """Generated scenes of every ground and density, a third by each sensor."""
    parts = [(kind, density) for kind in KINDS for density in DENSITIES]
    for part, (kind, density) in enumerate(parts):
        folder = out / f"{seed}-{kind}-{density:g}"
        number = max(1, count // len(parts))
        file = folder / "annotations.json"
        if not file.exists():
            file = flyspeck.write_scenes(
                folder, num_images=number, seed=seed + part, height=SIDES[0], width=SIDES[1], kind=kind, density=density
            )
            for i, image in enumerate(sorted((folder / "images").glob("*.png"))):
                if sensor := i % 3:
                    Image.fromarray(sensed(np.asarray(Image.open(image).convert("RGB")), sensor)).save(image)
        yield read_annotations(file)


def as_one(tables: list[Annotations], limit: int | None) -> dict[str, Any]:
    """COCO json of all the tables, of each at most `limit` images evenly spread: paths absolute, every object an `object`."""
    images, boxes = [], []
    for table in tables:
        rows = np.arange(len(table))
        if limit is not None and len(rows) > limit:
            rows = np.unique(np.linspace(0, len(rows) - 1, limit).round().astype(np.int64))
        for row in rows.tolist():
            number = len(images) + 1
            path = table.path(row).resolve()
            height, width = (int(side) for side in table.sizes[row])
            if min(height, width) <= 0:
                with Image.open(path) as image:
                    width, height = image.size
            images.append({"id": number, "file_name": str(path), "height": height, "width": width})
            for box in np.flatnonzero(table.image_index == row).tolist():
                x1, y1, x2, y2 = table.boxes[box].tolist()
                boxes.append({
                    "id": len(boxes) + 1, "image_id": number, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1), "iscrowd": int(bool(table.ignore[box]) or table.labels[box] < 0),
                })  # fmt: skip
    return {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "object"}]}


def recipe_of(data: Path, model: str, minutes: float, seed: int, *, small: bool) -> dict[str, Any]:
    """What is trained: as a detector of small things is, with strong changes of scale, light and colour."""
    return {
        "name": "base",
        "data": {"train": str(data / "train.json"), "val": str(data / "val.json"), "val_limit": 8 if small else 300},
        "augment": {
            "flip": 0.5, "scale": [0.5, 1.5], "crop": [CROP, CROP], "toward_objects": 0.5, "photometric": 0.8
        },
        "model": {"name": model, "channels": 64, "pixel_norm": "imagenet"},
        "train": {
            "epochs": 1000, "minutes": minutes, "batch_size": 4 if small else 16, "optimizer": "adamw", "lr": 0.002,
            "weight_decay": 0.02, "warmup_steps": 2 if small else 500, "schedule": "step", "clip_grad": 10,
            "ema": None, "seed": seed, "workers": 0,
        },
    }  # fmt: skip


def main() -> None:
    """Makes the images, trains, and says of what."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", type=Path, required=True, help="The folder of the sets.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="speck:specknet_s")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--leave-out", default=None, choices=sorted(SETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="A dozen scenes, four images of each set, one minute.")
    args = parser.parse_args()
    scenes, limit = (12, 4) if args.dry_run else (args.scenes, None)
    used = {name: of for name, of in SETS.items() if name != args.leave_out and (args.sets / name / of[0]).is_file()}
    missing = sorted(set(SETS) - set(used) - {args.leave_out})
    data, began = args.out / "data", time.perf_counter()
    data.mkdir(parents=True, exist_ok=True)
    real = [read_annotations(args.sets / name / file) for name, (file, _) in used.items()]
    train = as_one([*scene_tables(args.out / "scenes", scenes, 1000 * args.seed + 1), *real], limit)
    val = as_one(list(scene_tables(args.out / "scenes", max(6, scenes // 10), 1000 * args.seed + 501)), limit)
    write_json(data / "train.json", train)
    write_json(data / "val.json", val)
    sets = {
        name: {"licence": of[1], "images": len(table)} for (name, of), table in zip(used.items(), real, strict=True)
    }
    told = {
        "sets": sets,
        "not there": missing,
        "left out": args.leave_out,
        "images": len(train["images"]),
        "objects": len(train["annotations"]),
        "scenes": scenes,
        "seed": args.seed,
        "seconds to make": round(time.perf_counter() - began),
    }
    print(json.dumps(told, indent=1), flush=True)
    minutes = 1.0 if args.dry_run else args.minutes
    run = flyspeck.train(recipe_of(data, args.model, minutes, args.seed, small=args.dry_run), out=args.out / "run")
    write_json(args.out / "base.json", {**told, "minutes": minutes, "metrics": dict(run.metrics)})
    print(f"{args.out}: weights of {args.model} in {run.weights}")


if __name__ == "__main__":
    main()
