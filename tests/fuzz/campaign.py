#!/usr/bin/env python3
"""Damaged files by the thousand: every place that reads one, an oracle, and what was found, by cluster.

    python tests/fuzz/campaign.py --minutes 2 --seed 1 --json found.json     (minutes of the processor)
    python tests/fuzz/campaign.py --again 1:4711            one input of a seed, with its traceback

The inputs are a function of the seed and their number. They run in a child process, so that one that kills it, or hangs in a
library, is a finding too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elsewhere import Elsewhere

HERE = Path(__file__).resolve().parent
PATHS = [HERE, HERE.parent, HERE.parent / "infer", HERE.parent / "infer" / "video"]
sys.path[:0] = [str(path) for path in PATHS if str(path) not in sys.path]

ALLOWED = ("answer", "one line")
STUCK = 120
"""Seconds without a word after which a child hangs in what no signal ends."""


@dataclass
class Findings:
    """Of a campaign."""

    seed: int
    tried: Counter[str] = field(default_factory=Counter)
    """Inputs by kind of surface."""
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(kind of surface, outcome) to count."""
    watched: bool = True
    """Whether connections and files elsewhere were watched, those of libraries in C too."""
    clusters: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """(kind of finding, place) to the first of them, with how many there were."""

    def take(self, record: dict[str, Any]) -> None:
        """One input's record."""
        self.tried[record["surface_kind"]] += 1
        self.outcomes[record["surface_kind"], record["kind"]] += 1
        if record["kind"] not in ALLOWED:
            cluster = self.clusters.setdefault((record["kind"], record["what"]), {**record, "count": 0})
            cluster["count"] += 1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        table = {kind: {} for kind in self.tried}
        for (surface, outcome), count in sorted(self.outcomes.items()):
            table[surface][outcome] = count
        listed = sorted(self.clusters.values(), key=lambda one: -one["count"])
        return {"seed": self.seed, "inputs": sum(self.tried.values()), "by_kind": table, "clusters": listed}

    def text(self) -> str:
        """For people."""
        lines = [f"seed {self.seed}: {sum(self.tried.values())} inputs"]
        if not self.watched:
            lines.append(
                "  what libraries in C fetch or read elsewhere was not watched: another campaign runs on this machine"
            )
        for kind in sorted(self.tried):
            parts = [f"{what} {count}" for (surface, what), count in sorted(self.outcomes.items()) if surface == kind]
            lines.append(f"  {kind}: {self.tried[kind]} ({', '.join(parts)})")
        for one in sorted(self.clusters.values(), key=lambda one: -one["count"]):
            lines.append(
                f"  FOUND {one['count']}x {one['kind']}: {one['what']}; {one['surface']}, {self.seed}:{one['number']}"
            )
            lines.append(f"    {one['detail'].strip().splitlines()[-1][:200] if one['detail'].strip() else ''}")
        return "\n".join(lines)


class Bench:
    """The surfaces with their sound files in place, on which inputs are tried."""

    def __init__(self, place: Path, once: Path | None = None, kinds: str = "") -> None:
        """`place` is an empty folder, `once` one where what is costly to make is kept, `kinds` those to be tried, with commas."""
        from elsewhere import BAIT, FAR
        from PIL import Image
        from surfaces import surfaces

        # So deep that what lies further up is ours, too.
        self.place = place / "here" / "and" / "there"
        self.place.mkdir(parents=True, exist_ok=True)
        once = once or place / "once"
        once.mkdir(parents=True, exist_ok=True)
        asked = [kind.strip() for kind in kinds.split(",") if kind.strip()]
        self.surfaces = [one for one in surfaces(once) if not asked or one.kind in asked]
        self.order = [surface for surface in self.surfaces for _ in range(surface.weight)]
        self.elsewhere: Elsewhere | None = None
        """Watched while inputs are tried, where it is set."""
        self._baits = [place / part / BAIT for part in ("here", "here/and", "here/and/there", "here/and/there/work")]
        self._baits.append(FAR)
        for bait in self._baits:
            bait.parent.mkdir(parents=True, exist_ok=True)
            if not bait.is_file():
                Image.new("L", (40, 30), 90).save(bait)
        self._ready: dict[str, tuple[str, ...]] = {}

    def prepare(self, seed: int, number: int) -> tuple[Any, Any, str]:
        """The surface of an input, with its sound files in place; its generator; the name of its folder."""
        import numpy as np

        rng = np.random.default_rng([seed, number])
        surface = self.order[int(rng.integers(len(self.order)))]
        key = f"{surface.kind}-{surface.name}".replace("/", "-").replace(" ", "-").replace(",", "")
        if key not in self._ready:
            (self.place / "sound" / key).mkdir(parents=True)
            self._ready[key] = tuple(surface.make(self.place / "sound" / key))
        return surface, rng, key

    def one(self, seed: int, number: int) -> dict[str, Any]:
        """The record of one input."""
        from containers import damaged
        from elsewhere import BAIT
        from oracle import Outcome, judged

        surface, rng, key = self.prepare(seed, number)
        sound, work = self.place / "sound" / key, self.place / "work" / key
        shutil.copytree(sound, work)
        try:
            victims = self._ready[key]
            victim = work / victims[int(rng.integers(len(victims)))]
            victim.write_bytes(damaged(victim.read_bytes(), rng))
            baits = [] if surface.refers else [*self._baits, *work.rglob(BAIT)]
            with self.elsewhere.watched(baits) if self.elsewhere else contextlib.nullcontext([]) as seen:
                outcome = judged(lambda: surface.use(work), writes=work / surface.out)
            if not outcome.found and seen:
                outcome = Outcome("effect", seen[0], outcome.detail)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return {
            "number": number, "surface_kind": surface.kind, "surface": f"{surface.kind} {surface.name}",
            "kind": outcome.kind, "what": outcome.what, "detail": outcome.detail,
        }  # fmt: skip


