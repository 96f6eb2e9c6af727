"""Whether tiles lose or double objects at their borders: `python benchmarks/seams.py RUN [--size 3000x4000] [--images 2]`.

Three checks on one detector that was trained on generated scenes, none of which needs the detector to be good:

* planted: one well-visible object, cut out of a scene, is pasted onto every kind of tile border and corner of a plain ground,
  at many offsets; each must be found once. "own" is what the one tile says that an object belongs to, without any merge: what
  the detector itself misses or doubles. The score from which detections count is the lowest of 0.3, 0.35, … at which it does
  neither.
* neighbours: two copies 3 px apart, across a seam, must stay two wherever "own" has two.
* scenes: recall of objects whose centre is within 20 px of a tile's border against recall elsewhere, with Wilson intervals
  of 95 %.

A detector that gives an object to two classes does so in any image; doubles are counted within a class, and objects with a
second class are counted apart.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from verdict import RESULTS, Claim, conclude

from flyspeck.boxes import iou
from flyspeck.data.scenes import KINDS, generate_scene
from flyspeck.export.check_images import Recorder
from flyspeck.infer.predictor import Predictor, concatenate
from flyspeck.infer.tiles import grid
from flyspeck.infer.torch_model import TorchModel
from flyspeck.train.build import load_described
from flyspeck.types import Detections

TILE, OVERLAP, NEAR, GAP = (256, 320), 64, 20, 3
SCORES = (0.3, 0.35, 0.4, 0.45, 0.5)


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    if not trials:
        return 0.0, 1.0
    z, p = 1.959964, hits / trials
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    return middle - half, middle + half


def lines(size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """x and y of the tile borders inside an image."""
    frames = grid(size, TILE, OVERLAP)
    x = sorted({int(v) for v in frames[:, [0, 2]].ravel()} - {0, size[1]})
    y = sorted({int(v) for v in frames[:, [1, 3]].ravel()} - {0, size[0]})
    return x, y


def choose_object(model: TorchModel, seeds: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The surest object of 6 to 16 px: its cut-out (h, w, 3) with a margin, its box in that, the mean colour of its ground."""
    best: tuple[float, np.ndarray, np.ndarray, np.ndarray] | None = None
    for seed in seeds:
        scene = generate_scene(seed, height=256, width=320)
        found = model([scene.pixels])[0]
        objects = scene.boxes[~scene.ignore]
        if not len(objects) or not len(found):
            continue
        overlap = iou(objects, found.boxes) * (found.scores >= 0.6)
        for k in np.flatnonzero(overlap.max(axis=1) > 0.7):
            x1, y1, x2, y2 = objects[k]
            side, margin = max(x2 - x1, y2 - y1), 4
            left, top, right, bottom = (
                int(x1) - margin,
                int(y1) - margin,
                int(np.ceil(x2)) + margin,
                int(np.ceil(y2)) + margin,
            )
            clear = (iou(objects, np.array([[left, top, right, bottom]], float))[:, 0] > 0).sum() == 1
            if not (6 <= side <= 16 and clear and left >= 0 and top >= 0 and right <= 320 and bottom <= 256):
                continue
            score = float(found.scores[overlap[k].argmax()])
            if best is None or score > best[0]:
                patch = scene.pixels[top:bottom, left:right]
                edge = np.concatenate([patch[0], patch[-1], patch[:, 0], patch[:, -1]])
                best = (score, patch, np.array([x1 - left, y1 - top, x2 - left, y2 - top]), edge.mean(axis=0))
    if best is None:
        raise SystemExit("no object in these scenes is found surely enough to be planted")
    return best[1:]


def plant(ground: np.ndarray, patch: np.ndarray, box: np.ndarray, at: tuple[int, int]) -> np.ndarray:
    """Paste the object with its corner at (x, y), softly at the patch's rim; its box in the image."""
    x, y = at[0] - round(box[0]), at[1] - round(box[1])
    high, wide = patch.shape[:2]
    from_edge = [np.minimum(np.arange(n), np.arange(n)[::-1]) for n in (high, wide)]
    rim = np.minimum.outer(*from_edge)
    alpha = (rim / 3).clip(0, 1)[:, :, None]
    part = ground[y : y + high, x : x + wide]
    ground[y : y + high, x : x + wide] = (patch * alpha + part * (1 - alpha)).round().astype(np.uint8)
    return box + np.array([x, y, x, y])


