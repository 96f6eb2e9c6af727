"""What a benchmark says at its end: each claim with the metric that decides it, and one json with all of it."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Claim:
    """`what` is a sentence, `metric` what was measured, `holds` whether it is as the sentence says; None: not measured."""

    what: str
    metric: str
    holds: bool | None

    @property
    def text(self) -> str:
        """One line."""
        word = "not measured" if self.holds is None else "holds" if self.holds else "DOES NOT HOLD"
        return f"{word}: {self.what} ({self.metric})"


def at_most(what: str, value: float, limit: float, unit: str = "") -> Claim:
    """The claim that `value` is no more than `limit`."""
    return Claim(what, f"{value:.4g}{unit}, limit {limit:.4g}{unit}", value <= limit)


def at_least(what: str, value: float, limit: float, unit: str = "") -> Claim:
    """The claim that `value` is no less than `limit`."""
    return Claim(what, f"{value:.4g}{unit}, asked {limit:.4g}{unit}", value >= limit)


def conclude(metrics: dict[str, Any], claims: list[Claim], out: Path) -> None:
    """Print the verdicts and write `out`: the metrics, the claims, the call, the machine and how busy it was."""
    for claim in claims:
        print(claim.text)
    try:
        loads = [round(load, 2) for load in os.getloadavg()]
    except OSError:
        loads = []
    told = {
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *map(_without_folder, sys.argv[1:])]),
        "machine": f"{platform.processor() or platform.machine()}, {_cores()} cores",
        "load": loads,
        "claims": [{"what": claim.what, "metric": claim.metric, "holds": claim.holds} for claim in claims],
        **metrics,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = out.with_name(f".{out.name}.part")  # a benchmark that is killed and called again goes on from what is there
    whole.write_text(json.dumps(told, indent=1) + "\n")
    os.replace(whole, out)
    print(f"written to {out}")


def _without_folder(argument: str) -> str:
    """An argument without folders of this machine."""
    return f".../{Path(argument).name}" if argument.startswith("/") else argument


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
