"""Label errors found against planted: `python benchmarks/label_errors.py SET --model MODEL [--detections FILE]`.

SET is a COCO json that MODEL was not trained on: HIT-UAV's `val_blk.json` shrunk by 2, and `models/hituav_half`. Three seeds
plant errors in it: of each kind 5 % of the boxes, removed, shifted by half their size in a random direction, or given another
class; a second planting also adds 5 % of boxes at empty places. Precision is at k, the number planted of that kind: the share
of the k likeliest suspects of the kind that were planted (a missing one: at most 1 `apart` from a removed box). Real errors of
the set count as wrong here.

Ways of ranking were compared on the development images (frames 5751 to 7349) and are reported on the others. `chances` is the
command's own; `plain` is a score by confidence and IoU alone: score * (1 - IoU) of detections for missing ones, 1 - max(score *
IoU) for superfluous ones, the best other class's score less the own class's for classes, score * (1 - IoU) of the sight for
placement.

`--looked FILE` adds what was seen by eye: a json of counts. `--sheet N FILE` draws the N likeliest suspects of each kind without
any planting, to be looked at.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from verdict import RESULTS, at_least, conclude

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.label_errors.evidence import GATE, apart, gather
from flyspeck.label_errors.opinions import detect
from flyspeck.label_errors.ranking import KINDS, chances, empty_places
from flyspeck.label_errors.suspects import Suspect, rank

SEEDS, SHARE, DEVELOPMENT = (0, 1, 2), 0.05, (5751, 7349)
Truth = dict[str, Any]


def plant(table: Annotations, seed: int, *, superfluous: bool) -> tuple[Annotations, Truth]:
    """The table with errors, and where they are: rows, and of missing ones (image, boxes)."""
    rng = np.random.default_rng(seed)
    objects = np.flatnonzero(~table.ignore & (table.labels >= 0))
    number = round(SHARE * len(objects))
    gone, moved, changed = np.sort(rng.permutation(objects)[: 3 * number].reshape(3, number), 1)
    boxes, labels = table.boxes.copy(), table.labels.copy()
    angle = rng.uniform(0, 2 * np.pi, number)
    step = np.stack([np.cos(angle), np.sin(angle)], 1) * box_algebra.size(boxes[moved])[:, None] / 2
    boxes[moved] += np.tile(step, (1, 2))
    labels[changed] = (labels[changed] + rng.integers(1, len(table.classes), number)) % len(table.classes)
    rows = np.setdiff1d(np.arange(table.num_boxes), gone)
    marks = np.zeros(table.num_boxes, np.int64)
    marks[moved], marks[changed] = 1, 2
    image, marks = table.image_index[rows], marks[rows]
    planted = replace(table, boxes=boxes, labels=labels)
    places = planted.boxes[rows]
    if superfluous:
        copied = rng.choice(rows, number)
        free = empty_places(replace(table, image_index=table.image_index), copied)
        copied, free = copied[np.isfinite(free[:, 0])], free[np.isfinite(free[:, 0])]
        rows, places = np.concatenate([rows, copied]), np.concatenate([places, free])
        image = np.concatenate([image, table.image_index[copied]])
        marks = np.concatenate([marks, np.full(len(copied), 3)])
    order = np.argsort(image, kind="stable")
    planted = replace(planted.select_boxes(rows[order], image_index=image[order]), boxes=places[order])
    marks = marks[order]
    truth = {kind: np.flatnonzero(marks == mark) for mark, kind in ((1, "placement"), (2, "class"), (3, "superfluous"))}
    return planted, {**truth, "missing": (table.image_index[gone], table.boxes[gone])}


def found_missing(images: np.ndarray, boxes: np.ndarray, truth: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Which of the boxes (N, 4) are one of the removed ones, each of which counts once."""
    gone_image, gone = truth
    used, hits = np.zeros(len(gone), bool), np.zeros(len(boxes), bool)
    for row, (image, box) in enumerate(zip(images, boxes, strict=True)):
        here = np.flatnonzero((gone_image == image) & ~used)
        if len(here):
            distance = apart(np.repeat(box[None], len(here), 0), gone[here])
            if distance.min() <= GATE:
                used[here[distance.argmin()]] = hits[row] = True
    return hits


