#!/usr/bin/env python3
"""Builds the wheel twice, from two copies of the tree in other folders at other times, and compares the bytes.

    python release/twice.py --out dist        exit code 1 where they differ; prints the hash

SOURCE_DATE_EPOCH is the time of the last commit, so that whoever builds the same commit gets the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit_time() -> str:
    """Seconds of the last commit."""
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def build(place: Path, *, mask: int) -> Path:
    """A wheel of the committed tree, unpacked at `place`."""
    place.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    before = os.umask(mask)
    try:
        subprocess.run(["tar", "-x", "-m", "-C", str(place)], input=archive, check=True)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": commit_time()}
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place / "out")]
        subprocess.run(command, cwd=place, check=True, capture_output=True, env=environment)
    finally:
        os.umask(before)
    (wheel,) = (place / "out").glob("*.whl")
    return wheel


def main() -> int:
    """Builds, compares, and keeps the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        wheels = [
            build(Path(place, *parts), mask=mask) for parts, mask in ((("a",), 0o022), (("longer", "name"), 0o077))
        ]
        hashes = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels]
        for wheel, found in zip(wheels, hashes, strict=True):
            print(f"{found}  {wheel.name}")
        if asked.out is not None and len(set(hashes)) == 1:
            asked.out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(wheels[0], asked.out / wheels[0].name)
    return int(len(set(hashes)) > 1)


if __name__ == "__main__":
    sys.exit(main())
