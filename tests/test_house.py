"""The house rules that a machine can check: imports point one way, the light parts stay light, rooms stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import flyspeck
from import_graph import Graph, circles, floors, import_graph, summary

SOURCE = Path(flyspeck.__file__).parent
LAB = Path(__file__).resolve().parents[1] / "lab" / "src" / "flyspeck_lab"
FILES = sorted(SOURCE.rglob("*.py"))
LAB_FILES = sorted(LAB.rglob("*.py"))

# What each part may import of the others. The ground is open to all.
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
    "label_errors": {"data", "evaluate", "train", "infer", "report"},
    "plan": {"data", "models", "evaluate", "train", "infer", "export", "report"},
    "cli": {
        *("data", "models", "evaluate", "train", "infer", "export", "report"),
        *("publish", "explain", "label_errors", "plan"),
    },
}
GROUND = {
    "allocator",
    "boxes",
    "callable_package",
    "convert",
    "devices",
    "drawing",
    "errors",
    "files",
    "geo",
    "progress",
    "projection",
    "size_bins",
    "together",
    "one_object",
    "options",
    "plain_yaml",
    "plugins",
    "types",
    "version",
}

# Modules over the limit, each with the reason why it is one room.
LONG: dict[str, str] = {}
MAX_FLOORS = 20  # of the import graph; lower it when the house gets lower
MAX_LINES = 450
MAX_FUNCTION = 70  # lines of its code: a signature with its docstring may be as long as it has to be


@cache
def house() -> Graph:
    """Of flyspeck."""
    return import_graph(SOURCE)


def imports(path: Path) -> set[str]:
    """The parts of flyspeck that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("flyspeck.")}
    return found


def reached(module: str) -> set[str]:
    """All that a module imports, by way of others too."""
    found: set[str] = set()
    todo = [module]
    while todo:
        for other in house()[todo.pop()] - found:
            found.add(other)
            todo.append(other)
    return found


@pytest.mark.parametrize("part", BELOW)
def test_imports_point_one_way(part: str) -> None:
    for path in (SOURCE / part).rglob("*.py"):
        wrong = imports(path) - BELOW[part] - GROUND - {part} - ({"infer"} if part == "train" else set())
        assert not wrong, f"{path.relative_to(SOURCE)} imports {wrong}"


def test_training_takes_of_inference_only_what_knows_no_training() -> None:
    """The tiled predictor, which measures large images while a detector trains."""
    taken = {
        other for module, others in house().items() if ".train." in module for other in others if ".infer." in other
    }
    assert "flyspeck.infer.predictor" in taken
    for module in taken:
        parts = {other.split(".")[1] for other in reached(module)}
        assert parts <= {"data", "models", "evaluate", "infer"} | GROUND, module


def test_flyspeck_knows_nothing_of_its_laboratory() -> None:
    assert LAB_FILES
    assert [path.name for path in FILES if "flyspeck_lab" in path.read_text(encoding="utf-8")] == []
    # The laboratory may use all of flyspeck, but the command line only in its own.
    wrong = [path.name for path in LAB_FILES if path.parent.name != "cli" and "cli" in imports(path)]
    assert wrong == []


def test_the_ground_imports_nothing_above() -> None:
    # `Detections.plot` may be given a file: the converters read it with the one function for that, which needs nothing else.
    images = {"flyspeck.data.images"}
    names = ("by_extra", "copied", "decoding_cost", "nodata", "orientation", "tiff", "transparency")
    below = {f"flyspeck.data.{name}" for name in names}
    assert house()["flyspeck.data.images"] == {"flyspeck.errors", *below}
    assert not any(house()[name] for name in below)
    ground = {f"flyspeck.{name}" for name in GROUND}
    for name in sorted(ground):
        wrong = house()[name] - ground - (images if name == "flyspeck.convert" else set())
        assert not wrong, f"{name} imports {wrong}"


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(house()) == []


