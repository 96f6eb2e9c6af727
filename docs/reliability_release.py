"""What each extra installs, and what a release is made of: the last measured part of `docs/reliability.md`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from reliability_results import table

ROOT = Path(__file__).resolve().parents[1]

INSTALLED = """
## What an installation brings

The wheel alone, and with each of its {count} extras alone, each into an environment of its own (`python -m pytest -m slow
tests/release/test_installs.py`, Python {python}): `pip check` finds nothing missing or at odds, what the extra brings is
imported, `import flyspeck` loads no PyTorch, a detector is built; with `export` alone one is exported, and predicts without
PyTorch. The same with the lowest versions that the project names. *MB*: unpacked, beyond the wheel alone.

{table}

**Release** (`{version}`, as of commit `{commit}`): the wheel was built twice, from two copies of the tree in other folders at
other times (`python release/twice.py`): sha256 `{first}` and `{second}`, {same}. The bill of materials (CycloneDX 1.6,
`python release/sbom.py`) lists {components} packages and {libraries} libraries inside them; of the licences of these packages,
files inside the wheels included (`python release/licences.py`), {refused} is not allowed. By licence: {licences}.
"""


FAMILIES = (
    "NVIDIA",
    "Proprietary",
    "LGPL",
    "MPL",
    "Mozilla",
    "Apache",
    "MIT",
    "BSD",
    "PSF",
    "Python Software",
    "HPND",
    "ISC",
)
"""Words of licences: the first that is found names a package's family; those that ask for most come first."""


def family(licence: str) -> str:
    """The licence of a package, in a word."""
    word = next((word for word in FAMILIES if word in licence), "other")
    return {"Proprietary": "NVIDIA", "Mozilla": "MPL", "Python Software": "PSF"}.get(word, word)


def installs(found: dict[str, Any], release: dict[str, Any]) -> str:
    """The section."""
    rows = []
    for name, one in found.items():
        names = ", ".join(one["packages"]) if name != "none" else "PyTorch and what it asks for among them"
        rows.append(
            [f"`{name}`" if name != "none" else "none", str(len(one["packages"])), f"{one['megabytes']:,.0f}", names]
        )
    first, second = release["hashes"]
    return INSTALLED.format(
        count=len(found) - 1,
        python=release["python"],
        table=table(["extra", "packages", "MB", "which"], rows),
        version=release["version"],
        commit=release["commit"],
        first=first,
        second=second,
        same="the same" if first == second else "**not the same**",
        components=release["packages"],
        libraries=release["libraries"],
        refused=release["refused"] or "none",
        licences=", ".join(f"{kind} {count}" for kind, count in release["licences"].items()),
    )


def measured() -> dict[str, Any]:
    """Builds the wheel twice, and counts the bill of materials and the licences of what is installed here."""
    python, release = sys.executable, ROOT / "release"

    def told(*words: str, fails: bool = False) -> str:
        done = subprocess.run([python, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode and not fails:
            sys.exit(done.stderr or done.stdout)
        return done.stdout

    with tempfile.TemporaryDirectory() as folder:
        bill_file = Path(folder) / "bill.json"
        told(str(release / "sbom.py"), "--out", str(bill_file))
        bill = json.loads(bill_file.read_text(encoding="utf-8"))
    hashes = [line.split()[0] for line in told(str(release / "twice.py")).splitlines() if line.endswith(".whl")]
    lines = told(str(release / "licences.py"), fails=True).splitlines()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    kinds = Counter(family(line.split(": ", 1)[1]) for line in lines if line.startswith("ok"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        "commit": commit.stdout.strip(),
        "hashes": hashes,
        "version": project.get("version", ""),
        "packages": len(bill["components"]),
        "libraries": sum(len(one.get("properties", ())) for one in bill["components"]),
        "licences": dict(kinds.most_common()),
        "refused": int(lines[-1].split(", ")[1].split()[0]),
        "python": ".".join(map(str, sys.version_info[:2])),
    }
