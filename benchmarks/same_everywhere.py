"""Which numbers are the same bits under other instruction sets and threads, and within what the others agree.

    python benchmarks/same_everywhere.py [--out benchmarks/results/same_everywhere.json]

Everything is made on the spot: scenes, a tiny training, and the detector `models/aerialcars` in PyTorch, ONNX Runtime and
OpenVINO. Each setting is a process of its own with the environment that holds the libraries to older instructions (or to more
threads); it does the same work, and the first one, as the processor is, is what the others are held against. `bits` are compared
byte for byte; boxes as sets with ties (`flyspeck.export.parity`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from verdict import RESULTS, conclude

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "aerialcars" / "model.safetensors"
LEVELS = ("DEFAULT", "AVX2", "AVX512")
"""PyTorch's capabilities of an x86 processor, each of which holds those before it."""
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "as it is, again": {},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "ATEN_CPU_CAPABILITY=default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATEN_CPU_CAPABILITY=avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ONEDNN_MAX_CPU_ISA=SSE41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "ONEDNN_MAX_CPU_ISA=AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL_CBWR=COMPATIBLE": {"MKL_CBWR": "COMPATIBLE"},
    "OPENBLAS_CORETYPE=Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "all as an AVX2 processor": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "all as an SSE4.1 processor": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Prescott",
    },
}
VARIABLES = sorted({name for setting in SETTINGS.values() for name in setting})
ENGINES = ("torch", "onnx", "openvino")
NUMBERS = ("losses of 4 steps", "weights after 4 steps", "S-alpha", "fitted anchors", "evaluation")
RECIPE: dict[str, Any] = {
    "data": {"channels": 3},
    "model": {"name": "fcos:bh_resnet14", "width": 0.25, "channels": 16, "norm": "bn", "head": {"depth": 1}},
    "train": {"epochs": 1, "batch_size": 4, "warmup_steps": 2, "workers": 0, "eval_every": 1, "log_every": 1},
}


# --- one setting, in a process of its own ------------------------------------------------------------------------------


def child(place: Path, out: Path) -> None:
    """All the work, its numbers in `out` (npz)."""
    import torch

    from flyspeck.data.readers import read_annotations
    from flyspeck.train.build import load_described

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    table = read_annotations(place / "scenes" / "annotations.json")
    found: dict[str, np.ndarray] = {**light(table, place), **training(place, out.with_suffix(".run"))}
    _, description = load_described(MODEL)
    for engine in ENGINES:
        found |= {f"{engine} {name}": array for name, array in boxes(engine, place, description, table).items()}
    np.savez(out, **found)  # type: ignore[arg-type]


def light(table: Any, place: Path) -> dict[str, np.ndarray]:
    """What is counted and evaluated without a network."""
    from flyspeck.data import fusion
    from flyspeck.evaluate import DetectionTable, evaluate
    from flyspeck.train.build import fitted_anchors

    strides = (4, 8, 16, 32)
    levels = fusion.anchor_levels(strides, [4.0 * stride for stride in strides])
    alpha = fusion.fusion_statistics(
        table, lambda boxes, sizes: fusion.best_anchor(boxes, sizes, levels), strides, size=None
    )
    anchors = fitted_anchors(table, 4.0)
    detections = DetectionTable.from_coco(place / "detections.json", table)
    rows = evaluate(table, detections, "flyspeck").rows
    return {
        "S-alpha": np.array([*alpha.factors, *alpha.counts]),
        "fitted anchors": np.array([anchors.base_scale, *anchors.ratios], np.float64),
        "evaluation": np.array([row["value"] for row in rows], np.float64),
    }


def training(place: Path, folder: Path) -> dict[str, np.ndarray]:
    """Losses and weights of a few steps from a fixed seed."""
    from flyspeck.files import read_jsonl
    from flyspeck.train.checkpoint import load_weights
    from flyspeck.train.config import parse_recipe
    from flyspeck.train.run import train

    source = str(place / "scenes" / "annotations.json")
    recipe = {**RECIPE, "data": {**RECIPE["data"], "train": source, "val": source}, "name": "same"}
    train(parse_recipe(recipe), folder)
    steps = [one for one in read_jsonl(folder / "metrics.jsonl") if one["kind"] == "step"]
    weights, _ = load_weights(folder / "last.safetensors")
    flat = np.concatenate([tensor.double().numpy().ravel() for _, tensor in sorted(weights.items())])
    losses = np.array([value for step in steps for value in step["losses"].values()], np.float64)
    return {"losses of 4 steps": losses, "weights after 4 steps": flat}


def boxes(engine: str, place: Path, description: dict[str, Any], table: Any) -> dict[str, np.ndarray]:
    """Raw detections of every window, laid end to end."""
    from flyspeck.export.check_images import ImageSet, detect
    from flyspeck.infer.engines import open_exported
    from flyspeck.infer.several import ImagesFailed
    from flyspeck.infer.torch_model import TorchModel
    from flyspeck.train.build import load_described

    if engine == "torch":
        model: Any = TorchModel(load_described(MODEL)[0], device="cpu")
    else:
        model = open_exported(place / {"onnx": "m.onnx", "openvino": "m.xml"}[engine], device="cpu")
    images = ImageSet(tuple(table.path(row) for row in range(len(table))), None, "scenes")
    try:
        windows = detect(model, images, description, score=0.05)[1]
    except ImagesFailed:  # a library that refuses what it is held to
        return {"counts": np.zeros(0, int)}
    return {
        "counts": np.array([len(window) for window in windows]),
        "boxes": np.concatenate([window.boxes for window in windows]),
        "scores": np.concatenate([window.scores for window in windows]),
        "labels": np.concatenate([window.labels for window in windows]),
    }