def by_chances(table: Annotations, detections: DetectionTable, truth: Truth) -> dict[str, dict[str, float]]:
    """Precision at k of the command's own suspects, the mean chance of these k, and the estimated share of errors."""
    found = chances(table, detections)
    suspects = rank(table, found)
    out = {}
    for kind in KINDS:
        number = len(truth["missing"][0]) if kind == "missing" else len(truth[kind])
        first = [one for one in suspects if one.kind == kind][:number]
        if not number:
            continue
        if kind == "missing":
            boxes = np.array([one.suggested_box for one in first]).reshape(-1, 4)
            right = found_missing(np.array([one.image for one in first]), boxes, truth["missing"])
        else:
            right = np.isin(np.array([one.row for one in first], np.int64), truth[kind])
        expected = sum(one.chance for one in first) / number
        out[kind] = {"precision": right.sum() / number, "chance": expected, "share": found.rates[kind]}
    return out


def by_plain_scores(table: Annotations, detections: DetectionTable, truth: Truth) -> dict[str, float]:
    """Precision at k of scores by confidence and IoU alone."""
    best, support = np.zeros(len(detections)), np.zeros(table.num_boxes)
    for image in range(len(table)):
        mine, rows = np.flatnonzero(detections.image_index == image), table.of_image(image)
        if len(mine) and rows.stop > rows.start:
            overlap = box_algebra.iou(detections.boxes[mine], table.boxes[rows])
            best[mine] = overlap.max(1)
            support[rows] = (overlap * detections.scores[mine][:, None]).max(0)
    evidence = gather(table, detections)
    rows = np.flatnonzero(evidence.sight >= 0)
    sight = evidence.sight[rows]
    scores = evidence.scores[sight].copy()
    own = scores[np.arange(len(rows)), table.labels[rows]].copy()
    scores[np.arange(len(rows)), table.labels[rows]] = 0
    overlap = box_algebra.paired_iou(evidence.boxes[sight], table.boxes[rows])
    same = evidence.label[sight] == table.labels[rows]
    ranked = {
        "superfluous": 1 - support,
        "class": _full(table, rows, scores.max(1) - own),
        "placement": _full(table, rows, np.where(same, evidence.best[sight] * (1 - overlap), 0)),
    }
    number = len(truth["missing"][0])
    first = np.argsort(-detections.scores * (1 - best), kind="stable")[:number]
    right = found_missing(detections.image_index[first], detections.boxes[first], truth["missing"])
    out = {"missing": right.sum() / number}
    for kind, value in ranked.items():
        if len(truth[kind]):
            first = np.argsort(-value, kind="stable")[: len(truth[kind])]
            out[kind] = np.isin(first, truth[kind]).mean()
    return out


