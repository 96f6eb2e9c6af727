#!/usr/bin/env python3
"""Sets up flyspeck in a local .venv and runs it, with nothing but Python, pip and git.

    python3 bootstrap.py demo     set up, and run the main job on generated images
    python3 bootstrap.py test     set up, and pass the tests
    python3 bootstrap.py lint     set up, and check style and types
    python3 bootstrap.py setup    set up only

What follows the verb goes to what it runs: `python3 bootstrap.py test -m slow`. `test --processors` passes the tests once more
under the instruction sets of each of three older processors. Uses uv where it is there (faster).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")


def floor() -> tuple[int, int]:
    """The oldest Python, read from pyproject.toml, where it is stated once."""
    found = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (HERE / "pyproject.toml").read_text(encoding="utf-8"))
    assert found, "pyproject.toml states no requires-python"
    return int(found[1]), int(found[2])


def set_up(extras: str) -> None:
    """Creates .venv and installs the project with `extras`, unless exactly that is there already; `dev` brings the laboratory."""
    if sys.version_info[:2] < floor():
        sys.exit(f"flyspeck needs Python {'.'.join(map(str, floor()))} or newer; this is {sys.version.split()[0]}")
    wanted = extras + "".join(
        (HERE / name).read_text(encoding="utf-8")
        for name in ("pyproject.toml", "lab/pyproject.toml", "constraints.txt")
    )
    stamp, mark = VENV / ".flyspeck", hashlib.sha256(wanted.encode()).hexdigest()
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == mark:
        return
    uv = shutil.which("uv")
    target = [f"{HERE}[{extras}]" if extras else str(HERE)]
    rest = ["--quiet", "-c", str(HERE / "constraints.txt"), "-e", *target]
    rest += ["-e", str(HERE / "lab")] if extras == "dev" else []
    print(f"setting up {VENV.name} with {'uv' if uv else 'pip'} (once; PyTorch is large)", file=sys.stderr, flush=True)
    if uv:
        run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(VENV)])
        run([uv, "pip", "install", "--python", str(PYTHON), *rest])
    else:
        run([sys.executable, "-m", "venv", str(VENV)])
        # Uncompiled, as uv leaves them: of the libraries' 17,000 files a run imports a part, and compiles it then.
        run([str(PYTHON), "-m", "pip", "install", "--no-compile", *rest])
    stamp.write_text(mark)


def run(command: list[str], **more: str) -> None:
    """Runs a command here; ends with its exit code if it fails."""
    code = subprocess.run(command, cwd=HERE, env={**os.environ, **more}).returncode
    if code:
        sys.exit(code)


def main() -> None:
    """Dispatches the verb."""
    verb, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if verb == "demo":
        set_up("report")
        run([str(BIN / "flyspeck"), "demo", *rest])
    elif verb == "test":
        set_up("dev")
        # One thread a worker: the tests' tensors are small, and threads would only wait for each other.
        workers = str(min(os.cpu_count() or 1, 8))
        several = "--processors" in rest
        start = [str(HERE / "tests" / "processors.py")] if several else ["-m", "pytest"]
        rest = [word for word in rest if word != "--processors"]
        # By worksteal a worker keeps its neighbours together, whose fixtures are then made once, and all end at one time.
        run([str(PYTHON), *start, "-n", workers, "--dist", "worksteal", *rest], OMP_NUM_THREADS="1")
    elif verb == "lint":
        set_up("dev")
        run([str(BIN / "ruff"), "check", *rest])
        run([str(BIN / "ruff"), "format", "--check", *rest])
        run([str(BIN / "pyright")])
    elif verb == "setup":
        set_up("dev")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
