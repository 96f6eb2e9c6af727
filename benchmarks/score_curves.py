"""What a published detector's scores are worth: `python benchmarks/score_curves.py WEIGHTS --gt SET --dt FILE [--blocks N]`.

A curve that is judged on the images it was made of flatters itself. The images of the set, in the order of its table, are cut
into N blocks; the curve is made of every other block, and what its thresholds promise is compared with what they give on the
rest. So no threshold is judged on the frames next to those that chose it. `--write` stores the curve in the description of the
weights (the tensors stay as they are, byte by byte). `--dt` is the `detections.json` of

    flyspeck predict SET --model WEIGHTS --out RUN --score 0.01 --keep-score 0.01 --draw 0

The last lines say whether a map from scores to probabilities (isotonic regression, Zadrozny and Elkan 2002) would pay: the
expected calibration error (15 bins of equal counts) before and after, both on the blocks that the map was not made of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import DetectionTable, protocol_named
from flyspeck.evaluate.ap import prepare
from flyspeck.evaluate.protocols import INFINITE, Bin
from flyspeck.evaluate.score_curve import KEY, ScoreCurve, ScorePoint, ScoreRule, score_curve
from flyspeck.files import write_bytes
from flyspeck.train.checkpoint import KEY as DESCRIPTION
from flyspeck.train.checkpoint import load_weights

BINS = 15


def blocks_of(count: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the even and of the odd ones of `blocks` pieces of `count` images."""
    number = np.arange(count) * min(blocks, count) // count
    return np.flatnonzero(number % 2 == 0), np.flatnonzero(number % 2 == 1)


def part(table: Annotations, found: DetectionTable, rows: np.ndarray) -> tuple[Annotations, DetectionTable]:
    """Some images of a set, and what was found in them."""
    place = np.full(len(table), -1)
    place[rows] = np.arange(len(rows))
    mine = found.select(place[found.image_index] >= 0)
    return table.select_images(rows), replace(mine, image_index=place[mine.image_index])


def at(curve: ScoreCurve, score: float) -> ScorePoint:
    """The working point of a threshold that lies between those of the curve: the next one above it."""
    return min((p for p in curve.points if p.score >= score), key=lambda p: p.score, default=curve.points[0])


def judged(annotations: Annotations, found: DetectionTable) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and whether each detection is right (IoU 0.5); those that count neither way are left out."""
    rule = replace(protocol_named("flyspeck"), bins=(Bin("all", 0.0, INFINITE),), ious=(0.5,), affinity="iou")  # type: ignore[type-var]
    inputs = prepare(annotations, found, replace(rule, max_dets=(len(found),)))  # type: ignore[arg-type]
    outcome = inputs.outcomes["all", 0.5]
    return inputs.found.scores[~outcome.ignored], outcome.hit[~outcome.ignored].astype(float)


def isotonic(scores: np.ndarray, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the rising map from score to share of hits that fits best: pool adjacent violators."""
    order = np.argsort(scores, kind="stable")
    blocks: list[list[float]] = []  # [sum of hits, how many, lowest score]
    for score, hit in zip(scores[order], hits[order], strict=True):
        blocks.append([hit, 1.0, score])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1][0] += last[0]
            blocks[-1][1] += last[1]
    return np.array([b[2] for b in blocks]), np.array([b[0] / b[1] for b in blocks])


def calibration_error(said: np.ndarray, hits: np.ndarray) -> float:
    """Mean distance between what is said and what comes true, over bins of equal counts."""
    order = np.argsort(said, kind="stable")
    groups = np.array_split(order, BINS)
    return float(sum(abs(said[g].mean() - hits[g].mean()) * len(g) for g in groups if len(g)) / len(said))


def store(path: Path, curve: ScoreCurve) -> None:
    """The curve as one entry more of the description: no other entry, and no byte of a tensor, changes for older loaders."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    told = json.loads(header["__metadata__"][DESCRIPTION])
    header["__metadata__"][DESCRIPTION] = json.dumps({**told, KEY: curve.to_dict()})
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors to begin at a multiple of 8
    write_bytes(path, len(text).to_bytes(8, "little") + text + content[end:])


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("--gt", type=Path, required=True)
    parser.add_argument("--dt", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=1_000_000, help="default: every other image")
    parser.add_argument("--from", dest="least", type=float, default=0.05, help="calibration: of scores from here on")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    classes = load_weights(args.weights)[1]["classes"]
    table = read_annotations(args.gt, classes=classes)
    found = DetectionTable.from_coco(args.dt, table)
    (made, made_found), (rest, rest_found) = (part(table, found, rows) for rows in blocks_of(len(table), args.blocks))
    protocol = protocol_named("flyspeck")
    curve, other = score_curve(made, made_found, protocol), score_curve(rest, rest_found, protocol)
    print(f"curve of {curve.images} images, {curve.objects} objects; judged on {other.images}, {other.objects}")
    best = curve.best
    for name, score in (("auto", best.score), ("best here", other.best.score), ("0.3", 0.3)):
        point = at(other, score)
        print(
            f"  {name:<10} from {score:.3f}: F1 {100 * point.f1:.1f}, precision {point.precision:.3f}, recall "
            f"{point.recall:.3f}, {point.false_positives:.2f} false positives an image"
        )
    for text in ("precision=0.7", "precision=0.9", "false-positives=1", "false-positives=0.1"):
        try:
            said = ScoreRule.parse(text).threshold(curve)
        except ValueError as error:  # no score gives it
            print(f"  {text}: {error}")
            continue
        assert said is not None
        point = at(other, said.score)
        print(
            f"  {text} from {said.score:.3f}: precision {said.precision:.3f} → {point.precision:.3f}, false positives "
            f"{said.false_positives:.2f} → {point.false_positives:.2f}"
        )
    scores, hits = judged(made, made_found)
    floors, shares = isotonic(scores[scores >= args.least], hits[scores >= args.least])
    scores, hits = judged(rest, rest_found)
    scores, hits = scores[scores >= args.least], hits[scores >= args.least]
    mapped = shares[np.searchsorted(floors, scores, side="right").clip(1) - 1]
    print(
        f"calibration error from {args.least:g} on: {calibration_error(scores, hits):.3f} as it is, "
        f"{calibration_error(mapped, hits):.3f} with the map, {len(scores)} detections"
    )
    if args.write:
        store(args.weights, curve)
        print(f"written; sha256 {hashlib.sha256(args.weights.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
