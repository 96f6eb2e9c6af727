"""The house rules that a machine can check: imports point one way, the light parts stay light, rooms stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flyspeck

SOURCE = Path(flyspeck.__file__).parent
LAB = Path(__file__).resolve().parents[1] / "lab" / "src" / "flyspeck_lab"
FILES = sorted(SOURCE.rglob("*.py"))
LAB_FILES = sorted(LAB.rglob("*.py"))

# What each part may import of the others. boxes, types, errors, options and plugins are open to all.
BELOW = {
    "data": set(),
    "models": set(),
    "evaluate": {"data"},
    "train": {"data", "models", "evaluate"},
    "report": {"data", "models", "evaluate"},
    "infer": {"data", "models", "evaluate", "train", "report"},
    "export": {"data", "models", "evaluate", "train", "infer"},
    "explain": {"data", "models", "train", "infer", "report"},
    "publish": {"data", "models", "evaluate", "train"},
    "cli": {"data", "models", "evaluate", "train", "infer", "export", "report", "publish", "explain"},
}
GROUND = {"boxes", "types", "errors", "options", "plugins"}

# Modules over the limit, each with the reason why it is one room.
LONG: dict[str, str] = {}
MAX_LINES, MAX_FUNCTION = (
    450,
    70,
)  # of a function its code: a signature with its docstring may be as long as it has to be


def imports(path: Path) -> set[str]:
    """The parts of flyspeck that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("flyspeck.")}
    return found


@pytest.mark.parametrize("part", BELOW)
def test_imports_point_one_way(part: str) -> None:
    for path in (SOURCE / part).rglob("*.py"):
        wrong = imports(path) - BELOW[part] - GROUND - {part}
        assert not wrong, f"{path.relative_to(SOURCE)} imports {wrong}"


def test_flyspeck_knows_nothing_of_its_laboratory() -> None:
    assert LAB_FILES
    assert [path.name for path in FILES if "flyspeck_lab" in path.read_text(encoding="utf-8")] == []
    # The laboratory may use all of flyspeck, but the command line only in its own.
    wrong = [path.name for path in LAB_FILES if path.parent.name != "cli" and "cli" in imports(path)]
    assert wrong == []


def test_the_ground_imports_nothing_above() -> None:
    # types has methods that convert and draw; they import what they need inside.
    assert imports(SOURCE / "boxes.py") | imports(SOURCE / "errors.py") == set()


LIGHT = (
    "flyspeck flyspeck.boxes flyspeck.types flyspeck.data.annotations flyspeck.data.readers flyspeck.data.tiling "
    "flyspeck.data.policy flyspeck.data.images flyspeck.evaluate flyspeck.infer.tiles flyspeck.infer.merge "
    "flyspeck.infer.predictor flyspeck.cli.main flyspeck.cli.data flyspeck.cli.predict"
)


def test_the_light_parts_import_no_torch() -> None:
    code = f"import sys, importlib\nfor name in {LIGHT.split()}: importlib.import_module(name)\n"
    code += "print(sorted({'torch', 'torchvision', 'matplotlib', 'pandas', 'accelerate'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


def test_rooms_stay_small() -> None:
    for path in (*FILES, *LAB_FILES):
        name, text = path.relative_to(LAB if path in LAB_FILES else SOURCE).as_posix(), path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        assert lines <= MAX_LINES or name in LONG, f"{name} has {lines} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                code = node.body[1:] if ast.get_docstring(node, clean=False) and len(node.body) > 1 else node.body
                length = (node.end_lineno or 0) - code[0].lineno + 1
                assert length <= MAX_FUNCTION or f"{name}:{node.name}" in LONG, f"{name}:{node.name} has {length} lines"


def test_every_name_at_the_front_door_opens() -> None:
    for name in flyspeck.__all__:
        assert getattr(flyspeck, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        flyspeck.nonsense  # noqa: B018
