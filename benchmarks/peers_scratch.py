"""Detectors of another tool beside `speck`, all from nothing: the same images, the same minutes, each by its own tool's settings.

    python benchmarks/peers_scratch.py blimpgoals train.json val.json --tool ENV/bin --minutes 30 --rows speck_s,yolox-n --work W

The other tool is LibreYOLO (MIT) in an environment of its own, `--tool` being its folder of commands (`pip install libreyolo`).
Its schedule counts passes: as many are asked for as fit into the minutes, by what one took in two short trials, and the minutes
that it really took are noted. Its settings are its defaults, but for the size of its input (`--size`), no pretrained weights, and
no augmentation in the last tenth of the passes (its default is the last 15 of 300). Ours has the minutes and the recipe of
`benchmarks/recipes/scratch/SET.yaml`. Detections of both are scored here, by one protocol.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from verdict import RESULTS, Claim, conclude

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.data.writers import write_yolo
from flyspeck.errors import counted
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.evaluate.bootstrap import compare
from flyspeck.evaluate.catalogue import protocol_named
from flyspeck.infer.load import load_predictor

RECIPES = Path(__file__).parent / "recipes" / "scratch"
AHEAD = 5.0
"""Points of AP50 tiny that are asked of `speck` over each."""
SAMPLES = 1000
FOUND = """
import json, sys
from libreyolo import LibreYOLO
weights, images, size, out = sys.argv[1:5]
model = LibreYOLO(weights, device="cpu")
model.model.eval()  # 1.6.0 leaves some of its detectors (D-FINE) in training mode: each image would be normalised by itself
rows = []
for image_id, path in json.load(open(images)):
    found = model(path, conf=0.001, iou=0.6, imgsz=int(size), max_det=300)
    found = found[0] if isinstance(found, (list, tuple)) else found
    boxes = found.boxes
    for (x1, y1, x2, y2), score, label in zip(boxes.xyxy.tolist(), boxes.conf.tolist(), boxes.cls.tolist()):
        rows.append({"image_id": image_id, "label": int(label), "score": score, "bbox": [x1, y1, x2 - x1, y2 - y1]})
json.dump(rows, open(out, "w"))
"""
"""Run by the other tool's Python."""


def call(log: Path, *words: str | Path, cwd: Path | None = None) -> float:
    """Runs a command; returns its seconds."""
    begun = time.monotonic()
    with log.open("w", encoding="utf-8") as told:
        done = subprocess.run([str(word) for word in words], stdout=told, stderr=subprocess.STDOUT, cwd=cwd)
    if done.returncode:
        sys.exit(f"{words[0]} failed: see {log}")
    return time.monotonic() - begun


def yolo_set(folder: Path, train: Path, val: Path, few: int | None = None) -> Path:
    """The images as a YOLO data set, once; `few`: only so many to learn from."""
    if not (folder / "data.yaml").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        table = read_annotations(train)
        write_yolo(table if few is None else table.select_images(range(few)), folder, split="train", link=True)
        write_yolo(read_annotations(val, classes=table.classes), folder, split="val", link=True)
    return folder / "data.yaml"


