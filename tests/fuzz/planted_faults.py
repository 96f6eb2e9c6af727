#!/usr/bin/env python3
"""Would the campaign find a fault that is there? Ten are planted, each in a copy of the package, and looked for.

    python tests/fuzz/planted_faults.py --minutes 2 --seed 1 --json planted.json

A finding counts only where the same input has an allowed outcome without the fault.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE)] if str(HERE) not in sys.path else []

from campaign import Findings, campaign  # noqa: E402


@dataclass(frozen=True)
class Fault:
    """A text of the package that is replaced."""

    name: str
    file: str
    """Below `src/flyspeck`."""
    text: str
    replacement: str

    def plant(self, source: Path) -> None:
        """Into a copy of `src`."""
        path = source / "flyspeck" / self.file
        content = path.read_text(encoding="utf-8")
        assert content.count(self.text) == 1, f"{self.name}: the text moved, move the fault with it"
        path.write_text(content.replace(self.text, self.replacement), encoding="utf-8")


FAULTS = (
    Fault(
        "an exception of the XML parser that is not caught", "data/readers/values.py",
        "    except ElementTree.ParseError as error:\n", "    except ZeroDivisionError as error:\n",
    ),
    Fault(
        "names of images that lead out of the output folder", "data/image_files.py",
        'if part not in ("..", ".", Path(name).anchor)', 'if part not in (".", Path(name).anchor)',
    ),
    Fault(
        "a loop that does not go on at an empty line", "data/readers/wider.py",
        "        at += 1\n        if not name:\n            continue\n",
        "        if not name:\n            continue\n        at += 1\n",
    ),
    Fault(
        "images of any size are decoded", "data/images.py",
        "    if max_pixels is None:\n        return\n    if pixels > max_pixels:",
        "    if pixels:\n        return\n    if pixels > max_pixels:",
    ),
    Fault(
        "a pickle that is obeyed", "data/classification.py",
        '        raise pickle.UnpicklingError(f"the file wants to load {module_name}.{global_name}")',
        "        return super().find_class(module_name, global_name)",
    ),
    Fault(
        "texts that stand in the tables of a page as markup", "report/tables.py",
        '"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])', '"".join(f"<td>{cell}</td>" for cell in row[1:])',
    ),
    Fault(
        "a kind of image for which Pillow starts a program", "data/images.py",
        '"JPEG2000", "PPM", "AVIF")\n"""Pillow', '"JPEG2000", "PPM", "AVIF", "EPS")\n"""Pillow',
    ),
    Fault(
        "a raster that fetches what it names", "infer/references.py",
        "def check_references(path: Path, driver: str) -> None:\n",
        "def check_references(path: Path, driver: str) -> None:\n    return\n\n\ndef unused(path: Path, driver: str) -> None:\n",
    ),
    Fault(
        "numbers that are none", "data/readers/assemble.py",
        "(~np.isfinite(boxes).all(1) | ~np.isfinite(width * height), ", "(np.zeros(len(boxes), bool), ",
    ),
    Fault(
        "integers of more than 64 bits", "data/readers/assemble.py",
        "not isinstance(i, bool) and -(2**63) <= i < 2**63 for i in ids", "not isinstance(i, bool) for i in ids",
    ),
)  # fmt: skip
"""Of different kinds, at different places."""


def sound(seed: int, number: int, source: Path, once: Path) -> bool:
    """Whether the package in `source` has an allowed outcome for an input."""
    words = [sys.executable, str(HERE / "campaign.py"), "--again", f"{seed}:{number}", "--once", str(once)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(ROOT / "lab" / "src")])}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=600)
    return any(line in ("kind: answer", "kind: one line") for line in done.stdout.splitlines())


def looked_for(fault: Fault, *, seed: int, minutes: float, once: Path) -> dict[str, Any]:
    """What a campaign finds of one fault; `once`: a folder for what the sound package makes once."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        fault.plant(source)
        told: dict[tuple[str, str], bool] = {}

        def enough(findings: Findings) -> bool:
            for key, one in findings.clusters.items():
                if key not in told:
                    told[key] = sound(seed, one["number"], ROOT / "src", once)
                if told[key]:
                    return True
            return False

        findings = campaign(seed=seed, minutes=minutes, source=source, enough=enough, once=once)
    inputs = sum(findings.tried.values())
    by = next((one for key, one in findings.clusters.items() if told.get(key)), None)
    found: dict[str, Any] = {"fault": fault.name, "file": fault.file, "found": by is not None, "inputs": inputs}
    own = [f"{one['what']}, {seed}:{one['number']}" for key, one in findings.clusters.items() if told.get(key) is False]
    found |= {"faults of the package itself": own} if own else {}
    return found if by is None else {**found, "surface": by["surface"], "as": f"{by['kind']}: {by['what']}"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of the processor, for each fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--once", type=Path, help="a folder where what is costly to make is kept")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as own:
        once = asked.once or Path(own)
        for fault in FAULTS:
            if asked.only in fault.name:
                rows.append(looked_for(fault, seed=asked.seed, minutes=asked.minutes, once=once))
                print(json.dumps(rows[-1]), flush=True)
    found = sum(row["found"] for row in rows)
    print(f"{found} of {len(rows)} found")
    if asked.json:
        counts = {"seed": asked.seed, "minutes": asked.minutes, "faults": rows}
        asked.json.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    sys.exit(found < 0.9 * len(rows))


if __name__ == "__main__":
    main()
