"""Long life in fixed counts: `python benchmarks/soak.py [--images 100000] [--epochs 2000] [--calls 10000] [--out FILE]`.

A tiny detector is trained for `--epochs` on generated squares; `flyspeck predict` runs it over a folder of `--images` files
(links to 200 images that differ); one process calls a predictor `--calls` times. Each is a process of its own, one thread, whose
resident memory and open file descriptors are read twice a second from outside (Linux). What is compared is their largest value
between one and two tenths of the time, when all is loaded and warm, and between eight and nine tenths, before the end's own work
(a training's last evaluation takes memory of its own, once). Results must be constant: the same image gives the same
detections, whenever it comes. Each kind of work is written when it is done, and one that is there with the same count is not
done again, so that a call that was broken off goes on with what is missing; `--only` runs some, and leaves the others' results.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from verdict import RESULTS, Claim, at_most, conclude

DISTINCT = 200
"""Images that differ."""
GROWTH_MB = 20.0
"""Allowed between the two places: an allocator's own back and forth."""


def write_squares(folder: Path, count: int) -> Path:
    """Grey 64x64 images with up to three bright squares, and their COCO json."""
    rng, images, boxes = np.random.default_rng(0), [], []
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(60, 120, (64, 64)).astype(np.uint8)
        for _ in range(int(rng.integers(0, 4))):
            side, x, y = (int(v) for v in rng.integers((4, 0, 0), (11, 52, 52)))
            pixels[y : y + side, x : x + side] = 240
            box = {"image_id": i + 1, "bbox": [x, y, side, side], "area": side**2, "category_id": 1, "iscrowd": 0}
            boxes.append(box | {"id": len(boxes) + 1})
        name = f"images/{i:03d}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": i + 1, "file_name": name, "width": 64, "height": 64})
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
    (folder / "set.json").write_text(json.dumps(content))
    return folder / "set.json"


