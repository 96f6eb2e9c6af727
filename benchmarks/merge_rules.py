"""Which merge of tiles is best: `python benchmarks/merge_rules.py NAME=MODEL=MOSAICS.json … [--keep FOLDER] [--out FILE]`.

Each detector looks at its large images (`benchmarks/mosaics.py`, of validation images alone, with `--jitter`, so that the seams
between images are no lines that tiles could end on) as `flyspeck predict` does, once; what its tiles found is merged by every
rule. AP50, best F1, doubles and the error of the count, and how many objects a tile's border cuts. `--keep` keeps what the
tiles found, as the networks are slow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from verdict import RESULTS, conclude

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import DetectionTable
from flyspeck.evaluate.scoring import evaluate
from flyspeck.infer.load import load_predictor
from flyspeck.infer.merge import MergeRule, merge
from flyspeck.infer.predictor import Journal, concatenate
from flyspeck.infer.reading import Item
from flyspeck.types import Detections

MOST = 3000
"""Detections of an image and class that count: mosaics have hundreds of objects."""
SEEN = 0.3

Tiles = tuple[Detections, np.ndarray, np.ndarray]
"""What all tiles of an image found, in its frame; the tiles (T, 4); the tile of each detection (N,)."""


def by(**settings: Any) -> Callable[[Tiles], Detections]:
    """A merge as the predictor does it."""
    return lambda tiles: merge(tiles[0], tiles=tiles[1], tile_index=tiles[2], rule=MergeRule(**settings))


def over_all(**settings: Any) -> Callable[[Tiles], Detections]:
    """One suppression over the boxes of all tiles, which knows of no tiles: as SAHI and InferenceSlicer do it."""
    return lambda tiles: merge(replace(tiles[0], extra={}), rule=MergeRule(**settings))


RULES: dict[str, Callable[[Tiles], Detections]] = {
    "own, nms 0.4 (0.1)": by(method="nms", witnesses=False),
    "own, tiny": by(method="tiny", witnesses=False),
    "witnesses, nms 0.4": by(method="nms"),
    "witnesses, tiny": by(method="tiny"),
    "witnesses, wbf": by(method="wbf"),
    "witnesses, tiny, within tiles too": by(method="tiny", within_tile=True),
    "all, nms 0.4": by(method="nms", owned=False),
    "all, tiny": by(method="tiny", owned=False),
    "all, wbf": by(method="wbf", owned=False),
    "all, soft-nms": by(method="soft-nms", owned=False),
    "all, tiny, within tiles too": by(method="tiny", owned=False, within_tile=True),
    "one suppression, nms 0.5": over_all(method="nms", threshold=0.5),
    "one suppression, nms 0.4": over_all(method="nms", threshold=0.4),
    "one suppression, nmm ios 0.5": over_all(method="nmm", metric="ios", threshold=0.5),
}


class Keep(Journal):
    """Remembers what each tile found."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[np.ndarray, Detections]]] = {}

    def record(self, item: Item, tile: np.ndarray, found: Detections, **_: Any) -> None:
        """See `Journal.record`."""
        self.found.setdefault(Path(item.name).name, []).append((tile, found))


def looked(model: Path, table: Annotations, kept: Path | None) -> list[Tiles]:
    """What the tiles of each image found."""
    if kept is None or not kept.is_file():
        journal, predictor = Keep(), load_predictor(model, device="cpu")
        for result in predictor.stream([table.path(row) for row in range(len(table))], journal=journal):
            if result.problem is not None:
                raise result.problem
        columns: dict[str, np.ndarray] = {}
        for row in range(len(table)):
            tiles, found = zip(*journal.found[table.path(row).name], strict=True)
            all_of_it = concatenate(found)
            columns |= {f"{row}.tiles": np.array(tiles), f"{row}.boxes": all_of_it.boxes}
            columns |= {f"{row}.scores": all_of_it.scores, f"{row}.labels": all_of_it.labels}
            columns |= {f"{row}.cut": all_of_it.extra["cut"]}
            columns |= {f"{row}.own": np.repeat(np.arange(len(tiles)), [len(one) for one in found])}
        if kept is None:
            return [unpacked(columns, table, row) for row in range(len(table))]
        np.savez_compressed(kept, **columns)  # pyright: ignore[reportArgumentType]
    with np.load(kept) as file:
        stored = dict(file)
    return [unpacked(stored, table, row) for row in range(len(table))]