def peer(name: str, asked: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Trained by its own tool in as many passes as fit into the minutes; its weights, passes and minutes."""
    done = folder / "trained.json"
    if not done.is_file():
        images = len(read_annotations(asked.train))
        data = yolo_set(asked.work / f"{asked.name}_yolo", asked.train, asked.val)
        few = yolo_set(asked.work / f"{asked.name}_few", asked.train, asked.val, asked.few)

        def train(data: Path, passes: int, run: str, *more: str) -> float:
            return call(
                folder / f"{run}.log", asked.tool / "libreyolo", "train", "--data", data, "--model", name, "--no-pretrained",
                "--epochs", str(passes), "--imgsz", str(asked.size), "--device", "cpu", "--workers", "0", "--seed", str(seed),
                "--project", folder, "--name", run, "--exist-ok", "--no-aug-epochs", str(max(1, passes // 10)), *more,
                cwd=folder,
            )  # fmt: skip

        one, three = (train(few, passes, f"timed{passes}", "--no-val") for passes in (1, 3))
        a_pass = (three - one) / 2 / asked.few * images
        passes = max(1, int((60 * asked.minutes - max(0.0, one - a_pass * asked.few / images)) / a_pass))
        warm = min(5, max(1, passes // 20))
        seconds = train(data, passes, "run", "--eval-interval", str(passes), "--warmup-epochs", str(warm))
        weights = sorted((folder / "run").rglob("last.pt"))
        done.write_text(json.dumps({"passes": passes, "minutes": round(seconds / 60, 2), "weights": str(weights[0])}))
    return json.loads(done.read_text())


def ours(name: str, asked: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Trained by its recipe for the minutes."""
    done = folder / "trained.json"
    if not done.is_file():
        recipe = yaml.safe_load((RECIPES / f"{asked.name}.yaml").read_text())
        recipe["model"]["name"] = name
        recipe["data"] = recipe.get("data", {}) | {"train": str(asked.train), "val": str(asked.val)}
        recipe["train"] |= {"minutes": asked.minutes, "seed": seed}
        written = folder / "recipe.yaml"
        written.write_text(yaml.safe_dump(recipe))
        words = ["train", written, "--out", folder / "run"]
        seconds = call(folder / "train.log", sys.executable, "-m", "flyspeck.cli.main", *words)
        done.write_text(json.dumps({"minutes": round(seconds / 60, 2), "weights": str(folder / "run")}))
    return json.loads(done.read_text())


def detections(name: str, trained: dict[str, Any], asked: argparse.Namespace, folder: Path) -> DetectionTable:
    """What it finds in the images to report on."""
    val, out = read_annotations(asked.val), folder / "found.json"
    if not out.is_file() and name.startswith("speck"):
        predictor = load_predictor(trained["weights"], score_threshold=0.001)
        found = predictor.predict([val.path(row) for row in range(len(val))])
        DetectionTable.from_list([replace(one, image_id=None) for one in found], val).write_coco(out, val)
    elif not out.is_file():
        listed, raw = folder / "images.json", folder / "raw.json"
        listed.write_text(json.dumps([[int(key), str(val.path(row))] for row, key in enumerate(val.image_ids)]))
        script = folder / "found.py"
        script.write_text(FOUND)
        call(folder / "found.log", asked.tool / "python", script, trained["weights"], listed, str(asked.size), raw)
        names = yaml.safe_load((asked.work / f"{asked.name}_yolo" / "data.yaml").read_text())["names"]
        category = {name: number for name, number in zip(val.classes, val.category_ids, strict=True)}
        rows = json.loads(raw.read_text())
        for row in rows:
            row["category_id"] = int(category[names[row.pop("label")]])
        out.write_text(json.dumps(rows))
    return DetectionTable.from_coco(out, val)


def trial(name: str, asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One row of one seed."""
    folder = (asked.work / f"{asked.name}_{name}_{asked.minutes:g}_{seed}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    trained = (ours if name.startswith("speck") else peer)(name, asked, seed, folder)
    val = read_annotations(asked.val)
    result = evaluate(val, detections(name, trained, asked, folder), protocol_named("flyspeck"))
    areas = {area: round(100 * result.value(metric="AP", iou=0.5, area=area), 2) for area in ("tiny", "all")}
    row = {"set": asked.name, "row": name, "seed": seed, "asked minutes": asked.minutes, "folder": folder.name}
    return row | areas | {key: value for key, value in trained.items() if key != "weights"}


def differences(rows: list[dict[str, Any]], val: Annotations, work: Path) -> list[dict[str, Any]]:
    """AP50 tiny of each `speck` less that of each other, of one seed and as many minutes, over resamples of the images."""
    told = []
    tables = {row["folder"]: DetectionTable.from_coco(work / row["folder"] / "found.json", val) for row in rows}
    for mine in rows:
        for other in rows:
            if (
                mine["row"].startswith("speck")
                and not other["row"].startswith("speck")
                and all(mine[key] == other[key] for key in ("seed", "asked minutes"))
            ):
                found = compare(
                    val, tables[mine["folder"]], tables[other["folder"]], protocol_named("flyspeck"), samples=SAMPLES, seed=0
                )  # fmt: skip
                one = next(entry for entry in found if entry["area"] == "tiny" and entry["iou"] == 0.5)
                points = [round(100 * float(one[key]), 2) for key in ("difference", "low", "high")]
                told.append({"row": mine["row"], "than": other["row"], "seed": mine["seed"], "points": points})
    return told


def claims(told: list[dict[str, Any]]) -> list[Claim]:
    """Of the larger `speck` over each other."""
    largest = max((one["row"] for one in told), key=["speck_n", "speck_s", "speck_m"].index, default="")
    others = sorted({one["than"] for one in told})
    found = []
    for other in others:
        points = [one["points"] for one in told if one["row"] == largest and one["than"] == other]
        mean = sum(point[0] for point in points) / len(points)
        lowest = min(point[1] for point in points)
        words = f"{mean:+.1f} points, {counted(len(points), 'seed')}, the lowest bound {lowest:+.1f}"
        found.append(Claim(f"{largest} is {AHEAD:g} points ahead of {other}", words, mean >= AHEAD))
    return found


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the set")
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--tool", type=Path, required=True, help="folder of the other tool's commands")
    parser.add_argument("--rows", required=True, help="speck_s, speck_m, and names of the other tool's detectors")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--size", type=int, default=320, help="of the other tool's input, in pixels")
    parser.add_argument("--few", type=int, default=64, help="images of its two timed trainings")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--work", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--out", type=Path, help="default: results/peers_scratch_NAME.json, of this set alone")
    asked = parser.parse_args()
    asked.out = asked.out or RESULTS / f"peers_scratch_{asked.name}.json"
    asked.work = asked.work.absolute()
    asked.work.mkdir(parents=True, exist_ok=True)
    asked.train, asked.val = asked.train.absolute(), asked.val.absolute()
    rows = json.loads(asked.out.read_text())["rows"] if asked.out.is_file() else []
    for seed in map(int, asked.seeds.split(",")):
        for name in asked.rows.split(","):
            row = trial(name, asked, seed)
            same = {key: row[key] for key in ("set", "row", "seed", "asked minutes")}
            rows = [old for old in rows if any(old[key] != value for key, value in same.items())] + [row]
            print(row, flush=True)
            told = differences(rows, read_annotations(asked.val), asked.work)
            conclude({"rows": rows, "differences": told}, claims(told), asked.out)


if __name__ == "__main__":
    main()
