"""Pruned, trained for INT8, and both, beside the detector as it was and INT8 after training: bytes, milliseconds, AP50 by size.

    flyspeck data shrink hituav/train_blk.json --by 2 --out data/hituav_half       # and val_blk.json
    python benchmarks/compressed.py --data data/hituav_half --work /tmp/compressed [--steps 120] [--images 200] [--only NAME ...]
    python benchmarks/compressed.py --table            # of benchmarks/results/compressed.json
    python benchmarks/compressed.py --student --steps 80 --data data/hituav_half --work /tmp/student    # of a distilled student

Every form of models/hituav_half goes through the commands that users have: `flyspeck prune` and `flyspeck quantise` write the
recipe, `flyspeck train` follows it for so many steps of 8 crops of 128x160, out of as many different images of the training
set. `tuned` is the detector as it was, trained on for as long: what training alone changes. Each is traced once and written
as ONNX and OpenVINO, in float32 and in INT8 (calibrated on 64 tiles of the training set); AP50 by size is that of the ONNX
files on `--images` images of the validation set.

Milliseconds are those of one image of the validation set on one thread, file opened before: all files take turns, round by
round, and a ratio is the median over the rounds of a file's time over that of the float32 file of the same round. Another
process disturbs both alike.

`--student`: not of models/hituav_half but of a student of half its width, from random weights, which learns from it
(`flyspeck distill`), as it does in every form of it; results in compressed_student.json.

What is done already stays in `--work`, so that a broken call goes on. Measured is all that is there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyspeck.export.check_images import ImageSet, detect, named_set, tiles_of
from flyspeck.export.frame import Frame
from flyspeck.export.graph import DetectorGraph
from flyspeck.export.onnx import describe, trace
from flyspeck.export.package import write_all
from flyspeck.export.parity import ap_by_size
from flyspeck.export.quantize import quantise
from flyspeck.infer.engines import open_exported
from flyspeck.infer.shown import shown_enlargement
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.detector import Detector
from flyspeck.models.fake_quantised import input_ranges, is_fake_quantised, set_rounding
from flyspeck.train.build import load_for_use
from flyspeck.train.checkpoint import load_weights
from flyspeck.train.config import Recipe, dump_recipe, load_recipe, parse_recipe
from flyspeck.train.distill.stages import train_student
from flyspeck.train.pruning import prune_run
from flyspeck.train.quantising import quantise_run
from flyspeck.train.run import train
from flyspeck.version import VERSION

HERE = Path(__file__).parents[1]
MODEL = HERE / "models" / "hituav_half"
RESULTS = HERE / "benchmarks" / "results"
SIZE = (256, 320)
CROP = (128, 160)  # of a training image, its objects as large as they are: a quarter of the time
TILES = 64
BATCH = 8
FORMS: dict[str, dict[str, Any]] = {
    "as it was": {},
    "tuned": {"train": True},
    "pruned .1": {"share": 0.1, "train": True},
    "pruned .3": {"share": 0.3, "train": True},
    "trained for INT8": {"int8": True, "train": True},
    "pruned .3, trained for INT8": {"share": 0.3, "int8": True, "train": True},
}
"""How each is made."""
STUDENT_FORMS: dict[str, dict[str, Any]] = {
    "as it was": {},
    "tuned": {"train": True},
    "pruned .3": {"share": 0.3, "train": True},
    "trained for INT8": {"int8": True, "train": True},
    "pruned .3, trained for INT8": {"share": 0.3, "int8": True, "train": True},
    "pruned .3, tuned, then trained for INT8": {"of": "pruned .3", "int8": True, "train": True},
}
"""Of a distilled student; `of`: made of another form, not of the student as it was."""
BINS = ("all", "tiny", "tiny1", "tiny2", "tiny3", "small")


def the_run(work: Path, data: Path, steps: int) -> Path:
    """models/hituav_half as a run folder whose recipe trains four times `steps` steps, so that a quarter is `steps`."""
    folder = work / "run"
    if not (folder / "recipe.yaml").exists():
        _, told = load_weights(MODEL / "model.safetensors")
        classes = {"classes": told["classes"], "channels": 1}
        content = {
            "name": "hituav_half",
            "data": {
                "train": str((data / "train_blk.json").resolve()),
                "val": str((data / "val_blk.json").resolve()),
                "train_limit": steps * BATCH,
                "val_limit": 32,
                **classes,
            },
            "augment": {"flip": 0.5, "scale": [0.8, 1.3], "crop": list(CROP), "photometric": 0.5},
            # Counts that grow with the area beyond a crop's would give four times the proposals on a whole image.
            "model": {**told["model"], "weights": None, "counts": "fixed"},
            "train": {
                "epochs": 4,
                "batch_size": BATCH,
                "optimizer": "adamw",
                "lr": 0.001,
                "weight_decay": 0.01,
                "warmup_steps": 20,
                "clip_grad": 10.0,
                "ema": 0.95,
                "precision": "bf16",
                "workers": 0,
                "seed": 1,
            },
        }
        folder.mkdir(parents=True)
        (folder / "best.safetensors").write_bytes((MODEL / "model.safetensors").read_bytes())
        (folder / "recipe.yaml").write_text(dump_recipe(parse_recipe(content)))
    return folder


def the_student(work: Path, data: Path, steps: int) -> Path:
    """A student of models/hituav_half, distilled for 8 times `steps` steps, so that a quarter is twice `steps`."""
    folder = work / "run"
    if not (folder / "seconds.json").exists():
        begun = time.perf_counter()
        base = load_recipe(the_run(work / "teacher", data, steps) / "recipe.yaml")
        head = {"hidden": 128, "samples": 128, "train_proposals": 500, "proposals": 300}
        small = {"width": 0.5, "channels": 32, "head": head}
        content = {
            **json.loads(base.model_dump_json(exclude_unset=True)),
            "name": "student",
            "distill": {"teacher": str(MODEL / "model.safetensors"), "weight": 0.1},
        }
        content["model"] |= small
        content["train"] |= {"epochs": 8, "lr": 0.002}
        train_student(parse_recipe(content), folder, resume=(folder / "recipe.yaml").exists())
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - begun))
    return folder


def folder_of(name: str) -> str:
    """The run folder of a form, within the working folder."""
    return "run" if name == "as it was" else name.replace(" ", "_").replace(",", "")


def made(name: str, how: dict[str, Any], run: Path, work: Path) -> tuple[Path, float]:
    """The run folder of a form, trained where that is not done, and the seconds that it took."""
    if not how:
        return run, 0.0
    run = work / folder_of(how["of"]) if "of" in how else run
    folder = work / folder_of(name)
    done = folder / "seconds.json"
    if not done.exists():
        start, begun = work / "starts" / folder.name, time.perf_counter()
        if "share" in how:
            recipe = load_recipe(prune_run(run, start, share=how["share"], quantise=how.get("int8", False)).recipe)
        elif how.get("int8"):
            recipe = load_recipe(quantise_run(run, start).recipe)
        else:
            recipe = tuned(load_recipe(run / "recipe.yaml"), run)
        follow = train if recipe.distill is None else train_student
        follow(recipe, folder, resume=(folder / "recipe.yaml").exists())
        done.write_text(json.dumps(time.perf_counter() - begun))
    return folder, json.loads(done.read_text())


def tuned(recipe: Recipe, run: Path) -> Recipe:
    """The run's own recipe from its own weights, as long and as quick as those of the other forms."""
    model = recipe.model.model_copy(update={"start": str((run / "best.safetensors").resolve())})
    left = recipe.train.model_copy(update={"epochs": recipe.train.epochs // 4, "lr": 0.1 * recipe.train.lr})
    return recipe.model_copy(update={"model": model, "train": left})


def written(run: Path, work: Path, tiles: ImageSet) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The files of a form by `fp32` and `int8`, with what each says; a form that is trained for INT8 has no other."""
    detector, description = load_for_use(run / "best.safetensors")
    rounding = is_fake_quantised(detector)
    set_rounding(detector, False)
    told = describe(detector, description)
    frame = Frame.of(detector, shown_enlargement(description))
    folder = work / "files" / run.name
    found = {kind: (folder / f"{kind}.onnx", told) for kind in (("int8",) if rounding else ("fp32", "int8"))}
    if not all(file.with_suffix(ending).exists() for file, _ in found.values() for ending in (".onnx", ".xml")):
        folder.mkdir(parents=True, exist_ok=True)
        graph = trace(detector)
        learnt = {f"{name}.weight": bounds for name, bounds in input_ranges(DetectorGraph(detector)).items()}
        batches = [tile[None] for tile in tiles_of(tiles, description, limit=TILES)]
        for kind, (file, _) in found.items():
            part = graph if kind == "fp32" else quantise(graph, batches, ranges=learnt)
            for ending in (".onnx", ".xml"):
                write_all(part, {}, file.with_suffix(ending), told, frame)
    return found


def scored(kept: Path, val: ImageSet, model: Path | Detector, told: dict[str, Any]) -> dict[str, float]:
    """AP50 by size of a file or a detector, as `kept` has it where it was measured before."""
    if not kept.exists():
        assert val.annotations is not None
        opened = open_exported(model, device="cpu") if isinstance(model, Path) else TorchModel(model, device="cpu")
        found, _ = detect(opened, val, told, score=0.01)
        kept.write_text(json.dumps(ap_by_size(val.annotations, found)))
    return json.loads(kept.read_text())


def milliseconds(files: dict[str, Path], windows: list[np.ndarray]) -> dict[str, list[float]]:
    """Of one image, file by file, in turn; one list a file, one number a round, which has one of the `windows` (H, W, C).

    Real images, for suppression takes its share of the time, and noise has any number of candidates.
    """
    import onnxruntime
    import openvino

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    core = openvino.Core()
    calls = {}
    for name, file in files.items():
        if file.suffix == ".onnx":
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            first = session.get_inputs()[0].name
            calls[name] = lambda window, session=session, first=first: session.run(None, {first: window})
        else:
            settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
            request = core.compile_model(file, "CPU", settings).create_infer_request()
            calls[name] = lambda window, request=request: request.infer([window])
    for call in calls.values():
        call(windows[0][None])
        call(windows[0][None])
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for window in windows:
        for name, call in calls.items():
            begun = time.perf_counter()
            call(window[None])
            taken[name].append(1000 * (time.perf_counter() - begun))
    return taken


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, by form and kind."""
    work, data = arguments.work, arguments.data
    run, forms = (the_student, STUDENT_FORMS) if arguments.student else (the_run, FORMS)
    run = run(work, data, arguments.steps)
    wanted = arguments.only or [
        name for name in forms if not arguments.there or (work / "files" / folder_of(name)).exists()
    ]
    runs = {name: made(name, forms[name], run, work) for name in wanted}
    classes = load_recipe(run / "recipe.yaml").data.classes or []
    val, tiles = (named_set(data / f"{part}_blk.json", classes) for part in ("val", "train"))
    val = val.spread(arguments.images)
    assert val.annotations is not None
    rows: dict[str, dict[str, Any]] = {}
    files: dict[str, Path] = {}
    for name, (folder, seconds) in runs.items():
        detector, description = load_for_use(folder / "best.safetensors")
        kinds = written(folder, work, tiles)
        if is_fake_quantised(detector):
            kept = work / "files" / folder.name / "rounding.json"
            rows[f"{name}, rounding in PyTorch"] = {"ap50": scored(kept, val, detector, description)}
        for kind, (file, told) in kinds.items():
            key = f"{name}, {kind}"
            rows[key] = {
                "ap50": scored(file.with_suffix(".json"), val, file, told),
                "parameters": sum(p.numel() for p in detector.parameters()),
                "training_seconds": round(seconds),
                "onnx_bytes": file.stat().st_size,
                "openvino_bytes": sum(file.with_suffix(end).stat().st_size for end in (".xml", ".bin")),
            }
            files |= {f"{key}|onnx": file, f"{key}|openvino": file.with_suffix(".xml")}
    if arguments.only:
        print(json.dumps(rows, indent=1))
        return {}
    _, description = load_for_use(run / "best.safetensors")
    taken = milliseconds(files, tiles_of(val, description, limit=arguments.rounds))
    for name, own in taken.items():
        key, engine = name.split("|")
        base = taken[f"as it was, fp32|{engine}"]
        rows[key][engine] = {
            "ms": round(statistics.median(own), 2),
            "of_fp32": round(statistics.median([a / b for a, b in zip(own, base, strict=True)]), 3),
        }
    about = {
        "version": VERSION,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "steps": arguments.steps,
        "batch": BATCH,
        "images": len(val.paths),
        "objects": val.annotations.num_boxes,
        "rounds": arguments.rounds,
    }
    return {"about": about, "rows": rows}


def table(content: dict[str, Any]) -> str:
    """The results as the docs show them."""
    lines = [
        "| | parameters (M) | ONNX (MB) | ONNX Runtime | OpenVINO | all | tiny 2-20 | 2-8 | 8-12 | 12-20 | 20-32 |",
        f"|{'---|' * 11}",
    ]
    for name, row in content["rows"].items():
        cells = ["", "", "", ""]
        if "onnx" in row:
            cells = [f"{row['parameters'] / 1e6:.2f}", f"{row['onnx_bytes'] / 1e6:.1f}"]
            cells += [f"{row[engine]['of_fp32']:.2f}" for engine in ("onnx", "openvino")]
        cells += ["–" if row["ap50"][b] < 0 else f"{100 * row['ap50'][b]:.1f}" for b in BINS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of train_blk.json and val_blk.json, shrunk by 2")
    parser.add_argument("--work", type=Path, help="folder of runs and files; kept")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", nargs="*", default=[], help="make and score these forms and stop")
    parser.add_argument(
        "--table", action="store_true", help="print the table of the stored results, and measure nothing"
    )
    parser.add_argument(
        "--there", action="store_true", help="measure the forms that are made already, and make no others"
    )
    parser.add_argument("--student", action="store_true", help="of a distilled student, see above")
    arguments = parser.parse_args()
    results = RESULTS / f"compressed{'_student' if arguments.student else ''}.json"
    if not arguments.table:
        content = measure(arguments)
        if not content:
            return
        results.write_text(json.dumps(content, indent=1) + "\n")
    print(table(json.loads(results.read_text())))


if __name__ == "__main__":
    main()
