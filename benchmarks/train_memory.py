"""Peak memory of a training that is evaluated on large images: `python benchmarks/train_memory.py [--source OTHER/src]`.

Eight scenes to learn from in crops of 256x320, one epoch, one process a row. The validation set is one scene of the crop's size
(what training takes by itself), then one image of 100 megapixels as JPEG and as tiled TIFF, then 15 scenes beside one of
3836x2160 that are looked at twice as large. The metric of a row is the operating system's peak of the whole process, and what
that is beyond the first row. `--source` runs another version of the package; `--limit` is the memory that a process may ask for,
beyond which its row says that it died.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from verdict import RESULTS, Claim, at_most, conclude

SMALL, CROP = (512, 640), (256, 320)
ROWS: dict[str, dict[str, Any]] = {
    "one image of 256x320": {"val": [("small.png", CROP)]},
    "10000x10000 JPEG": {"val": [("large.jpg", (10_000, 10_000))]},
    "10000x10000 tiled TIFF": {"val": [("large.tif", (10_000, 10_000))]},
    "15 of 512x640 and one of 2160x3836, enlarged twice": {
        "val": [*((f"small{i}.png", SMALL) for i in range(15)), ("large.png", (2160, 3836))],
        "enlarge": 2.0,
    },
}
BOUND_MB = 1000
"""What evaluation may add."""


def write_sets(folder: Path) -> None:
    """The training set, and a validation set for every row."""
    from flyspeck.data.scenes.dataset import write_scenes

    write_scenes(folder / "train", num_images=8, height=SMALL[0], width=SMALL[1], seed=1)
    annotations = json.loads((folder / "train" / "annotations.json").read_text())
    scene = np.asarray(Image.open(folder / "train" / annotations["images"][0]["file_name"]).convert("RGB"))
    boxes = [one for one in annotations["annotations"] if one["image_id"] == annotations["images"][0]["id"]]
    for number, row in enumerate(ROWS.values()):
        where = folder / f"val{number}"
        where.mkdir()
        images, marked = [], []
        for name, (height, width) in row["val"]:
            repeats = -(-height // SMALL[0]), -(-width // SMALL[1])
            _write(where / name, np.tile(scene, (*repeats, 1))[:height, :width])
            images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
            inside = [
                b for b in boxes if b["bbox"][0] + b["bbox"][2] <= width and b["bbox"][1] + b["bbox"][3] <= height
            ]
            marked += [{**b, "id": len(marked) + i, "image_id": len(images)} for i, b in enumerate(inside, 1)]
        content = {"images": images, "annotations": marked, "categories": annotations["categories"]}
        (where / "annotations.json").write_text(json.dumps(content))


def _write(path: Path, pixels: np.ndarray) -> None:
    if path.suffix == ".tif":
        import tifffile

        tifffile.imwrite(path, pixels, tile=(512, 512), compression="zlib", photometric="rgb")
    else:
        Image.fromarray(pixels).save(path, **({"quality": 90} if path.suffix == ".jpg" else {}))


def train_once(folder: Path, number: int, row: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    """One row: a training in a process of its own."""
    recipe = {
        "data": {
            "train": str(folder / "train" / "annotations.json"),
            "val": str(folder / f"val{number}" / "annotations.json"),
            "enlarge": row.get("enlarge", 1.0),
        },
        "augment": {"crop": list(CROP)},
        "model": {"name": asked.model, "weights": None, **json.loads(asked.settings)},
        "train": {"epochs": 1, "batch_size": 4, "workers": 0, "optimizer": "sgd", "warmup_steps": 1},
        "evaluate": {"best": "ap50_all"},
    }
    file = folder / f"recipe{number}.yaml"
    file.write_text(json.dumps(recipe))
    source = str(asked.source or Path(__file__).parents[1] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": str(asked.threads)}
    call = [sys.executable, "-m", "flyspeck.cli.main", "train", str(file), "--out", str(folder / f"run{number}")]
    limit = asked.limit * 1_000_000

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    start = time.perf_counter()
    with (folder / f"log{number}").open("wb") as log:
        process = subprocess.Popen(call, env=environment, stdout=log, stderr=log, preexec_fn=bounded)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    said = (folder / f"log{number}").read_text(errors="replace").strip().splitlines()
    lines = [line for line in said if "evaluat" in line]
    return {
        "peak_mb": round(used.ru_maxrss / 1024),
        "seconds": round(time.perf_counter() - start, 1),
        "died": "" if process.returncode == 0 else (said[-1] if said else f"exit code {process.returncode}")[:200],
        "said": lines[-3:],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder `src` of another version")
    parser.add_argument("--model", default="retinanet:mobilenet_v2")
    parser.add_argument(
        "--settings",
        default='{"norm": "bn", "width": 0.25, "channels": 16}',
        help="more of the recipe's `model`, as JSON",
    )
    parser.add_argument("--limit", type=int, default=8000, help="MB that a process may ask for")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", default="", help="numbers of rows, from 0, with commas; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS / "train_memory.json")
    asked = parser.parse_args()
    chosen = [int(n) for n in asked.rows.split(",") if n] or list(range(len(ROWS)))
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_sets(Path(scratch))
        for number, (name, row) in enumerate(ROWS.items()):
            if number in chosen:
                rows[name] = train_once(Path(scratch), number, row, asked)
                print(f"{name}:", "  ".join(f"{key} {value}" for key, value in rows[name].items()), flush=True)
    alone = next(iter(ROWS))
    claims: list[Claim] = []
    for name, row in rows.items():
        if name != alone and alone in rows:
            what = f"{name}: evaluation adds less than {BOUND_MB} MB to a training's peak"
            row["beyond_training_mb"] = row["peak_mb"] - rows[alone]["peak_mb"]
            died = Claim(what, f"died at {asked.limit} MB: {row['died']}", False)
            claims.append(died if row["died"] else at_most(what, row["beyond_training_mb"], BOUND_MB, " MB"))
    conclude(
        {"model": asked.model, "settings": asked.settings, "limit_mb": asked.limit, "rows": rows}, claims, asked.out
    )


if __name__ == "__main__":
    main()
