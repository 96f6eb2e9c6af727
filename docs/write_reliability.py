#!/usr/bin/env python3
"""Writes `docs/reliability.md` from `docs/reliability.json`, which holds what campaigns measured.

    .venv/bin/python -m pytest -m fuzz --fuzz-minutes 60 --fuzz-json fuzz.json
    .venv/bin/python -m pytest -m slow tests/crashes --crash-json crashes.json --deaths-json deaths.json
    .venv/bin/python tests/fuzz/planted_faults.py --json planted.json
    .venv/bin/python tests/mutation/campaign_of_mutants.py --json mutants.json
    .venv/bin/python docs/write_reliability.py --fuzz fuzz.json --crashes crashes.json --deaths deaths.json
    .venv/bin/python docs/write_reliability.py --planted planted.json --mutants mutants.json
    .venv/bin/python -m pytest -m slow tests/release/test_installs.py --installs-json installs.json
    .venv/bin/python docs/write_reliability.py --installs installs.json --release

Without options the page is written anew from the numbers that are there. A campaign is added to those before it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reliability_release import installs, measured
from reliability_results import sections

HERE = Path(__file__).resolve().parent
FOUND = ("traceback", "several lines", "hang", "memory", "effect", "killed")
MEANINGS = {"kill": "killed before", "torn": "killed in the middle", "full": "disk full", "io": "I/O error"}
MEANINGS |= {"files": "too many files open", "clock": "clock a year slow", "short": "short writes"}


DAMAGED = """
# How far it can be trusted

What damaged and hostile files do, what a crash costs, and what is known not to hold. `docs/write_reliability.py` writes this page
from what campaigns measured (`docs/reliability.json`). What is promised stands in [SECURITY.md](../SECURITY.md).

## Damaged files

{total:,} inputs in {campaigns} campaigns (`python -m pytest -m fuzz`): a sound file of every kind that is read, cut off, its
bytes turned, fields swapped or odd, the chunks of containers damaged and packed again; or with what somebody could put there:
names of files elsewhere, bombs, pickled calls, markup, files of another kind. Each must give an answer, or one line that
says what is wrong: no traceback, nothing that takes over 10 seconds or 1 GB, no file beside the output, no network, no other
program. A finding is mended by its cause, and held by a test.

| what is read | inputs | answer | one line | findings |
|---|---|---|---|---|
{rows}

What was found so, by the hostile files below, and by reading the code after either, and is mended:

{mended}
"""
PLANTED = """
### Planted faults

Would it find a fault that is there? Each of these was planted in a copy of the package and looked for, on all surfaces, for at
most {minutes:g} minutes of the processor (`python tests/fuzz/planted_faults.py`): **{found} of {planted} found**. A finding
counts only where the same input has an allowed outcome without the fault.

{table}
{note}"""
MUTATED = """
## Mutants

