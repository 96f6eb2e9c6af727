"""Milliseconds of what `peers_scratch.py` trained, exported, beside its AP50 tiny: is `speck` ahead where it takes no longer?

    python benchmarks/peers_time.py results/peers_scratch_SET.json val.json --tool ENV/bin --trained T --work W [--threads 2]

Every detector is exported by its own tool, to ONNX and to OpenVINO (`flyspeck export`, `libreyolo export`), and run by its own
tool in its own Python, one image at a time: from decoded pixels to boxes in the image's pixels, suppression included. ENV is an
environment of the other tool with the very ONNX Runtime and OpenVINO that this one has (`pip install "libreyolo[onnx,openvino]"`
with their versions). Detectors and engines take turns, image by image, the same threads and processors for each. "graph" is the
runtime's part of the same call: ours holds the enlargement, the suppression and all between, theirs the network and, of most,
the decoding.

Two things favour the others: boxes are asked for from `--score` on, their tool's default (AP50 counts theirs from 0.001, where
their suppression has more to do), while the file of `speck` keeps the threshold of its training. Before anything is timed, each
exported detector must find what the trained one found in these images (`found.json`), or nothing is said of its milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from peers_scratch import AHEAD, call
from verdict import RESULTS, Claim, conclude

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.errors import counted
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.evaluate.catalogue import protocol_named
from flyspeck.types import Detections

ENGINES = {"ONNX Runtime": "onnx", "OpenVINO": "openvino"}
PARTS = {"whole": "from pixels to boxes", "graph": "the graph alone"}
LOWEST = 0.001
"""Score that AP50 counts from."""
BEST, BOX_PX, SCORE, SHARE, POINTS = 20, 0.5, 0.01, 0.98, 0.25
"""An export is sound where this share of the best boxes of each image has a partner within so much, and AP50 is within POINTS."""
Key = tuple[str, str]
"""Row and engine."""
COUNTED = """
import sys, torch
from libreyolo import LibreYOLO
from torch.utils.flop_counter import FlopCounterMode
model, size = LibreYOLO(sys.argv[1], device="cpu").model.eval(), int(sys.argv[2])
with torch.no_grad(), FlopCounterMode(display=False) as flops:
    model(torch.zeros(1, 3, size, size))
print("GMACS", flops.get_total_flops() / 2e9)
"""
"""Run by the other tool's Python: a multiply-add is two of PyTorch's operations."""


def is_ours(row: str) -> bool:
    """Whether a row is this project's."""
    return row.startswith("speck")


class Worker:
    """One tool's detectors in one process (`peers_time_worker.py`)."""

    def __init__(self, python: Path | str, tool: str, files: dict[Key, Path], threads: int) -> None:
        self.places = {key: place for place, key in enumerate(files)}
        script = Path(__file__).with_name("peers_time_worker.py")
        words = [str(python), str(script), tool, str(threads), *map(str, files.values())]
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        opened = self._answer()
        self.versions: dict[str, str] = opened["versions"]
        self.classes: dict[Key, list[str]] = dict(zip(files, opened["classes"], strict=True))

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.process.args[:3])} stopped with exit code {self.process.wait()}")  # type: ignore[index]
        return json.loads(line)

    def ask(self, key: Key, image: Path, score: float, calls: int = 1, pause: float = 0.0) -> dict[str, Any]:
        """What the last call took and found."""
        asked = {"file": self.places[key], "image": str(image), "score": score, "calls": calls, "pause": pause}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def trained(result: dict[str, Any], below: Path, seed: int | None, named: list[str] | None) -> dict[str, Path]:
    """Rows and the folders of their trainings, of one seed: what an image takes hardly hangs on it."""
    if len({(row["set"], row["asked minutes"]) for row in result["rows"]}) != 1:
        sys.exit("the results must be of one set and one length of training")
    seed = result["rows"][0]["seed"] if seed is None else seed
    rows = {row["row"]: below / row["folder"] for row in result["rows"] if row["seed"] == seed}
    missing = sorted(set(named or ()) - set(rows))
    if missing or not rows:
        sys.exit(f"no row {missing or ''} of seed {seed} in the results")
    return rows if named is None else {name: rows[name] for name in named}