def test_the_house_has_few_floors(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nimport graph: {summary(house())}")
    highest = max(floors(house()).values()) + 1
    assert highest <= MAX_FLOORS, f"{highest} floors: see `python tests/import_graph.py`"


def test_circles_are_found_wherever_the_import_stands(tmp_path: Path) -> None:
    package = tmp_path / "inn"
    package.mkdir()
    for name, text in {
        "__init__": "from inn.a import x",
        "a": "def f(x):\n    match x:\n        case 1:\n            from inn import b",
        "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import inn.c",
        "c": "try:\n    x = 1\nexcept OSError:\n    import inn.a\nelse:\n    import inn.d",
        "d": "import os",
    }.items():
        (package / f"{name}.py").write_text(text)
    graph = import_graph(package)
    assert graph["inn.a"] == {"inn.b"}
    assert circles(graph) == [["inn.a", "inn.b", "inn.c"]]
    assert floors(graph) == {"inn.d": 0, "inn.a": 1, "inn.b": 1, "inn.c": 1, "inn": 2}
    (package / "b.py").write_text("import inn.d")
    assert circles(import_graph(package)) == []


# These parts are light: importing them loads none of the heavy libraries, but for the files that are named here.
LIGHT = ("flyspeck.data", "flyspeck.evaluate", "flyspeck.infer", "flyspeck.cli")
TORCH = {
    *(
        f"flyspeck.data.{name}"
        for name in (
            "copy_paste",
            "epoch_loader",
            "labelled_loading",
            "loading",
            "matched_scale",
            "pixel_cache",
            "rotate",
            "square_crop",
            "transforms",
            "zoom",
        )
    ),
    *(f"flyspeck.infer.{name}" for name in ("presence", "statistic", "torch_model")),
}
HEAVY = ("torch", "torchvision", "matplotlib", "pandas", "accelerate")


def test_the_light_parts_import_no_torch() -> None:
    light = (
        {name for name in house() if name.startswith(LIGHT)} | {f"flyspeck.{name}" for name in GROUND} | {"flyspeck"}
    )
    code = "import sys, importlib\n"
    code += f"for name in {sorted(light - TORCH)}:\n    importlib.import_module(name)\n"
    code += f"    heavy = sorted({set(HEAVY)} & set(sys.modules))\n    if heavy: sys.exit(f'{{name}} loads {{heavy}}')"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr


def test_the_files_said_to_need_torch_import_it() -> None:
    assert set(house()) >= TORCH
    for name in TORCH:
        reached, new = {name}, {name}
        while new:
            new = set().union(*(house()[one] for one in new)) - reached
            reached |= new
        texts = [(SOURCE.parent / one.replace(".", "/")).with_suffix(".py") for one in reached]
        assert any(re.search("^import torch$", text.read_text(), re.MULTILINE) for text in texts if text.is_file()), (
            name
        )


# Who writes files otherwise than `flyspeck.files`, and why.
WRITE_THEMSELVES = {
    "files.py": "is the one way",
    "export/onnx.py": "a temporary name, which `export/package.py` renames when the boxes are the detector's",
    "export/quantize.py": "a temporary folder",
    "export/litert.py": "a temporary name, renamed when the boxes are the detector's",
    "export/package.py": "renames two files that belong together",
    "infer/outputs.py": "a file for each of a million images: one that a kill cuts off is written again with --resume",
}


def test_files_are_written_whole_or_not_at_all() -> None:
    found: dict[str, set[str]] = {}
    for root, files in ((SOURCE, FILES), (LAB, LAB_FILES)):
        for path in files:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                    name = f"{owner}.{node.func.attr}" if owner == "os" else node.func.attr
                    if name in {"write_text", "write_bytes", "os.replace", "os.rename"}:
                        found.setdefault(path.relative_to(root).as_posix(), set()).add(name)
    assert found.keys() == WRITE_THEMSELVES.keys()


# Definitions that nothing of ours names, and who calls them.
CALLED_BY_OTHERS = {
    "list_commands": "typer",
    "format_commands": "typer",
    "format_epilog": "typer",
    "find_class": "pickle",
    "get_next": "onnxruntime",
    "is_leaf_module": "torch.fx",
    "readable": "av",
    "seekable": "av",
    "writelines": "any writer of text",
    "_repr_png_": "notebooks",
}


def test_everything_is_used_by_more_than_its_test() -> None:
    """What only a test calls is dead. A name counts as used where code, a benchmark, an example or a page says it once more."""
    root = LAB.parents[2]
    folders = ("src", "lab/src", "benchmarks", "examples", "docs")
    texts = [p for folder in folders for p in (root / folder).rglob("*") if p.suffix in (".py", ".md")]
    words: Counter[str] = Counter()
    for path in (*texts, root / "README.md"):
        words.update(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    dead = set()
    for path in (*FILES, *LAB_FILES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or words[node.name] > 1 or node.decorator_list:
                continue
            if not node.name.startswith("__") and not node.name.endswith("Options"):  # found by a builder's name
                dead.add(node.name)
    assert not dead - CALLED_BY_OTHERS.keys()


def unread(tree: ast.Module) -> set[str]:
    """The parameters that private functions are given and never read; of those that are only called, never handed on."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    handed_on = {node.id for node in names if id(node) not in called}
    found = set()
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef) or function.decorator_list or function.name in handed_on:
            continue
        if function.name.startswith("_"):
            given = {one.arg for one in (*function.args.args, *function.args.kwonlyargs)}
            read = {node.id for line in function.body for node in ast.walk(line) if isinstance(node, ast.Name)}
            found |= {f"{function.name}: {name}" for name in given - read}
    return found


def test_what_a_private_function_is_given_it_reads() -> None:
    assert unread(ast.parse("def _f(a, *, b):\n    return a\n_f(1, b=2)")) == {"_f: b"}
    assert unread(ast.parse("def _f(a, b):\n    return a\nTABLE = {1: _f}")) == set()
    assert unread(ast.parse("def _f(a, b):\n    return lambda: a + b\n_f(1, 2)")) == set()
    found = {path.name: unread(ast.parse(path.read_text(encoding="utf-8"))) for path in (*FILES, *LAB_FILES)}
    assert {name: names for name, names in found.items() if names} == {}


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


def test_test_files_stay_small_and_have_names_of_their_own() -> None:
    """One subject a file; and pytest imports test files by their bare names, so that two of one name would be one."""
    root = LAB.parents[2]
    files = [path for folder in ("tests", "lab/tests") for path in sorted((root / folder).rglob("*.py"))]
    long = [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES]
    assert not long, f"{long} have more than {MAX_LINES} lines: split them by subject"
    names = Counter(path.name for path in files if path.name not in ("conftest.py", "__init__.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_every_name_at_the_front_door_opens() -> None:
    for name in flyspeck.__all__:
        assert getattr(flyspeck, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        flyspeck.nonsense  # noqa: B018