def unpacked(columns: dict[str, np.ndarray], table: Annotations, row: int) -> Tiles:
    tiles, own = columns[f"{row}.tiles"], columns[f"{row}.own"]
    size = (int(tiles[:, 3].max()), int(tiles[:, 2].max()))
    boxes, scores, labels = (columns[f"{row}.{name}"] for name in ("boxes", "scores", "labels"))
    return Detections(boxes, scores, labels, size, extra={"cut": columns[f"{row}.cut"]}), tiles, own


def crossed(table: Annotations, images: list[Tiles]) -> int:
    """Objects through which a border of a tile goes that is not the image's."""
    count = 0
    for row, (found, tiles, _) in enumerate(images):
        boxes = table.boxes[(table.image_index == row) & ~table.ignore & (table.labels >= 0)]
        hit = np.zeros(len(boxes), bool)
        for axis in (0, 1):
            lines = np.unique(tiles[:, [axis, axis + 2]])
            for line in lines[(lines > 0) & (lines < found.image_size[1 - axis])]:
                hit |= (boxes[:, axis] < line - 1) & (boxes[:, axis + 2] > line + 1)
        count += int(hit.sum())
    return count


def measured(table: Annotations, found: list[Detections]) -> dict[str, float]:
    """In percent but for `boxes`."""
    rows = DetectionTable.from_list(found, table)
    best = evaluate(ground_truth=table, detections=rows, max_dets=MOST)
    seen = evaluate(ground_truth=table, detections=rows, max_dets=MOST, score=SEEN)
    assert best.counts is not None
    assert seen.counts is not None
    told = {f"AP50 {area}": best.value(metric="AP", iou=0.5, area=area) for area in ("all", "tiny")}
    told |= {"best F1": best.counts.at.f1, "doubles at best F1": best.counts.row("all").doubles}
    told |= {"doubles from 0.3": seen.counts.row("all").doubles}
    told |= {"count error at best F1": best.counts.row("all").count_share}
    told |= {"count error from 0.3": seen.counts.row("all").count_share}
    return {name: 100 * value for name, value in told.items()} | {"boxes": len(rows)}


def markdown(sets: list[dict[str, Any]]) -> str:
    """The table of the docs: each rule, AP50 / AP50 tiny / best F1 / doubles from 0.3 / doubles at best F1 in each set."""
    heads = [f"{one['name']}, {one['images']} images" for one in sets]
    lines = ["| merge | " + " | ".join(heads) + " | mean |", "|---" * (len(heads) + 2) + "|"]
    columns = ("AP50 all", "AP50 tiny", "best F1", "doubles from 0.3")
    for rule in RULES:
        cells = [[one["rules"][rule][column] for column in columns] for one in sets]
        cells.append(np.mean(cells, axis=0).tolist())
        lines.append(f"| {rule} | " + " | ".join(" / ".join(f"{v:.1f}" for v in cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="NAME=MODEL=MOSAICS.json")
    parser.add_argument("--keep", type=Path, help="a folder for what the tiles found: NAME.npz")
    parser.add_argument("--out", type=Path, default=RESULTS / "merge_rules.json")
    asked = parser.parse_args()
    sets: list[dict[str, Any]] = []
    for text in asked.sets:
        name, model, mosaics = text.split("=")
        predictor = load_predictor(model, device="cpu")
        table = read_annotations(Path(mosaics), classes=list(predictor.model.classes), for_evaluation=True)  # pyright: ignore
        images = looked(Path(model), table, None if asked.keep is None else asked.keep / f"{name}.npz")
        told = {"name": name, "images": len(images), "objects": int((~table.ignore).sum())}
        told |= {"megapixels": [round(found.image_size[0] * found.image_size[1] / 1e6, 2) for found, _, _ in images]}
        told |= {
            "tile": predictor.tile,
            "overlap": predictor.overlap,
            "objects_cut_by_a_border": crossed(table, images),
        }
        told["rules"] = {rule: measured(table, [merged(one) for one in images]) for rule, merged in RULES.items()}
        sets.append(told)
        print(name, {key: value for key, value in told.items() if key != "rules"}, flush=True)
    print(markdown(sets))
    conclude({"sets": sets, "table": markdown(sets)}, [], asked.out)


if __name__ == "__main__":
    main()