def run_child(seed: int, first: int, seconds: float, once: Path, kinds: str) -> None:
    """Inputs from number `first` on, for so long; a line each, before and after."""
    with os.fdopen(os.dup(1), "w") as told, tempfile.TemporaryDirectory() as place:
        os.dup2(2, 1)  # what libraries print is no record

        def tell(record: dict[str, Any]) -> None:
            told.write(json.dumps(record) + "\n")
            told.flush()

        from elsewhere import listening
        from surfaces import trained

        bench = Bench(Path(place), once, kinds)
        if {"run folders", "weights", "exported files", "detections"} & {one.kind for one in bench.surfaces}:
            trained(once)
        with listening() as bench.elsewhere:
            tell({"ready": True, "watched": bench.elsewhere is not None})
            number, start = first, time.process_time()
            while time.process_time() < start + seconds:
                bench.prepare(seed, number)
                tell({"begin": number})
                tell({**bench.one(seed, number), "seconds": time.process_time() - start})
                number += 1


def _lines(child: subprocess.Popen[str]) -> queue.Queue[str | None]:
    waiting: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        with child.stdout as told:
            for line in told:
                waiting.put(line)
        waiting.put(None)  # after it is closed, so that nothing of the child is left

    threading.Thread(target=read, daemon=True).start()
    return waiting


def campaign(
    *,
    seed: int,
    minutes: float,
    source: Path | None = None,
    kinds: str = "",
    enough: Callable[[Findings], bool] | None = None,
    once: Path | None = None,
) -> Findings:
    """Tries inputs for so many minutes of the processor, in children; `source`: another `src` than that of this tree. Ends before
    that when there is `enough`. `once`: a folder where what is costly to make is kept, and is found."""
    findings, number, spent = Findings(seed), 0, 0.0
    paths = [str(source or HERE.parents[1] / "src"), str(HERE.parents[1] / "lab" / "src"), *map(str, PATHS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), "no_proxy": "127.0.0.1"}
    with tempfile.TemporaryDirectory() as own, tempfile.TemporaryFile("w+", errors="replace") as said:
        while spent < 60 * minutes:
            words = [
                sys.executable,
                str(HERE / "campaign.py"),
                "--child",
                f"{seed}:{number}:{60 * minutes - spent}:{once or own}",
                "--kinds",
                kinds,
            ]
            child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said, text=True, env=environment)
            known = len(findings.clusters)
            number, begun, worked = _followed(child, findings, number, enough is not None)
            spent += worked
            code = child.wait()
            said.seek(0)
            last = said.read()[-3000:]
            if begun is not None:
                what = "hang in a library" if code == -9 else f"signal {-code}" if code < 0 else f"exit {code}"
                record = {"surface_kind": "?", "surface": "?", "kind": "killed", "what": what, "detail": last}
                findings.take({"number": begun, **record})
                number = begun + 1
            new = len(findings.clusters) > known
            if code and begun is None and not new:
                raise RuntimeError(f"the child failed: {last}")
            if new and enough is not None and enough(findings):
                break
    return findings


def _followed(
    child: subprocess.Popen[str], findings: Findings, number: int, until_new: bool
) -> tuple[int, int | None, float]:
    """Takes what a child tells until it ends, or `until_new` has found a new cluster.

    Returns the next number, the input that it was at when it died, and its seconds (of the processor; of an input that it died of
    by the clock).
    """
    waiting, begun, patience, spent, start = _lines(child), None, 10 * STUCK, 0.0, time.time()
    known = len(findings.clusters)
    while True:
        try:
            line = waiting.get(timeout=patience)
        except queue.Empty:
            child.kill()
            line = None
        if line is None:
            return number, begun, spent if begun is None else spent + time.time() - start
        record = json.loads(line)
        if "ready" in record:
            findings.watched &= record["watched"]
        elif "begin" in record:
            begun, patience, start = record["begin"], STUCK, time.time()
        else:
            spent = record.pop("seconds")
            findings.take(record)
            number, begun, patience = record["number"] + 1, None, 10 * STUCK
            if until_new and len(findings.clusters) > known:
                child.kill()  # what it holds, the port among it, is free when the finding is looked at
                child.wait()
                return number, None, spent


def again(seed: int, number: int, kinds: str = "", once: Path | None = None) -> dict[str, Any]:
    """One input, in this process."""
    from elsewhere import listening

    with tempfile.TemporaryDirectory() as place, listening() as elsewhere:
        bench = Bench(Path(place), once, kinds)
        bench.elsewhere = elsewhere
        return bench.one(seed, number)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--again", metavar="SEED:NUMBER")
    parser.add_argument("--source", type=Path)
    parser.add_argument("--once", type=Path, help="a folder where what is costly to make is kept")
    parser.add_argument("--kinds", default="", help="those of the surfaces, with commas between; default: all")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        seed, first, seconds, once = asked.child.split(":", 3)
        run_child(int(seed), int(first), float(seconds), Path(once), asked.kinds)
        return
    if asked.again:
        seed, _, number = asked.again.partition(":")
        record = again(int(seed), int(number), asked.kinds, asked.once)
        print("\n".join(f"{key}: {value}" for key, value in record.items()))
        return
    seed = asked.seed if asked.seed is not None else int(time.time())
    findings = campaign(seed=seed, minutes=asked.minutes, source=asked.source, kinds=asked.kinds, once=asked.once)
    print(findings.text())
    if asked.json:
        asked.json.write_text(json.dumps(findings.to_json(), indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(findings.clusters))


if __name__ == "__main__":
    main()
