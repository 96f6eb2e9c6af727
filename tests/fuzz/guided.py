#!/usr/bin/env python3
"""Damaged files that coverage chooses: atheris (libFuzzer) over one surface of the campaign.

    python -m pip install atheris        # Linux, Python 3.11; no dependency of flyspeck
    python tests/fuzz/guided.py "annotations coco 0" --minutes 10 --keep corpus/
    python tests/fuzz/guided.py --list

What is kept in `--keep` begins the next call. A finding is what the campaign's oracle calls one: its input is written to
`--out`, and the call ends with code 1. The campaign draws its damage blindly over everything; this goes deep into one reader.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATHS = [HERE, HERE.parent, HERE.parent / "infer", HERE.parent / "infer" / "video"]
sys.path[:0] = [str(path) for path in PATHS if str(path) not in sys.path]


def main() -> None:
    """Runs until a finding or the end of the minutes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("surface", nargs="?", help="Kind and name, as --list gives them.")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="Folder of inputs that reached something new.")
    parser.add_argument("--out", type=Path, default=Path("guided-finding"), help="Where a finding's input goes.")
    asked = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: python -m pip install atheris (Linux, Python 3.11)")
    with atheris.instrument_imports(include=["flyspeck"]):
        import flyspeck.cli.main
        import flyspeck.data.readers  # noqa: F401  (what is imported here is what coverage sees)
    from containers import damaged
    from oracle import judged
    from surfaces import surfaces

    place = Path(tempfile.mkdtemp())
    (place / "once").mkdir()
    known = {f"{one.kind} {one.name}": one for one in surfaces(place / "once")}
    if asked.list or asked.surface not in known:
        print("\n".join(sorted(known)))
        sys.exit(0 if asked.list else 2)
    surface = known[asked.surface]
    sound, work, corpus = place / "sound", place / "work", asked.keep or place / "corpus"
    sound.mkdir()
    victims = list(surface.make(sound))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, victim in enumerate(victims):
        (corpus / f"sound-{number}").write_bytes(bytes([number]) + (sound / victim).read_bytes())
    tried = [0]

    def one(data: bytes) -> None:
        """The first byte says which of the surface's files the rest becomes."""
        tried[0] += 1
        victim = victims[data[0] % len(victims)] if data else victims[0]
        shutil.copytree(sound, work)
        try:
            (work / victim).write_bytes(data[1:])
            outcome = judged(lambda: surface.use(work), writes=work / surface.out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        if outcome.found:
            asked.out.write_bytes(data[1:])
            print(f"FOUND after {tried[0]} inputs: {outcome.kind}, {outcome.what} ({victim}); the input: {asked.out}")
            print(outcome.detail[-2000:])
            sys.stdout.flush()
            os._exit(1)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        """Half of the time as the campaign damages files of this kind, else as libFuzzer does."""
        import numpy as np

        rng = np.random.default_rng(seed)
        if rng.integers(2) and len(data) > 1:
            return (data[:1] + damaged(data[1:], rng))[:most]
        return atheris.Mutate(data, most)

    options = [
        sys.argv[0],
        f"-max_total_time={60 * asked.minutes:.0f}",
        f"-seed={asked.seed}",
        "-max_len=65536",
        "-timeout=120",
    ]
    atheris.Setup([*options, "-rss_limit_mb=6000", str(corpus)], one, custom_mutator=mutated)
    try:
        atheris.Fuzz()
    finally:
        print(f"{tried[0]} inputs")


if __name__ == "__main__":
    main()
