"""What bf16 and INT8 cost by size of object, for every trained detector under `models/`, on its own validation images.

    python benchmarks/precision_loss.py --data ../shared/data [--models hituav_half,...] [--limit 400]

Of a set with more than `--limit` images as many are taken, evenly spread over its table; INT8 is calibrated on tiles of the
training images. AP50 under the protocol `flyspeck` of every engine, and its difference from PyTorch in fp32 with a paired
interval: both on the same resamples of the images (`flyspeck.evaluate.bootstrap.compare`). A model is measured when its turn
comes and its rows are written at once, so that a run that was broken off keeps what was finished.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from verdict import RESULTS, conclude

from flyspeck.data.readers import read_annotations
from flyspeck.data.shrink import shrink
from flyspeck.evaluate import DetectionTable, protocol_named
from flyspeck.evaluate.bootstrap import compare
from flyspeck.evaluate.protocols import APProtocol
from flyspeck.export.benchmark import build_engines, check_engines
from flyspeck.export.check_images import ImageSet, detect
from flyspeck.train.build import load_described

MODELS = Path(__file__).resolve().parents[1] / "models"
ENGINES = "eager,eager bf16,openvino bf16,onnx int8,openvino int8"
SCORE = 0.01
"""Detections from here on: what the cards were counted from."""


@dataclass(frozen=True)
class Set:
    """Where a model's images are, below `--data`, and by what they are shrunk first."""

    train: str
    val: str
    shrunk: float = 1.0


SETS = {
    "hituav_half": Set("hituav/train_blk.json", "hituav/val_blk.json", 2.0),
    "facemask_tinaface": Set("facemask/train.json", "facemask/val.json"),
    "aerialcars": Set("aerialcars/train.json", "aerialcars/val.json"),
    "coco453_100_person": Set("coco453_100/train2017.json", "coco453_100/val2017.json"),
}


def images_of(path: Path, classes: list[str], *, limit: int, shrunk: float, folder: Path) -> tuple[ImageSet, int]:
    """At most `limit` of a table's images, evenly spread and shrunk, and how many there are in all."""
    table = read_annotations(path, classes=classes)
    whole = ImageSet(tuple(table.path(row) for row in range(len(table))), table, path.stem)
    chosen = whole.spread(limit)
    if shrunk == 1.0:
        return chosen, len(table)
    assert chosen.annotations is not None
    small = shrink(chosen.annotations, folder / path.stem, name=path.name, factor=shrunk)
    return ImageSet(tuple(small.path(row) for row in range(len(small))), small, path.stem), len(table)


def measured(name: str, data: Path, engines: list[str], *, limit: int, tiles: int, folder: Path) -> dict[str, Any]:
    """AP50 by size of every engine, and the difference from the first, of one model."""
    place, protocol = SETS[name], protocol_named("flyspeck")
    assert isinstance(protocol, APProtocol)
    detector, description = load_described(MODELS / name / "model.safetensors")
    classes = list(detector.classes)
    train, _ = images_of(data / place.train, classes, limit=tiles, shrunk=place.shrunk, folder=folder)
    chosen, count = images_of(data / place.val, classes, limit=limit, shrunk=place.shrunk, folder=folder)
    table = chosen.annotations
    assert table is not None
    models = build_engines(detector, description, engines, train, num_tiles=tiles, say=say)
    tables: dict[str, DetectionTable] = {}
    rows: dict[str, Any] = {}
    for engine, model in models.items():
        if isinstance(model, str):
            rows[engine] = {"problem": model}
            continue
        say(f"{name}: {engine} on {len(chosen.paths)} images")
        tables[engine] = DetectionTable.from_list(detect(model, chosen, description, score=SCORE)[0], table)
        against = compare(table, tables[engine], tables["eager"], protocol, samples=500)
        rows[engine] = {
            row["area"]: {
                key: None if row[key] is None else round(100 * row[key], 2)
                for key in ("value", "difference", "low", "high")
            }
            for row in against
            if row["value"] >= 0
        }
    objects = int((~table.ignore).sum())
    return {"images": len(chosen.paths), "of": count, "objects": objects, "set": place.val, "engines": rows}


def say(line: str) -> None:
    """What is being done."""
    print(f"{line} ...", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets, as `SETS` names them")
    parser.add_argument("--models", default=",".join(SETS))
    parser.add_argument("--engines", default=ENGINES)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--calibration-tiles", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "precision_loss.json")
    asked = parser.parse_args()
    engines = asked.engines.split(",")
    check_engines(engines)
    if engines[0] != "eager":
        parser.error("'eager' must come first: the others are held against it")
    torch.set_num_threads(1)
    before = json.loads(asked.out.read_text())["models"] if asked.out.is_file() else {}
    for name in asked.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            before[name] = measured(
                name,
                asked.data,
                engines,
                limit=asked.limit,
                tiles=asked.calibration_tiles,
                folder=Path(folder),
            )
        facts = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
        conclude({**facts, "calibration_tiles": asked.calibration_tiles, "models": before}, [], asked.out)


if __name__ == "__main__":
    main()