def exported(row: str, folder: Path, asked: argparse.Namespace) -> dict[Key, Path]:
    """The files of one row, by its own tool; those that are there stay."""
    weights = Path(json.loads((folder / "trained.json").read_text())["weights"])
    place = asked.work / row
    place.mkdir(parents=True, exist_ok=True)
    files = {}
    for engine, form in ENGINES.items():
        done = place / f"{form}.done"  # a file that is cut off is none
        if is_ours(row):
            file = place / f"{row}{'.onnx' if form == 'onnx' else '.xml'}"
            words: list[str | Path] = [sys.executable, "-m", "flyspeck.cli.main", "export", weights, "--out", file]
        else:
            file = place / "weights" / (f"{row}.onnx" if form == "onnx" else f"{row}_openvino")
            copied = place / f"{row}.pt"  # files lie where the command runs, and have the name of the weights
            shutil.copyfile(weights, copied)
            words = [asked.tool / "libreyolo", "export", "--model", copied, "--format", form]
            words += ["--imgsz", str(asked.size), "--device", "cpu"]
        if not done.is_file():
            call(place / f"{form}.log", *words, cwd=None if is_ours(row) else place)
            done.touch()
        if not file.exists():
            sys.exit(f"{row}: no {file} was written, see {place / form}.log")
        files[row, engine] = file
    return files


def cost(row: str, folder: Path, file: Path, val: Annotations, asked: argparse.Namespace) -> dict[str, float | None]:
    """Millions of weights in the exported file, and GMACs of one image of the set; None where they cannot be counted."""
    import onnx

    weights = sum(int(np.prod(one.dims)) for one in onnx.load(file).graph.initializer if one.data_type == 1)
    trained_in = json.loads((folder / "trained.json").read_text())["weights"]
    if is_ours(row):
        from flyspeck.data.enlarge import described_enlargement
        from flyspeck.models.profile import profile
        from flyspeck.train.build import load_described

        detector, description = load_described(trained_in)
        height, width = (int(side) for side in val.sizes[0])
        size = described_enlargement(description).size((height, width))
        gmacs = profile(detector, size, convention="macs").gflops
    else:
        words = [asked.tool / "python", "-c", COUNTED, trained_in, str(asked.size)]
        told = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        lines = [line for line in told.stdout.splitlines() if line.startswith("GMACS ")]
        gmacs = float(lines[0].split()[1]) if lines else None
    return {"params_m": round(weights / 1e6, 3), "gmacs": None if gmacs is None else round(gmacs, 3)}


def before(folder: Path, val: Annotations) -> list[Detections]:
    """What the trained detector found, image by image."""
    place = {category: label for label, category in enumerate(map(int, val.category_ids))}
    by_image: dict[int, list[dict[str, Any]]] = {int(key): [] for key in val.image_ids}
    for row in json.loads((folder / "found.json").read_text()):
        by_image[row["image_id"]].append(row)
    found = []
    for size, rows in zip(val.sizes, by_image.values(), strict=True):
        rows.sort(key=lambda row: -row["score"])
        boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores, labels = [row["score"] for row in rows], [place[row["category_id"]] for row in rows]
        found.append(Detections(boxes, scores, labels, (int(size[0]), int(size[1]))))
    return found


def partners(mine: Detections, theirs: Detections) -> int:
    """How many of the best boxes of `mine` are among `theirs`."""
    best = mine[:BEST]
    near = np.abs(best.boxes[:, None] - theirs.boxes[None]).max(2, initial=0.0) <= BOX_PX
    near &= np.abs(best.scores[:, None] - theirs.scores[None]) <= SCORE
    near &= best.labels[:, None] == theirs.labels[None]
    return int(near.any(1).sum())