def _full(table: Annotations, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.full(table.num_boxes, -1.0)
    out[rows] = values
    return out


def measure(table: Annotations, detections: DetectionTable) -> dict[str, Any]:
    """Both ways over the seeds: three kinds planted, then four, of which the superfluous ones are reported."""
    rows: dict[str, dict[str, list[float]]] = {}
    for superfluous in (False, True):
        for seed in SEEDS:
            planted, truth = plant(table, seed, superfluous=superfluous)
            ours, plain = by_chances(planted, detections, truth), by_plain_scores(planted, detections, truth)
            for kind in ("superfluous",) if superfluous else ("missing", "class", "placement"):
                row = rows.setdefault(kind, {"planted": [], "precision": [], "chance": [], "share": [], "plain": []})
                for name, value in ours[kind].items():
                    row[name].append(round(float(value), 4))
                row["plain"].append(round(float(plain[kind]), 4))
                row["planted"].append(len(truth["missing"][0] if kind == "missing" else truth[kind]))
    for kind, row in rows.items():
        print(
            f"{kind:12} planted {row['planted'][0]}: precision {_mean(row['precision'])}, plain {_mean(row['plain'])}",
            end="",
        )
        print(f", mean chance {_mean(row['chance'])}, estimated share {_mean(row['share'])}")
    return rows


def _mean(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f} % ({', '.join(f'{100 * v:.1f}' for v in values)})"


def portion(table: Annotations, detections: DetectionTable, development: bool) -> tuple[Annotations, DetectionTable]:
    """The images of the development frames, or the others, with their detections."""
    frames = np.array(
        [int(match[1]) if (match := re.search(r"(\d+)\.\w+$", name)) else -1 for name in table.file_names]
    )
    inside = (frames >= DEVELOPMENT[0]) & (frames <= DEVELOPMENT[1])
    mine = inside if development else ~inside
    new_row = np.cumsum(mine) - 1
    kept = detections.select(mine[detections.image_index])
    return table.select_images(mine), replace(kept, image_index=new_row[kept.image_index])


def draw_sheet(
    table: Annotations, suspects: list[Suspect], file: Path, *, side: int = 56, zoom: int = 4, columns: int = 5
) -> None:
    """Crops of `side` px, bare and marked (blue annotated, orange seen), with the rank and the kind above."""
    cell, height = side * zoom, -(-len(suspects) // columns)
    sheet = Image.new("RGB", (columns * (2 * cell + 8), height * (cell + 16)), (30, 30, 30))
    pen = ImageDraw.Draw(sheet)
    for number, one in enumerate(suspects):
        x1, y1, x2, y2 = one.box or one.suggested_box or (0, 0, 0, 0)
        with Image.open(table.path(one.image)) as opened:
            pixels = opened.convert("RGB")
        left = int(np.clip((x1 + x2 - side) / 2, 0, pixels.width - side))
        top = int(np.clip((y1 + y2 - side) / 2, 0, pixels.height - side))
        crop = pixels.crop((left, top, left + side, top + side)).resize((cell, cell), Image.Resampling.BICUBIC)
        marked = crop.copy()
        marks = [(box, (110, 140, 190)) for box in table.boxes[table.of_image(one.image)].tolist()]
        marks += [(one.box, (64, 200, 255)), (one.suggested_box, (255, 120, 40))]
        for box, colour in marks:
            if box is not None:
                place = (np.array(box) - (left, top, left, top)) * zoom
                ImageDraw.Draw(marked).rectangle(tuple(place.tolist()), outline=colour)
        x, y = number % columns * (2 * cell + 8), number // columns * (cell + 16)
        sheet.paste(crop, (x, y + 14))
        sheet.paste(marked, (x + cell + 2, y + 14))
        words = (
            f"{number + 1} {one.kind} {one.chance:.2f} {one.annotated_class} > {one.suggested_class} {one.size:.0f}px"
        )
        pen.text((x + 2, y), words, fill=(255, 255, 255))
    sheet.save(file)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--classes", default="Person,Car,Bicycle")
    parser.add_argument("--detections", type=Path, help="COCO results: read where it is there, else written")
    parser.add_argument("--looked", type=Path)
    parser.add_argument("--sheet", nargs=2, metavar=("N", "FILE"))
    parser.add_argument("--out", type=Path, default=RESULTS / "label_errors.json")
    given = parser.parse_args()
    table = read_annotations(given.set, classes=given.classes.split(","))
    start = time.perf_counter()
    if given.detections is not None and given.detections.is_file():
        detections = DetectionTable.from_coco(given.detections, table)
    else:
        parts = [(given.model, np.arange(len(table)))]
        table, detections, _ = detect(parts, table, device="cpu", batch_size=8, warn=print)
        if given.detections is not None:
            detections.write_coco(given.detections, table)
    seconds = {"detections": round(time.perf_counter() - start, 1)}
    report = portion(table, detections, development=False)
    if given.sheet:
        suspects = rank(report[0], chances(*report))
        for kind in KINDS:
            mine = [one for one in suspects if one.kind == kind][: int(given.sheet[0])]
            draw_sheet(report[0], mine, Path(given.sheet[1]).with_stem(f"{Path(given.sheet[1]).stem}_{kind}"))
        return
    start = time.perf_counter()
    chances(*report)
    seconds["chances"] = round(time.perf_counter() - start, 2)
    print("development images")
    development = measure(*portion(table, detections, development=True))
    print("reported images")
    reported = measure(*report)
    looked = json.loads(given.looked.read_text()) if given.looked else None
    claims = [
        at_least(
            f"{kind}: precision at the number planted is above that of plain scores",
            100 * float(np.mean(row["precision"])),
            100 * float(np.mean(row["plain"])),
            " %",
        )
        for kind, row in reported.items()
    ]
    facts = {
        "set": f"{len(report[0])} images and {report[0].num_boxes} boxes reported, {len(table) - len(report[0])} to develop on",
        "share": SHARE,
        "seeds": SEEDS,
        "seconds": seconds,
        "development": development,
        "reported": reported,
        "looked_at": looked,
    }
    conclude(facts, claims, given.out)


if __name__ == "__main__":
    main()