A mutant is the code with one comparison, sign, number, condition, or statement changed; a test that fails kills it. Of each area
some are drawn with a seed and tried by the nearby tests that reach their line, the fastest {most} of them
(`python tests/mutation/campaign_of_mutants.py`). The rules of the evaluation have mutations of their own, 52 of 52 noticed
([evaluation](evaluation.md#one-matcher)).

{table}

At first: before there were tests that were written for what survived. Those were written for these very mutants, so that the
share at first of a row that is *drawn anew*, with the tests of the rows before it, is what others may expect. Mutants of the
exported graph were tried by 1 to 36 tests, chosen by module, since each has to export a detector first.

What survived, and why:

{survivors}
"""
CRASHED = """
## Hostile files

`tests/safety` holds what is no mishap: pickles in every place that reads weights, states or arrays; YAML and XML that multiply or
build objects; zips that grow; images that claim or become gigabytes; links that lie where results go; names that would be markup,
formulas, or commands of a terminal. Canaries show that the tests would notice.

## Crashes

Every operation on the disk fails once: files opened, written, flushed, synced, renamed, removed; by six kinds of failure. After
each the work goes on, and must end byte for byte where undisturbed work ends (`python -m pytest -m slow tests/crashes`). *Short
writes*: every write of Python's takes half of what it is given and says so, as a system may; the work must notice nothing.
Networks have a few layers and learn from a few images: that changes no file but its length.

{table}

### Processes that die of memory

A process that the work has started is killed, as a system does that has no memory left: the work must end with one line that says
what to do, wait for nobody, and leave nothing that is half there; what goes on must end where undisturbed work ends, bit for bit.

{deaths}
{results}{release}
## What is known not to hold

{known}
"""


EXPLAINED = (
    "Each cell: crashes survived of those tried; in brackets their share of all operations, where not every one was tried (every",
    "n-th was). Of short writes: all writes of one piece of work.",
)
PLACES = (
    "*Places*: of work that takes long, not each operation but each place in the code from where operations come (told by the",
    "six innermost lines of the package), with those that only going on passes: the work is begun, broken off, gone on with,",
    "broken off at the next place, and so on in a row, until no place is left.",
)


def page(numbers: dict[str, Any]) -> str:
    """The page as Markdown."""
    fuzz, crashes, planted = numbers["fuzz"], numbers["crashes"], numbers.get("planted")
    rows = []
    for kind, counts in sorted(fuzz["by_kind"].items()):
        found = sum(counts.get(name, 0) for name in FOUND)
        values = (sum(counts.values()), counts.get("answer", 0), counts.get("one line", 0), found)
        rows.append(f"| {kind} | {' | '.join(f'{value:,}' for value in values)} |")
    text = DAMAGED.lstrip().format(
        total=sum(sum(counts.values()) for counts in fuzz["by_kind"].values()),
        campaigns=fuzz["campaigns"],
        rows="\n".join(rows),
        mended=listed(numbers["mended"]),
    )
    text += planted_faults(planted) if planted else ""
    rows = [
        f"| {name} | {found['operations']} | {' | '.join(survived(found, mode) for mode in MEANINGS)} |"
        for name, found in crashes.items()
    ]
    head = [f"| work | operations | {' | '.join(MEANINGS.values())} |", f"|---|{'---|' * (1 + len(MEANINGS))}"]
    table = [*head, *rows, "", *EXPLAINED, *(PLACES if any(one.get("places") for one in crashes.values()) else ())]
    none = "It has not been run to its end for this page; the default tests crash three kinds of work at three places."
    text += mutants(numbers["mutants"]) if "mutants" in numbers else ""
    died = ["| who dies, and where | places | survived |", "|---|---|---|"]
    died += [f"| {name} | {one['tried']} | {one['survived']} |" for name, one in numbers.get("deaths", {}).items()]
    return text + CRASHED.format(
        table="\n".join(table) if rows else none,
        deaths="\n".join(died),
        known=listed(numbers["known"]),
        results=sections(),
        release=installs(numbers["installs"], numbers["release"]) if {"installs", "release"} <= numbers.keys() else "",
    )


def survived(found: dict[str, Any], mode: str) -> str:
    """Of one kind of crash."""
    tried = found.get("tried", {}).get(mode, 0)
    if not tried:
        return "–"
    lived = found["survived"].get(mode, 0)
    if mode == "short":
        return f"all {tried}" if lived == tried else f"**not survived** ({tried})"
    if mode in found.get("places", ()):
        return f"{lived} of {found['places'][mode]} places"
    share = "" if tried >= found["operations"] else f" ({tried / found['operations']:.0%})"
    return f"{lived} of {tried}{share}"


def merged(before: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """Counts of a piece of work: by kind of crash the newer ones, as long as it has as many operations as before."""
    if before is None or before["operations"] != found["operations"]:
        return found
    new = {mode for mode, count in found["tried"].items() if count}
    for part in ("tried", "survived"):
        found[part] = {**before[part], **{mode: found[part][mode] for mode in new}}
    kept = {mode: count for mode, count in before.get("places", {}).items() if mode not in new}
    if places := kept | found.get("places", {}):
        found["places"] = places
    return found


def planted_faults(planted: dict[str, Any]) -> str:
    """The section of planted faults."""
    rows = ["| fault | in | found as | on | inputs |", "|---|---|---|---|---|"]
    for one in planted["faults"]:
        found = (one["as"].replace("|", " "), one["surface"]) if one["found"] else ("**not found**", "–")
        rows.append(f"| {one['fault']} | `{one['file']}` | {found[0]} | {found[1]} | {one['inputs']:,} |")
    found = sum(one["found"] for one in planted["faults"])
    note = f"\n{planted['note']}\n" if planted.get("note") else ""
    return PLANTED.format(
        note=note, minutes=planted["minutes"], found=found, planted=len(planted["faults"]), table="\n".join(rows)
    )


def mutants(areas: dict[str, Any]) -> str:
    """The section of mutants; killed are shown of those that a test could notice, too."""
    rows = [
        "| area | mutants | tried (seed) | change nothing | of the others killed at first | killed now | survived |",
        "|---|---|---|---|---|---|---|",
    ]
    known: list[str] = []
    for area, counts in areas.items():
        equal = [one for one in counts["survivors"] if one["why"]]
        others = counts["tried"] - len(equal)
        of_all = (f"{counts['mutants']:,}", f"{counts['tried']} ({counts['seed']})", len(equal))
        shares = [
            f"{killed} of {others} ({100 * killed / others:.0f} %)"
            for killed in (counts.get("first", counts["killed"]), counts["killed"])
        ]
        rows.append(f"| {' | '.join(map(str, (area, *of_all, *shares, len(counts['survivors']))))} |")
        for one in counts["survivors"]:
            change = one["change"].replace("`", "'").replace("|", "\\|")
            known.append(f"`{one['file']}:{one['line']}`, `{change}`: {one['why'] or '**no test notices it**'}")
    return MUTATED.format(most=120, table="\n".join(rows), survivors=listed(known))


def listed(texts: Sequence[str]) -> str:
    """As a list of Markdown."""
    return "\n".join(f"- {text}" for text in texts)


def added(numbers: dict[str, Any], campaign: dict[str, Any]) -> None:
    """Counts of a campaign on those of before."""
    numbers["fuzz"]["campaigns"] += 1
    for kind, counts in campaign["by_kind"].items():
        mine = numbers["fuzz"]["by_kind"].setdefault(kind, {})
        for outcome, count in counts.items():
            mine[outcome] = mine.get(outcome, 0) + count


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=Path, action="append", default=[], help="counts of a campaign to be added")
    parser.add_argument("--crashes", type=Path, action="append", default=[], help="counts in the place of those before")
    parser.add_argument("--deaths", type=Path, action="append", default=[], help="of processes, by who dies")
    parser.add_argument("--planted", type=Path, help="what tests/fuzz/planted_faults.py found")
    parser.add_argument("--mutants", type=Path, action="append", default=[], help="of tests/mutation, by area")
    parser.add_argument("--installs", type=Path, help="what each extra brings, by tests/release/test_installs.py")
    parser.add_argument("--release", action="store_true", help="build the wheel twice, count the bill of materials")
    asked = parser.parse_args()
    file = HERE / "reliability.json"
    numbers = json.loads(file.read_text(encoding="utf-8"))
    for path in asked.fuzz:
        added(numbers, json.loads(path.read_text(encoding="utf-8")))
    for path in asked.crashes:
        for name, found in json.loads(path.read_text(encoding="utf-8")).items():
            numbers["crashes"][name] = merged(numbers["crashes"].get(name), found)
    for path in asked.deaths:
        numbers["deaths"] = numbers.get("deaths", {}) | json.loads(path.read_text(encoding="utf-8"))
    if asked.planted:
        numbers["planted"] = json.loads(asked.planted.read_text(encoding="utf-8"))
    if asked.installs:
        numbers["installs"] = json.loads(asked.installs.read_text(encoding="utf-8"))
    if asked.release:
        numbers["release"] = measured()
    for path in asked.mutants:
        numbers["mutants"] = numbers.get("mutants", {}) | json.loads(path.read_text(encoding="utf-8"))
    file.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (HERE / "reliability.md").write_text(page(numbers), encoding="utf-8")


if __name__ == "__main__":
    main()