def make(place: Path) -> None:
    """What all settings share: scenes, detections to evaluate, the exported files. In a process of its own."""
    from flyspeck.data.bands import rule_of
    from flyspeck.data.readers import read_annotations
    from flyspeck.data.scenes.dataset import write_scenes
    from flyspeck.export.frame import Frame
    from flyspeck.export.onnx import describe
    from flyspeck.export.package import traced, write_all
    from flyspeck.export.proof import with_hard_nms
    from flyspeck.files import write_json
    from flyspeck.infer.shown import shown_enlargement
    from flyspeck.train.build import load_described

    table = read_annotations(write_scenes(place / "scenes", num_images=16, seed=0, height=256, width=320, density=2.0))
    rng, found = np.random.default_rng(0), []
    for row in range(len(table.boxes)):
        x1, y1, x2, y2 = (table.boxes[row] + rng.normal(0, 1, 4)).tolist()
        image, score = int(table.image_ids[table.image_index[row]]), float(rng.random())
        box = [x1, y1, max(1.0, x2 - x1), max(1.0, y2 - y1)]
        found.append({"image_id": image, "bbox": box, "score": score, "category_id": int(table.labels[row]) + 1})
    (place / "detections.json").write_text(json.dumps(found))
    detector, description = load_described(MODEL)
    detector = with_hard_nms(detector, detector.head.suppression.iou)
    bits = rule_of(description).bits
    graph, by_factor = traced(detector, bits=bits)
    told, frame = describe(detector, description, bits=bits), Frame.of(detector, shown_enlargement(description))
    for name in ("m.onnx", "m.xml"):
        write_all(graph, by_factor, place / name, told, frame)
    files = [*sorted((place / "scenes" / "images").iterdir()), place / "m.onnx", place / "m.bin"]
    write_json(place / "files.json", {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


# --- all of them, and what differs ---------------------------------------------------------------------------------------


def start(setting: dict[str, str], *words: str) -> None:
    """Runs this file under a setting, and under nothing else."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    subprocess.run([sys.executable, __file__, *words], env={**kept, "OMP_NUM_THREADS": "1", **setting}, check=True)


def against(first: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, Any]:
    """How a setting's numbers differ from the first's."""
    rows: dict[str, Any] = {}
    for name in NUMBERS:
        one, two = first[name], other[name]
        rows[name] = {"bits": one.tobytes() == two.tobytes(), "largest": float(np.abs(one - two).max())}
    for engine in ENGINES:
        if not len(other[f"{engine} counts"]):
            rows[engine] = {"refuses": True}
            continue
        arrays = [f"{engine} {part}" for part in ("counts", "boxes", "scores", "labels")]
        rows[engine] = {"bits": all(first[name].tobytes() == other[name].tobytes() for name in arrays)}
        rows[engine] |= difference(first, other, engine)
    return rows


def same_files(place: Path, old: Path) -> dict[str, Any]:
    """Which of the files that two settings made are the same bytes."""
    one, two = (json.loads((where / "files.json").read_text()) for where in (place, old))
    files = {name: {"bits": one[name] == two[name]} for name in ("m.onnx", "m.bin")}
    return files | {"scenes": {"bits": all(one[name] == two[name] for name in one if name.endswith(".png"))}}


def difference(first: dict[str, np.ndarray], other: dict[str, np.ndarray], engine: str) -> dict[str, Any]:
    """Boxes and scores as sets, ties counted apart."""
    from flyspeck.export.parity import Rule, compare
    from flyspeck.types import Detections

    def windows(found: dict[str, np.ndarray]) -> list[Detections]:
        ends = np.cumsum(found[f"{engine} counts"])[:-1]
        parts = [np.split(found[f"{engine} {part}"], ends) for part in ("boxes", "scores", "labels")]
        return [Detections(*one, (4096, 4096), ("car", "minibus", "bus")) for one in zip(*parts, strict=True)]

    return compare(windows(first), windows(other), Rule(0.05, 0.5, 500)).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "same_everywhere.json")
    parser.add_argument("--folder", type=Path, help="keep here what was made and found, and go on with it")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.make:
        return make(asked.make)
    if asked.child:
        return child(*asked.child)
    import torch

    has = torch.backends.cpu.get_cpu_capability()
    found: dict[str, dict[str, np.ndarray]] = {}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = asked.folder or Path(folder)
        if not (place / "files.json").is_file():
            start({}, "--make", str(place))
        for name, setting in SETTINGS.items():
            level = setting.get("ATEN_CPU_CAPABILITY", "default").upper()
            if level not in LEVELS or has not in LEVELS or LEVELS.index(level) > LEVELS.index(has):
                rows[name] = {"lacking": True}
                continue
            print(f"{name} ...", flush=True)
            file = place / f"{len(found)}.npz"
            if not file.is_file():
                start(setting, "--child", str(place), str(file))
            with np.load(file) as arrays:
                found[name] = {key: arrays[key] for key in arrays.files}
            rows[name] = against(found["as it is"], found[name])
        old = place / "old"
        if not (old / "files.json").is_file():
            old.mkdir(exist_ok=True)
            start(SETTINGS["all as an SSE4.1 processor"], "--make", str(old))
        files = same_files(place, old)
    facts = {"torch": torch.__version__, "capability": has, "settings": rows, "files, SSE4.1 against as it is": files}
    return conclude(facts, [], asked.out)


if __name__ == "__main__":
    main()
