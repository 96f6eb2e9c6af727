"""How long flyspeck takes until it can begin: `python benchmarks/import_time.py [--rounds 7] [--out FILE]`.

Each command is a process of its own, all of them in turn, `--rounds` times; what counts is the median of the time over
that of `import numpy` in the same round, so that the machine's speed and load drop out. What a user waits for in silence
must not load PyTorch (`import torch` stands beside them, to compare).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from verdict import RESULTS, at_most, conclude

COMMANDS = {
    "import numpy": ["-c", "import numpy"],
    "import torch": ["-c", "import torch"],
    "import flyspeck": ["-c", "import flyspeck"],
    "flyspeck --help": ["-m", "flyspeck.cli.start", "--help"],
    "flyspeck predict --help": ["-m", "flyspeck.cli.start", "predict", "--help"],
    "flyspeck data inspect --help": ["-m", "flyspeck.cli.start", "data", "inspect", "--help"],
}
BUDGETS = {
    "import flyspeck": 1.0,
    "flyspeck --help": 3.0,
    "flyspeck predict --help": 10.0,
    "flyspeck data inspect --help": 10.0,
}
"""Times `import numpy` that each may take."""


def seconds(words: list[str]) -> float:
    """Wall time of one process."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "import_time.json")
    asked = parser.parse_args()
    for words in COMMANDS.values():  # files into memory, modules compiled
        seconds(words)
    rounds = [{name: seconds(words) for name, words in COMMANDS.items()} for _ in range(asked.rounds)]
    ratios = {name: statistics.median(one[name] / one["import numpy"] for one in rounds) for name in COMMANDS}
    medians = {name: round(statistics.median(one[name] for one in rounds), 3) for name in COMMANDS}
    for name, ratio in ratios.items():
        print(f"{name:<30} {medians[name]:6.2f} s  {ratio:5.1f} x import numpy")
    claims = [at_most(f"{name}, times import numpy", ratios[name], limit) for name, limit in BUDGETS.items()]
    conclude(
        {"seconds": medians, "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()}}, claims, asked.out
    )


if __name__ == "__main__":
    main()
