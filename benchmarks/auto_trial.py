"""`flyspeck auto` against a recipe made by hand and plain defaults: equal images, equal minutes, other images to report on.

    python benchmarks/auto_trial.py blimpgoals train.json val.json --images 50 --minutes 10 --seeds 1,2,3

Of `train.json` so many images are drawn, by the seed. `auto` gets them with `--minutes`, everything included, and is told to
report on `val.json`, which no choice is made on. The other two learn from the images that it learns from and choose their best
pass on those that it chooses on, with all of the minutes for training: `benchmarks/recipes/hand/NAME.yaml`, and a recipe of
nothing but the data, the minutes and ImageNet's weights. All three are then shown the images of `val.json` as `flyspeck predict`
would, and compared over resamples of them. Each training is a process, and its detections are kept under `--work`: a call that
was broken off goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from verdict import RESULTS, Claim, conclude

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.data.writers import write_coco
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.evaluate.bootstrap import compare
from flyspeck.evaluate.catalogue import protocol_named
from flyspeck.infer.load import load_predictor

HAND = Path(__file__).parent / "recipes" / "hand"
ARMS = ("auto", "hand", "defaults")
SAMPLES = 1000
BEHIND, AHEAD = (
    -3.0,
    3.0,
)  # points of AP50 tiny: against the hand, whose interval excludes it; against the defaults, on average


def drawn(train: Annotations, images: int, seed: int, out: Path) -> Path:
    """So many of its images, as annotations."""
    if not out.is_file():
        rows = np.sort(np.random.default_rng(seed).permutation(len(train))[:images])
        write_coco(train.select_images(rows), out)
    return out


def flyspeck(log: Path, *words: str) -> float:
    """Runs the command; returns its minutes."""
    begun = time.monotonic()
    with log.open("w", encoding="utf-8") as told:
        done = subprocess.run(
            [sys.executable, "-m", "flyspeck.cli.main", *words], stdout=told, stderr=subprocess.STDOUT
        )
    if done.returncode:
        sys.exit(f"flyspeck {words[0]} failed: see {log}")
    return (time.monotonic() - begun) / 60


def recipe_of(arm: str, name: str, parts: Path, minutes: float, seed: int) -> dict[str, Any]:
    """The recipe of an arm that is no `auto`."""
    given = yaml.safe_load((HAND / f"{name}.yaml").read_text()) if arm == "hand" else {}
    for section in ("data", "model", "train"):
        given.setdefault(section, {})
    given["data"] |= {"train": str(parts / "train.json"), "val": str(parts / "choose.json")}
    given["model"].setdefault("weights", "IMAGENET1K_V1")
    given["train"] |= {"minutes": minutes, "seed": seed}
    return given


def trained(arm: str, asked: argparse.Namespace, folder: Path, seed: int) -> tuple[Path, float]:
    """The model of an arm, trained where it is not yet, and the minutes that it took."""
    model, took = folder / arm, folder / f"{arm}.minutes"
    if not took.is_file():
        if arm == "auto":
            few = drawn(read_annotations(asked.train), asked.images, seed, folder / "few.json")
            words = ["auto", str(few), "--val", str(asked.val), "--minutes", str(asked.minutes), "--out", str(model)]
        else:
            recipe = folder / f"{arm}.yaml"
            recipe.write_text(yaml.safe_dump(recipe_of(arm, asked.name, folder / "auto" / "data", asked.minutes, seed)))
            words = ["train", str(recipe), "--out", str(model)]
        took.write_text(str(flyspeck(folder / f"{arm}.log", *words)))
    return model, float(took.read_text())


def detections(model: Path, val: Annotations, out: Path) -> DetectionTable:
    """What the model finds in the images to report on, shown as `flyspeck predict` shows them."""
    if not out.is_file():
        predictor = load_predictor(model, score_threshold=0.001)
        found = predictor.predict([val.path(row) for row in range(len(val))])
        DetectionTable.from_list([replace(one, image_id=None) for one in found], val).write_coco(out, val)
    return DetectionTable.from_coco(out, val)


def trial(asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The three arms of one seed."""
    folder = asked.work / f"{asked.name}_{asked.images}_{asked.minutes:g}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    val, protocol = read_annotations(asked.val), protocol_named("flyspeck")
    found, row = {}, {"set": asked.name, "images": asked.images, "minutes": asked.minutes, "seed": seed}
    for arm in ARMS:
        model, minutes = trained(arm, asked, folder, seed)
        found[arm] = detections(model, val, folder / f"{arm}.json")
        result = evaluate(val, found[arm], protocol)
        row[arm] = {area: round(100 * result.value(metric="AP", iou=0.5, area=area), 2) for area in ("tiny", "all")}
        row[arm]["minutes"] = round(minutes, 2)
    for other in ARMS[1:]:
        row[f"against {other}"] = difference(val, found["auto"], found[other], protocol)
    return row


def difference(val: Annotations, mine: DetectionTable, other: DetectionTable, protocol: Any) -> list[float]:
    """Points of AP50 tiny that `auto` is ahead by, and their interval over images."""
    told = compare(val, mine, other, protocol, samples=SAMPLES, seed=0)
    one = next(entry for entry in told if entry["area"] == "tiny" and entry["iou"] == 0.5)
    return [round(100 * float(one[name]), 2) for name in ("difference", "low", "high")]


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """The issue's two, over all rows that there are."""
    if not rows:
        return []
    hand, plain = ([row[f"against {arm}"] for row in rows] for arm in ARMS[1:])
    means = statistics.mean(row[0] for row in hand), statistics.mean(row[0] for row in plain)
    sure = sum(row[1] > BEHIND for row in hand)
    return [
        Claim("within 1 point of the recipe made by hand, on average", f"{means[0]:+.2f} points", means[0] >= -1),
        Claim("no interval reaches 3 points behind it", f"{sure} of {len(hand)}", sure == len(hand)),
        Claim("ahead of the defaults by 3 points, on average", f"{means[1]:+.2f} points", means[1] >= AHEAD),
    ]


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the recipe made by hand")
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--work", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--out", type=Path, default=RESULTS / "auto_trial.json")
    asked = parser.parse_args()
    rows = json.loads(asked.out.read_text())["rows"] if asked.out.is_file() else []
    for seed in map(int, asked.seeds.split(",")):
        row = trial(asked, seed)
        same = {key: row[key] for key in ("set", "images", "minutes", "seed")}
        rows = [old for old in rows if any(old[key] != value for key, value in same.items())] + [row]
        print(row, flush=True)
        conclude({"rows": rows}, claims(rows), asked.out)


if __name__ == "__main__":
    main()