def hits(found: Detections, boxes: np.ndarray, score: float, *, grow: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """How many detections of at least `score` have their centre in each box, which is grown by that share to each side.

    `(N,)` the most of one class, `(N,)` the number of classes.
    """
    strong = found[found.scores >= score]
    centre = (strong.boxes[:, :2] + strong.boxes[:, 2:]) / 2
    margin = grow * (boxes[:, 2:] - boxes[:, :2])
    inside = (centre > boxes[:, None, :2] - margin[:, None]) & (centre < boxes[:, None, 2:] + margin[:, None])
    inside = inside.all(axis=2)
    classes = max(1, len(strong.classes), int(strong.labels.max(initial=0)) + 1)
    counts = np.stack([inside[:, strong.labels == label].sum(axis=1) for label in range(classes)], axis=1)
    return counts.max(axis=1), (counts > 0).sum(axis=1)


def plain_ground(size: tuple[int, int], colour: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 3, (*size, 3))
    return (colour + noise).clip(0, 255).astype(np.uint8)


def both_ways(model: TorchModel, ground: np.ndarray) -> dict[str, Detections]:
    """What is found in tiles, and what each tile alone says of the part that is its own."""
    recorder = Recorder(model)
    (merged,) = Predictor(recorder, tile=TILE, overlap=OVERLAP, batch_size=4).predict(ground)
    size = (ground.shape[0], ground.shape[1])
    frames = grid(size, TILE, OVERLAP)
    parts = []
    for frame, found in zip(frames, recorder.found, strict=True):
        middle = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2 + frame[:2]
        deepest = np.array([depths(frames, point, size).argmax() for point in middle], np.int64)
        mine = found[(frames[deepest] == frame).all(axis=1)] if len(found) else found
        parts.append(replace(mine, boxes=mine.boxes + np.tile(frame[:2], 2), image_size=size))
    return {"tiles": merged, "own": concatenate(parts)}


def depths(frames: np.ndarray, point: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """How far inside each tile a point lies, in pixels; the image's own borders do not count."""
    low = np.where(frames[:, :2] > 0, point - frames[:, :2], np.inf)
    high = np.where(frames[:, 2:] < np.array([size[1], size[0]]), frames[:, 2:] - point, np.inf)
    return np.concatenate([low, high], axis=1).min(axis=1)


def planted(model: TorchModel, patch: np.ndarray, box: np.ndarray, colour: np.ndarray) -> dict:
    """Every border and every corner, many offsets each, as many images as keep the objects apart."""
    size = (600, 800)
    xs, ys = lines(size)
    side = int(max(box[2:] - box[:2]).round())
    places = [(x + d, y + e) for x in xs for y in ys for d in (-side, -side // 2, 0) for e in (-side, -side // 2, 0)]
    offsets = (-side, 1 - side, -side // 2, -1, 0)
    places += [(x + d, y) for x in xs for y in range(20, size[0] - 60, 45) for d in offsets]
    places += [(x, y + d) for y in ys for x in range(20, size[1] - 60, 45) for d in offsets]
    seen = []
    while places:
        now: list[tuple[int, int]] = []
        for place in places:
            if all(abs(place[0] - x) > 30 or abs(place[1] - y) > 30 for x, y in now):
                now.append(place)
        places = [p for p in places if p not in now]
        ground = plain_ground(size, colour, len(places))
        boxes = np.array([plant(ground, patch, box, at) for at in now])
        seen.append((boxes, both_ways(model, ground)))
    table = [{"score": score, **{way: _counts(seen, way, score) for way in ("tiles", "own")}} for score in SCORES]
    clear = [row for row in table if row["own"]["none"] == row["own"]["twice"] == 0]
    return {**(clear or table[-1:])[0], "by score": table}


def _counts(seen: list[tuple[np.ndarray, dict[str, Detections]]], way: str, score: float) -> dict[str, int]:
    names = ("none", "once", "twice")
    counted = dict.fromkeys((*names, "of two classes"), 0)
    for boxes, found in seen:
        most, classes = hits(found[way], boxes, score)
        for count in most.tolist():
            counted[names[min(2, count)]] += 1
        counted["of two classes"] += int((classes > 1).sum())
    return counted


def neighbours(model: TorchModel, patch: np.ndarray, box: np.ndarray, colour: np.ndarray, score: float) -> dict:
    """Pairs GAP px apart across seams: how many are found as exactly two."""
    size = (600, 800)
    xs, _ = lines(size)
    core = patch[round(box[1]) : round(box[3]), round(box[0]) : round(box[2])]
    high, wide = core.shape[:2]
    counted = {"pairs": 0, "two in tiles": 0, "two in own": 0, "two in own, not in tiles": 0}
    for shift in range(-GAP - 1, 2):
        ground = plain_ground(size, colour, shift + 50)
        pairs = []
        for y in range(30, size[0] - 40, 50):
            for x in xs:
                pair = []
                for left in (x + shift - wide, x + shift + GAP):
                    ground[y : y + high, left : left + wide] = core
                    pair.append([left, y, left + wide, y + high])
                pairs.append(pair)
        boxes = np.array(pairs, float)
        two = {
            way: (hits(found, boxes[:, 0], score, grow=0)[0] == 1) & (hits(found, boxes[:, 1], score, grow=0)[0] == 1)
            for way, found in both_ways(model, ground).items()
        }
        counted["pairs"] += len(boxes)
        counted["two in tiles"] += int(two["tiles"].sum())
        counted["two in own"] += int(two["own"].sum())
        counted["two in own, not in tiles"] += int((two["own"] & ~two["tiles"]).sum())
    return counted


def scenes(model: TorchModel, size: tuple[int, int], images: int, kind: str | None) -> dict:
    """Recall (IoU 0.5, score 0.3) near borders and elsewhere."""
    counts = {"near": [0, 0], "elsewhere": [0, 0]}
    xs, ys = lines(size)
    for seed in range(images):
        scene = generate_scene((seed, 5), height=size[0], width=size[1], kind=kind)
        (found,) = Predictor(model, tile=TILE, overlap=OVERLAP, batch_size=4).predict(scene.pixels)
        objects = scene.boxes[~scene.ignore]
        strong = found.boxes[found.scores >= SCORES[0]]
        seen = iou(objects, strong).max(axis=1, initial=0) >= 0.5
        near = np.zeros(len(objects), bool)
        centre = (
            objects[:, :2] + objects[:, 2:]
        ) / 2  # by the nearest side, large and easy objects would be near more often
        for axis, borders in ((0, xs), (1, ys)):
            near |= (np.abs(centre[:, axis, None] - np.array(borders)) <= NEAR).any(axis=1)
        for key, chosen in (("near", near), ("elsewhere", ~near)):
            counts[key][0] += int(seen[chosen].sum())
            counts[key][1] += int(chosen.sum())
    out = {}
    for key, (good, total) in counts.items():
        low, high = wilson(good, total)
        out[key] = {"found": good, "objects": total, "recall": good / max(1, total), "low": low, "high": high}
    return out


def claims_of(metrics: dict) -> list[Claim]:
    """The verdicts. What the detector misses or doubles in the tile that an object belongs to is not the seams'."""
    tiles, own = metrics["planted"]["tiles"], metrics["planted"]["own"]
    total = sum(tiles[name] for name in ("none", "once", "twice"))
    pairs, near, other = metrics["neighbours"], metrics["scenes"]["near"], metrics["scenes"]["elsewhere"]
    told = f"{tiles['once']} of {total} once, {tiles['none']} not at all, {tiles['twice']} twice; the own tile alone "
    told += f"{own['none']} not at all, {own['twice']} twice"
    apart = near["low"] <= other["high"] and other["low"] <= near["high"]
    shares = [
        f"{100 * row['recall']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})" for row in (near, other)
    ]
    return [
        Claim(
            "an object on a border or corner is found once",
            told,
            tiles["none"] <= own["none"] and tiles["twice"] <= own["twice"],
        ),
        Claim(
            f"two neighbours {GAP} px apart across a seam stay two",
            f"{pairs['two in own, not in tiles']} of {pairs['two in own']} lost that the own tile has as two, "
            f"of {pairs['pairs']} pairs",
            pairs["two in own, not in tiles"] == 0 if pairs["two in own"] else None,
        ),
        Claim(f"recall within {NEAR} px of a border equals recall elsewhere", " against ".join(shares), apart),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--size", default="3000x4000")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--kind", choices=KINDS, default=None, help="of the scenes; all kinds by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS / "seams.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    height, width = (int(v) for v in asked.size.split("x"))
    detector, description = load_described(asked.run)
    model = TorchModel(detector, device="cpu")
    patch, box, colour = choose_object(model, range(40))
    metrics = {"detector": str(description["model"]["name"]), "tile": TILE, "overlap": OVERLAP}
    metrics["object"] = [round(float(v), 1) for v in box[2:] - box[:2]]
    metrics["planted"] = planted(model, patch, box, colour)
    print("planted", json.dumps(metrics["planted"]), flush=True)
    metrics["neighbours"] = neighbours(model, patch, box, colour, metrics["planted"]["score"])
    print("neighbours", json.dumps(metrics["neighbours"]), flush=True)
    metrics["scenes"] = scenes(model, (height, width), asked.images, asked.kind)
    conclude(metrics, claims_of(metrics), asked.out)


if __name__ == "__main__":
    main()
