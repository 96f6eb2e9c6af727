"""What `flyspeck init` expects of a training against what happens, and how long its command line is silent.

    python benchmarks/plan_forecast.py train.json --val val.json --minutes 4 --out /tmp/forecast

Runs `flyspeck init` and then `flyspeck train` on the recipe that it wrote, one after the other, and prints images a second,
memory and minutes: expected, happened, and the ratio of the two; the seconds to the first line and the longest silence of each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    lines: list[str]
    first: float
    """Seconds to its first line."""
    silence: float
    """Seconds between two lines at most."""
    seconds: float
    peak: int
    """Bytes of its memory at most."""


def run(*words: str) -> Ran:
    """`flyspeck` with these words, its lines as they come."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "flyspeck.cli.main", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines, times = [], []
    for line in process.stdout:
        lines.append(line.rstrip())
        times.append(time.monotonic() - begun)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("\n".join(lines[-5:]))
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    return Ran(lines, times[0], max(gaps), time.monotonic() - begun, used.ru_maxrss * 1024)


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--val")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    val = ["--val", given.val] if given.val else []
    recipe, folder = given.out / "recipe.yaml", given.out / "run"
    looked = run("init", given.data, *val, "--minutes", str(given.minutes), "--out", str(recipe))
    expected = re.search(
        r"([\d.]+) images/s, ([\d.]+) GB of memory, .* done after ([\d.]+) minutes?", "\n".join(looked.lines)
    )
    assert expected is not None
    trained = run("train", str(recipe), "--out", str(folder))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    epochs = [record for record in records if record["kind"] == "epoch"]
    images = sum(record["images_per_second"] * record["seconds"] for record in epochs)
    happened = images / sum(record["seconds"] for record in epochs), trained.peak / 1e9, trained.seconds / 60
    for name, told, was in zip(("images/s", "GB", "minutes"), map(float, expected.groups()), happened, strict=True):
        print(f"{name:>9}: expected {told:.2f}, happened {was:.2f}, ratio {told / was:.2f}")
    for name, ran in (("init", looked), ("train", trained)):
        print(
            f"{name:>9}: first line after {ran.first:.1f} s, longest silence {ran.silence:.1f} s, {ran.seconds:.0f} s in all"
        )


if __name__ == "__main__":
    main()
