"""Which file of a package imports which, wherever in the file: circles and floors of the house.

Imports inside functions and for type checkers count as well: they are no less a dependency for being written lower down.
`python tests/import_graph.py [FOLDER]` prints both numbers of a source folder.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

Graph = dict[str, set[str]]


def import_graph(package: Path) -> Graph:
    """Module name to the modules of the same package that its file imports."""
    files = {_name(path, package): path for path in sorted(package.rglob("*.py"))}
    return {name: _imported(path, set(files)) - {name} for name, path in files.items()}


def _name(path: Path, package: Path) -> str:
    parts = [package.name, *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, known: set[str]) -> set[str]:
    found = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:  # `from flyspeck.infer import raster` is a module, not a name in one
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Every statement at any depth. Their expressions, which are most of a tree and import nothing, are passed over."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting.extend(getattr(node, name, ()))


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that reach each other, by Tarjan's algorithm; the innermost first."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for other in sorted(graph[module]):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in path:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            group = path[path.index(module) :]
            del path[path.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph):
        if module not in number:
            visit(module)
    return found


def floors(graph: Graph) -> dict[str, int]:
    """The floor of each module: 0 imports nothing of the house, else one above the highest that it imports.

    The modules of a circle stand on one floor, as none of them is above another.
    """
    circle = {module: tuple(group) for group in circles(graph) for module in group}
    found: dict[str, int] = {}

    def floor(module: str) -> int:
        if module not in found:
            group = circle.get(module, (module,))
            above = set().union(*(graph[one] for one in group)) - set(group)
            level = max((floor(other) + 1 for other in above), default=0)
            found.update(dict.fromkeys(group, level))
        return found[module]

    for module in graph:
        floor(module)
    return found


def summary(graph: Graph) -> str:
    """Files, imports, circles and floors in one line."""
    levels = max(floors(graph).values()) + 1
    imports = sum(map(len, graph.values()))
    return f"{len(graph)} files, {imports} imports, {len(circles(graph))} circles, {levels} floors"


if __name__ == "__main__":
    house = import_graph(Path(sys.argv[1] if len(sys.argv) > 1 else "src/flyspeck"))
    print(summary(house))
    for knot in circles(house):
        print("  circle:", " ".join(knot))
    for level in range(max(floors(house).values()) + 1):
        names = sorted(name for name, at in floors(house).items() if at == level)
        print(f"  floor {level}: {len(names)} files: {' '.join(names[:6])}{' …' if len(names) > 6 else ''}")