def ap50_tiny(found: Sequence[Detections], val: Annotations) -> float:
    """In percent."""
    result = evaluate(val, DetectionTable.from_list(list(found), val), protocol_named("flyspeck"))
    return round(100 * result.value(metric="AP", iou=0.5, area="tiny"), 2)


def named_classes(worker: Worker, key: Key, folder: Path, of: str) -> list[str]:
    """Of a row of set `of`; the other tool's from the data that it learnt: not all of its files keep the names."""
    if is_ours(key[0]):
        return worker.classes[key]
    names: dict[int, str] = yaml.safe_load((folder.parent / f"{of}_yolo" / "data.yaml").read_text())["names"]
    return [names[label] for label in sorted(names)]


def soundness(worker: Worker, key: Key, folder: Path, val: Annotations, of: str) -> dict[str, Any]:
    """The exported detector against the trained one, on all images."""
    numbers = [val.classes.index(name) for name in named_classes(worker, key, folder, of)]
    first, after = before(folder, val), []
    for row, one in enumerate(first):
        told = worker.ask(key, val.path(row), LOWEST)
        labels = [numbers[label] for label in told["labels"]]
        found = Detections(np.array(told["boxes"]), told["scores"], labels, one.image_size)
        after.append(found[np.argsort(-found.scores, kind="stable")])
    pairs = [*zip(first, after, strict=True), *zip(after, first, strict=True)]
    total = sum(min(BEST, len(mine)) for mine, _ in pairs)
    share = sum(partners(mine, theirs) for mine, theirs in pairs) / max(1, total)
    tiny = [ap50_tiny(found, val) for found in (first, after)]
    sound = bool(total) and share >= SHARE and abs(tiny[1] - tiny[0]) <= POINTS
    found = {"sound": sound, "boxes": total, "with a partner": round(share, 5)}
    return found | {"tiny": tiny[0], "tiny exported": tiny[1]}


def turns(
    workers: dict[Key, Worker], images: list[Path], score: float, pause: float
) -> dict[Key, dict[str, list[float]]]:
    """Milliseconds of each by part, image by image, after three images that are not counted."""
    times: dict[Key, dict[str, list[float]]] = {key: {part: [] for part in PARTS} for key in workers}
    keys = list(workers)
    for turn, image in enumerate([*images[:3], *images]):
        for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:
            # The first call finds another's data in the caches.
            told = workers[key].ask(key, image, score, calls=2, pause=pause)
            if turn >= 3:
                for part in PARTS:
                    times[key][part].append(told[part])
    return times


def quartiles(values: list[float]) -> list[float]:
    """The first, the median and the third."""
    return [round(value, 2) for value in statistics.quantiles(values, n=4, method="inclusive")]


def claims_of(times: dict[Key, dict[str, list[float]]], checks: dict[Key, Any], gaps: list[Any]) -> list[Claim]:
    """Whether the exports are sound, and of each other detector: the best `speck` that takes no longer against it."""
    found = []
    for (row, engine), check in checks.items():
        words = f"{check['with a partner']:.2%} of {check['boxes']} boxes, AP50 tiny {check['tiny']} and {check['tiny exported']}"
        found.append(Claim(f"{row}, {engine}: the export finds what was trained", words, check["sound"]))
    for other in dict.fromkeys(row for row, _ in checks if not is_ours(row)):
        for engine in ENGINES:
            for part, words in PARTS.items():
                what = f"speck is {AHEAD:g} points ahead of {other} at no more milliseconds, {engine}, {words}"
                rows = {row: times[row, engine][part] for row, at in times if at == engine}
                mine = {row: gap for row, gap in gaps_over(other, gaps).items() if row in rows}
                if other not in rows or not mine:
                    found.append(Claim(what, "nothing to compare", None))
                    continue
                ratio = {
                    row: statistics.median(a / b for a, b in zip(rows[row], rows[other], strict=True)) for row in mine
                }
                fast = [row for row in mine if ratio[row] <= 1]
                best = max(fast, key=lambda row: mine[row][0]) if fast else min(mine, key=ratio.__getitem__)
                mean, lowest, seeds = mine[best]
                taken = [statistics.median(rows[row]) for row in (best, other)]
                told = f"{best} {taken[0]:.2f} ms, {ratio[best]:.2f} of its {taken[1]:.2f} ms: {mean:+.1f} points, "
                told += f"{counted(seeds, 'seed')}, the lowest bound {lowest:+.1f}"
                found.append(Claim(what, told, bool(fast) and mean >= AHEAD))
    return found