def recipe(epochs: int, table: Path) -> dict[str, Any]:
    """Two steps an epoch, ten evaluations and checkpoints in all."""
    often = max(1, epochs // 10)
    return {
        "name": "soak",
        "data": {"channels": 1, "train": str(table), "val": str(table), "train_limit": 8, "val_limit": 8},
        "model": {"name": "fcos:bh_resnet14", "width": 0.125, "channels": 8, "norm": "bn", "head": {"depth": 1}},
        "train": {"epochs": epochs, "batch_size": 4, "warmup_steps": 2, "workers": 0, "eval_every": often},
    }


# --- one kind of work, in a process of its own --------------------------------------------------------------------------


def training(folder: Path, epochs: int) -> None:
    from flyspeck.train.config import parse_recipe
    from flyspeck.train.run import train

    train(parse_recipe(recipe(epochs, folder / "set" / "set.json")), folder / "run")


def predicting(folder: Path, count: int) -> None:
    from flyspeck.cli.main import main

    words = ["predict", str(folder / "many"), "--model", str(folder / "run"), "--out", str(folder / "found")]
    code = main([*words, "--to", "csv", "--draw", "0", "--device", "cpu", "--score", "0.05"])
    assert code == 0, code


def calling(folder: Path, count: int) -> None:
    from flyspeck.infer.load import load_predictor

    predictor = load_predictor(folder / "run", device="cpu")
    images = [np.asarray(Image.open(path)) for path in sorted((folder / "set" / "images").iterdir())[:10]]
    seen: dict[int, set[str]] = defaultdict(set)
    for number in range(count):
        (found,) = predictor.predict(images[number % len(images)])
        seen[number % len(images)].add(hashlib.sha256(found.boxes.tobytes() + found.scores.tobytes()).hexdigest())
    (folder / "calls.json").write_text(json.dumps({str(key): len(value) for key, value in seen.items()}))


WORK = {"training": training, "predicting": predicting, "calling": calling}


# --- from outside ----------------------------------------------------------------------------------------------------------


def watched(name: str, folder: Path, count: int) -> dict[str, Any]:
    """Runs one kind of work; memory in MB and open files, early and late.

    An image that is being read at that moment, open once or twice, is no open file of the work.
    """
    command = [sys.executable, __file__, "--child", name, str(folder), str(count)]
    samples, page = [], os.sysconf("SC_PAGE_SIZE")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        place = Path(f"/proc/{process.pid}")
        while process.poll() is None:
            try:
                pages, files = int((place / "statm").read_text().split()[1]), _held_open(place / "fd", folder)
            except (OSError, ValueError, IndexError):  # it ends just now
                continue
            samples.append((pages * page / 1e6, files))
            time.sleep(0.5)
    if process.returncode:
        sys.exit(f"{name} ended with {process.returncode}")
    tenth = max(1, len(samples) // 10)
    parts = samples[tenth : 2 * tenth + 1], samples[8 * tenth : 9 * tenth + 1]
    mb, files = ([max(sample[kind] for sample in part) for part in parts] for kind in (0, 1))
    return {"count": count, "mb_first": mb[0], "mb_last": mb[1], "files_first": files[0], "files_last": files[1]}


def _held_open(numbers: Path, folder: Path) -> int:
    """Open files of a process, but for the images that it is given."""
    count = 0
    for number in os.listdir(numbers):
        try:
            held = os.readlink(numbers / number)
        except FileNotFoundError:  # closed just now
            continue
        count += not held.startswith((str(folder / "many"), str(folder / "set")))
    return count


def soak_training(folder: Path, count: int) -> tuple[dict[str, Any], list[Claim]]:
    """The training, its log's size, and whether the loss stayed finite."""
    told = watched("training", folder, count)
    log = (folder / "run" / "metrics.jsonl").read_bytes()
    lines = [json.loads(line) for line in log.splitlines()]
    losses = [value for line in lines if line["kind"] == "step" for value in line["losses"].values()]
    size, finite = len(log) / count, bool(np.isfinite(losses).all())
    told |= {"what": "epochs of a tiny training", "results": f"{size:.0f} bytes of log an epoch, losses finite"}
    return told, [Claim("losses stay finite", str(finite), finite), at_most("bytes of log an epoch", size, 2000)]


def soak_predicting(folder: Path, count: int) -> tuple[dict[str, Any], list[Claim]]:
    """The verb over many files, and whether a link's detections are those of every other link to the same image."""
    sources = sorted((folder / "set" / "images").iterdir())
    (folder / "many").mkdir()
    for number in range(count):
        os.link(sources[number % DISTINCT], folder / "many" / f"{number:06d}.png")
    told = watched("predicting", folder, count)
    by_image: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    (table,) = (folder / "found").glob("*.csv")
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            name = next(value for value in row.values() if value.endswith(".png"))
            by_image[Path(name).stem].append(tuple(value for value in row.values() if not value.endswith(".png")))
    different = 0
    for number in range(count):
        first = by_image.get(f"{number % DISTINCT:06d}", [])
        different += _plain(by_image.get(f"{number:06d}", [])) != _plain(first)
    rows = sum(map(len, by_image.values()))
    told |= {
        "what": "images through `flyspeck predict`",
        "results": f"{rows:,} detections, {different} images other than before",
    }
    return told, [at_most("images with other detections than before", different, 0)]


def _plain(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Boxes, scores and classes, without the number of the image."""
    return sorted(row[-6:] for row in rows)


def soak_calling(folder: Path, count: int) -> tuple[dict[str, Any], list[Claim]]:
    """One predictor, many calls."""
    told = watched("calling", folder, count)
    most = max(json.loads((folder / "calls.json").read_text()).values())
    told |= {"what": "calls of a predictor", "results": f"{most} answer an image" + "s" * (most > 1)}
    return told, [at_most("different answers for one image", most, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--only", default="training,calling,predicting", help="kinds of work, with commas between")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return WORK[asked.child[0]](Path(asked.child[1]), int(asked.child[2]))
    todo = (
        ("training", soak_training, asked.epochs),
        ("calling", soak_calling, asked.calls),
        ("predicting", soak_predicting, asked.images),
    )
    before = json.loads(asked.out.read_text()) if asked.out.is_file() else {"work": [], "claims": []}
    work = {one["kind"]: one for one in before["work"]}
    claims = [Claim(**one) for one in before["claims"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_squares(folder / "set", DISTINCT)
        for kind, soak, count in todo:
            if kind not in asked.only.split(",") or work.get(kind, {}).get("count") == count:
                continue
            if kind != "training" and not (folder / "run").is_dir():  # the others need a detector
                watched("training", folder, 20)
            told, more = soak(folder, count)
            growth, files = told["mb_last"] - told["mb_first"], told["files_last"] - told["files_first"]
            more += [
                at_most(f"growth over {count} {told['what']}", growth, GROWTH_MB, " MB"),
                at_most(f"files more open at the end of {count} {told['what']}", files, 0),
            ]
            known = {claim.what for claim in more}
            others = (claim for claim in claims if claim.what not in known and told["what"] not in claim.what)
            claims = [*others, *more]
            work[kind] = {"kind": kind, **told}
            print(told, flush=True)
            conclude({"work": list(work.values())}, claims, asked.out)


if __name__ == "__main__":
    main()
