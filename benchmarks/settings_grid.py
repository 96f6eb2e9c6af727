"""Whole images or tiles, and how large: what `flyspeck auto` recommends, against all that it chooses from, on other images.

    python benchmarks/settings_grid.py blimpgoals=auto_folder,val.json nuclei=auto_folder,val.json ... --limit 200

`auto` measures the settings on the images that it chooses on, often few. Here each of its settings is measured on images that no
choice was made on (`--limit` of them, evenly spread), and its recommendation is held against the best there, and against the
setting of the training, which is what one has without measuring. A set that is named again replaces its rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from verdict import RESULTS, Claim, conclude

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.plan.settings import Measured, best_of, detect, difference, result_of
from flyspeck.train.checkpoint import load_weights, weights_file
from flyspeck.train.inputs import spread
from flyspeck.train.measure import metrics_of

NEAR = 1.0
"""Points of AP50 that the recommendation may be behind the best of the grid, on the average of the sets."""


def measured_again(model: Path, table: Annotations, settings: list[Measured], metric: str) -> list[dict[str, Any]]:
    """Each setting on these images: its points, those ahead of the first with their interval, and milliseconds an image."""
    _, description = load_weights(weights_file(model))
    rows, first = [], None
    for one in settings:
        batch = one.setting.showing.batch(8, description)
        found, seconds = detect(model, table, one.setting, device="cpu", precision="bf16", batch_size=batch)
        result = result_of(table, found, "flyspeck")
        first = first or found
        ahead = difference(table, found, first, result.protocol, metric)
        rows.append(
            {
                "setting": one.setting.words(),
                "points": round(100 * metrics_of(result)[metric], 2),
                "ahead": None if ahead is None else [round(100 * value, 2) for value in ahead],
                "ms": round(1000 * seconds),
                "points where chosen": round(100 * one.metrics[metric], 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def row_of(name: str, folder: Path, val: Path, limit: int) -> dict[str, Any]:
    """One set: the grid, the recommendation, and by how much it is behind."""
    state = json.loads((folder / "auto.json").read_text())["done"]
    settings = [Measured.of(one) for one in state["settings"]]
    table = spread(read_annotations(val), limit)
    metric = "ap50_tiny"
    grid = measured_again(folder, table, settings, metric)
    chosen = grid[settings.index(best_of(settings))]
    best = max(grid, key=lambda row: row["points"])
    return {
        "set": name, "images": len(table), "chosen on": len(read_annotations(folder / "data" / "choose.json")),
        "recommended": chosen["setting"], "points": chosen["points"], "best": best["setting"], "best points": best["points"],
        "training's points": grid[0]["points"], "behind the best": round(best["points"] - chosen["points"], 2),
        "ahead of the training's": round(chosen["points"] - grid[0]["points"], 2), "grid": grid,
    }  # fmt: skip


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """Over all sets that there are."""
    behind = statistics.mean(row["behind the best"] for row in rows)
    ahead = statistics.mean(row["ahead of the training's"] for row in rows)
    return [
        Claim(
            f"within {NEAR:g} point of the best of the grid, on average", f"{behind:.2f} points behind", behind <= NEAR
        ),
        Claim("no worse than the setting of the training, on average", f"{ahead:+.2f} points", ahead >= 0),
    ]


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=AUTO_FOLDER,VAL")
    parser.add_argument("--limit", type=int, default=200, help="images of each set")
    parser.add_argument("--out", type=Path, default=RESULTS / "settings_grid.json")
    asked = parser.parse_args()
    rows = json.loads(asked.out.read_text())["rows"] if asked.out.is_file() else []
    for word in asked.sets:
        name, _, rest = word.partition("=")
        folder, _, val = rest.rpartition(",")
        rows = [row for row in rows if row["set"] != name] + [row_of(name, Path(folder), Path(val), asked.limit)]
        conclude({"rows": rows}, claims(rows), asked.out)


if __name__ == "__main__":
    main()
