"""Writes `src/flyspeck/publish/measured.json`, which `flyspeck models` shows, from the finished tables of measurements.

    python benchmarks/measured_models.py

A row is one row of a table (trainings of minutes on Tiny HIT-UAV), the mean of its seeds. Rows of other programs, of runs that
choose their factor and of distilled students are left out: their recipe alone does not build them.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml

from flyspeck.cli.demo_recipe import NEW
from flyspeck.files import write_text
from flyspeck.publish.score import cost
from flyspeck.train.build import build_detector
from flyspeck.train.config import parse_recipe
from flyspeck_lab.results import read_results
from flyspeck_lab.table import Job, load_table

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "src" / "flyspeck" / "publish" / "measured.json"
TABLES = ("bottom_heavy", "strides", "together", "alpha", "assigners")
AREAS = ("all", "tiny", "tiny1", "tiny2", "tiny3", "small")
KEPT = ("name", "width", "channels", "norm", "levels", "anchors", "head", "backbone", "neck", "assigner")


def rows() -> list[dict[str, Any]]:
    """One entry a row that was trained."""
    found = []
    for name in TABLES:
        table, results = load_table(HERE / "tables" / f"{name}.yaml"), read_results(HERE / "results", name)
        for row in table.rows_of("cpu"):
            mine = [e for e in results.entries if (e.grade, e.row, e.variant) == ("cpu", row.name, "")]
            mine = [e for e in mine if "ap50_tiny" in e.metrics and "gflops" in e.facts]
            if row.kind != "train" or not mine:
                continue
            job = Job(table, "cpu", row, mine[0].seed)
            if job.content.get("dynamic"):
                continue
            model, facts = job.content["model"], mine[0].facts
            height, width = map(int, facts["size"].split("x"))
            seeds = f"{len(mine)} seed{'s' * (len(mine) > 1)}"
            minutes = fmean(e.facts["seconds"] for e in mine) / 60
            found.append(
                {
                    "name": model["name"],
                    "what": f"{row.label} (table {name})",
                    "data": f"{row.data or table.grades['cpu'].data}, {facts['training_images']} images",
                    "parameters": facts["parameters"],
                    "gflops": facts["gflops"],
                    "size": [height, width],
                    "ap50": {
                        area: round(fmean(e.metrics[f"ap50_{area}"] for e in mine), 4)
                        for area in AREAS
                        if all(f"ap50_{area}" in e.metrics for e in mine)
                    },
                    "training": f"{facts['epochs']} epochs, {minutes:.0f} minutes on one core, {seeds}",
                    "model": {key: model[key] for key in KEPT if key in model},
                }
            )
    return found


def starter() -> dict[str, Any]:
    """The detector that the demo trains, which no table has: what it costs, and no AP."""
    content = yaml.safe_load(NEW.recipe(length="epochs: 1", precision="fp32", seed=1))["model"]
    model = {key: content[key] for key in KEPT if key in content}
    settings = parse_recipe({"data": {"train": "-", "val": "-"}, "model": model}).model
    with torch.device("meta"):
        detector = build_detector(settings, classes=("a", "b", "c"), mean=[0.5] * 3, std=[0.2] * 3, load=False)
    found = cost(detector, (256, 320), proposals=None, latency_runs=0)
    words = {
        "what": "the demo's from random weights",
        "data": "generated scenes",
        "training": "as the machine allows",
        "ap50": {},
    }
    counts = {key: found[key] for key in ("parameters", "gflops")}
    return {"name": model["name"], **words, **counts, "size": [256, 320], "model": model}


if __name__ == "__main__":
    write_text(TARGET, json.dumps([*rows(), starter()], indent=1, ensure_ascii=False) + "\n")
