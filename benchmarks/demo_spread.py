"""How far the demo's AP50 spreads over seeds and instruction sets: `python benchmarks/demo_spread.py [--seeds 0,1,2,3,4]`.

The demo's own scenes and recipe (`flyspeck.cli.demo`), with a fixed number of passes in place of minutes, in fp32 and one
thread, so that neither the load nor the speed of the machine changes a result. All settings of a seed see the same scenes. Each
run is a process of its own, and is written when it ends: a call that was broken off goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from verdict import RESULTS, conclude

SETTINGS = {
    "as it is": {},
    "as an AVX2 processor": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
}
WHAT = (
    "The demo's scenes and recipe with {images} images and {epochs} passes from {start}, measured on {val} others, fp32, one "
    "thread, on a processor of {capability}, once as it is and once held to AVX2 (`python benchmarks/demo_spread.py`). {short}"
)
FULL = (300, 18)
"""Images and passes of the demo: by the clock, two processors get so far or further."""


def child(folder: Path, seed: int, epochs: int) -> None:
    """One training; prints AP50 by size."""
    import torch
    import yaml

    from flyspeck.cli.demo_recipe import form_at_hand
    from flyspeck.train.config import parse_recipe
    from flyspeck.train.run import train

    torch.set_num_threads(1)
    recipe = yaml.safe_load(form_at_hand().recipe(length=f"epochs: {epochs}", precision="fp32", seed=seed))
    recipe["data"] |= {part: str(folder / part / "annotations.json") for part in ("train", "val")}
    with tempfile.TemporaryDirectory() as run:
        metrics = train(parse_recipe(recipe), Path(run) / "run")
    print(json.dumps({name: round(100 * value, 2) for name, value in metrics.items() if name.startswith("ap50_")}))


def scenes(folder: Path, seed: int, images: int, val: int) -> None:
    """The demo's own, for the seed."""
    from flyspeck.cli.demo import _paint

    if not (folder / "val" / "annotations.json").is_file():
        _paint(folder, images, val, side=(256, 256), seed=seed)  # its large scene is not looked at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--images", type=int, default=FULL[0])
    parser.add_argument("--val-images", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=FULL[1])
    parser.add_argument("--out", type=Path, default=RESULTS / "demo_spread.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(Path(asked.child[0]), int(asked.child[1]), int(asked.child[2]))
    import torch

    from flyspeck.cli.demo_recipe import form_at_hand

    start = form_at_hand().start or "random weights"
    counts: dict[str, Any] = {
        "images": asked.images, "val": asked.val_images, "epochs": asked.epochs, "start": start
    }  # fmt: skip
    has = torch.backends.cpu.get_cpu_capability()
    short = "" if (asked.images, asked.epochs) == FULL else "That is less than the demo does, whose figures are higher."
    facts = {**counts, "what": WHAT.format(**counts, capability=has, short=short).strip(), "torch": torch.__version__}
    before = json.loads(asked.out.read_text()) if asked.out.is_file() else {}
    runs = before.get("runs", []) if all(before.get(name) == value for name, value in counts.items()) else []
    with tempfile.TemporaryDirectory() as name:
        for seed in map(int, asked.seeds.split(",")):
            for setting, variables in SETTINGS.items():
                if any((run["setting"], run["seed"]) == (setting, seed) for run in runs):
                    continue
                folder = Path(name) / str(seed)
                scenes(folder, seed, asked.images, asked.val_images)
                command = [sys.executable, __file__, "--child", str(folder), str(seed), str(asked.epochs)]
                env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
                done = subprocess.run(command, env=env, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                sizes = {name.removeprefix("ap50_"): value for name, value in found.items()}
                runs.append({"setting": setting, "seed": seed, **sizes})
                print(runs[-1], flush=True)
                conclude({**facts, "runs": runs}, [], asked.out)
    return None


if __name__ == "__main__":
    main()