def gaps_over(other: str, gaps: list[Any]) -> dict[str, tuple[float, float, int]]:
    """Of each `speck`: the mean of its points over `other`, the lowest bound, and of how many seeds."""
    by_row: dict[str, list[list[float]]] = {}
    for gap in gaps:
        if gap["than"] == other:
            by_row.setdefault(gap["row"], []).append(gap["points"])
    return {
        row: (statistics.mean(p[0] for p in points), min(p[1] for p in points), len(points))
        for row, points in by_row.items()
    }


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="what peers_scratch.py wrote")
    parser.add_argument("val", type=Path, help="the annotations that it reported on")
    parser.add_argument("--tool", type=Path, required=True, help="folder of the other tool's commands")
    parser.add_argument("--trained", type=Path, required=True, help="what peers_scratch.py had as --work")
    parser.add_argument("--work", type=Path, required=True, help="folder of the exported files")
    parser.add_argument("--rows", help="only these, with commas between")
    parser.add_argument("--seed", type=int, help="of the trainings that are timed; the first by default")
    parser.add_argument("--size", type=int, default=320, help="of the other tool's input, as it was trained")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score", type=float, default=0.25, help="of the boxes that are asked for")
    parser.add_argument("--images", type=int, help="timed: the first of them; default: all")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds before each turn: threads may still spin")
    parser.add_argument("--out", type=Path, help="default: results/peers_time_SET.json")
    asked = parser.parse_args()
    asked.work, asked.tool = asked.work.absolute(), asked.tool.absolute()
    result, val = json.loads(asked.result.read_text()), read_annotations(asked.val)
    asked.out = asked.out or RESULTS / f"peers_time_{result['rows'][0]['set']}.json"
    folders = trained(result, asked.trained.absolute(), asked.seed, asked.rows.split(",") if asked.rows else None)
    files: dict[Key, Path] = {}
    for row, folder in folders.items():
        files |= exported(row, folder, asked)
    costs = {row: cost(row, folder, files[row, "ONNX Runtime"], val, asked) for row, folder in folders.items()}
    opened = {}
    for tool, python in (("flyspeck", sys.executable), ("libreyolo", asked.tool / "python")):
        own = {key: file for key, file in files.items() if is_ours(key[0]) == (tool == "flyspeck")}
        if own:
            opened[tool] = Worker(python, tool, own, asked.threads)
    told = {tool: worker.versions for tool, worker in opened.items()}
    if len({json.dumps(versions) for versions in told.values()}) > 1:
        sys.exit(f"not the same runtimes: {told}; install one version")
    workers = {key: opened["flyspeck" if is_ours(key[0]) else "libreyolo"] for key in files}
    of = result["rows"][0]["set"]
    checks = {key: soundness(worker, key, folders[key[0]], val, of) for key, worker in workers.items()}
    sound = {key: worker for key, worker in workers.items() if checks[key]["sound"]}
    images = [val.path(row) for row in range(len(val))][: asked.images]
    times = turns(sound, images, asked.score, asked.pause)
    rows = []
    for key in files:
        parts = {part: quartiles(times[key][part]) for part in PARTS} if key in times else {}
        rows.append({"row": key[0], "engine": key[1], **costs[key[0]], "ms": parts, **checks[key]})
        print(rows[-1], flush=True)
    for worker in opened.values():
        worker.close()
    metrics = {"threads": asked.threads, "score": asked.score, "images": len(images)}
    metrics |= {"versions": next(iter(told.values())), "rows": rows}
    conclude(metrics, claims_of(times, checks, result["differences"]), asked.out)


if __name__ == "__main__":
    main()
