"""No field that nothing reads: where the package reads each field of each section, found in its syntax trees.

A read is an attribute of a value known to be that section: an argument or variable annotated with it, a section taken from
another (`recipe.train`), or `self` in its own class. Reads of an attribute of the same name on anything else do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import flyspeck
from flyspeck.options import Options
from flyspeck.train.config import Recipe
from flyspeck.train.model_config import ModelConfig

SOURCE = Path(flyspeck.__file__).parent

UNREAD: dict[tuple[str, str], str] = {}
"""Fields that nothing reads yet, each with the reason."""
SECTIONS_WHOLE = {"head", "backbone", "assigner"}
"""Handed on whole, as keywords of a builder: `test_options_agree` has their fields."""


def sections() -> dict[str, type[Options]]:
    """The classes of a recipe's sections by name, at any depth; options of parts are left out."""
    found: dict[str, type[Options]] = {}

    def visit(model: type[Options]) -> None:
        found[model.__name__] = model
        for name, field in model.model_fields.items():
            if not (model is ModelConfig and name in SECTIONS_WHOLE):
                for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
                    if isinstance(kind, type) and issubclass(kind, Options) and kind.__name__ not in found:
                        visit(kind)

    visit(Recipe)
    return found


SECTIONS = sections()


def section_of(model: str, attribute: str) -> str | None:
    """The section that a field of a section is."""
    field = SECTIONS[model].model_fields.get(attribute)
    kinds = () if field is None else (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((kind.__name__ for kind in kinds if getattr(kind, "__name__", "") in SECTIONS), None)


def named(annotation: ast.AST | None) -> str | None:
    """The section that an annotation names: `Recipe`, `DynamicConfig | None`."""
    names = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)] if annotation else []
    return next((name for name in names if name in SECTIONS), None)


class Reads(ast.NodeVisitor):
    """Collects (section, field) pairs of one file."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: set[tuple[str, str]] = set()
        self.returns = {f.name: named(f.returns) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
        self.members: dict[str, str] = {}  # attributes of classes that hold sections, by the attribute's name
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name not in SECTIONS:
                for line in node.body:
                    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and named(line.annotation):
                        self.members[line.target.id] = named(line.annotation)  # type: ignore[assignment]
        self.names: dict[str, str] = {}

    def kind(self, node: ast.AST) -> str | None:
        """The section that an expression is."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            own = self.kind(node.value)
            if own is not None:
                return section_of(own, node.attr)
            return self.members.get(node.attr) or ("Recipe" if node.attr == "recipe" else None)
        if isinstance(node, ast.BoolOp):
            return next((kind for value in node.values if (kind := self.kind(value))), None)
        if isinstance(node, ast.IfExp):
            return self.kind(node.body) or self.kind(node.orelse)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr == "model_copy":
                return self.kind(node.func.value)
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "load_recipe" or called == "parse_recipe":
                return "Recipe"
            return called if called in SECTIONS else self.returns.get(called)
        return None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = dict(self.names)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if argument.arg != "self":
                self.names.pop(argument.arg, None)
            if kind := named(argument.annotation):
                self.names[argument.arg] = kind
        self.generic_visit(node)
        self.names = before

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before = dict(self.names)
        if node.name in SECTIONS:
            self.names["self"] = node.name
        self.generic_visit(node)
        self.names = before

    def assign(self, target: ast.AST, value: ast.AST) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=False):
                self.assign(one, other)
        elif isinstance(target, ast.Name):
            if kind := self.kind(value):
                self.names[target.id] = kind
            else:
                self.names.pop(target.id, None)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.assign(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
        if isinstance(node.target, ast.Name) and (kind := named(node.annotation)):
            self.names[node.target.id] = kind

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if (kind := self.kind(node.value)) and node.attr in SECTIONS[kind].model_fields:
            self.found.add((kind, node.attr))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        # getattr(recipe.data, key) for key in ("train", "val"): by the words of the same function, which are checked to be fields
        self.generic_visit(node)


@cache
def reads() -> set[tuple[str, str]]:
    """Of the whole package. Not as the module is imported: whoever collects the tests would look for them, too."""
    found: set[tuple[str, str]] = set()
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        visitor = Reads(tree)
        visitor.visit(tree)
        found |= visitor.found
    return found


@pytest.mark.parametrize("name", SECTIONS)
def test_every_field_is_read_somewhere(name: str) -> None:
    fields = {(name, field) for field in SECTIONS[name].model_fields}
    assert fields - reads() - UNREAD.keys() == set()


def test_what_is_said_to_be_unread_is() -> None:
    assert UNREAD.keys() & reads() == set()


def attributes(code: str) -> Iterator[tuple[str, str]]:
    tree = ast.parse(code)
    visitor = Reads(tree)
    visitor.visit(tree)
    yield from sorted(visitor.found)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(recipe: Recipe): return recipe.train.lr", [("Recipe", "train"), ("TrainConfig", "lr")]),
        ("def f(x, np): return np.tile(x) + x.lr", []),
        (
            "def f(a: ModelConfig):\n b = a.anchors\n return b.ratios",
            [("AnchorConfig", "ratios"), ("ModelConfig", "anchors")],
        ),
        ("def f(c: TrainConfig | None = None): return lambda: c.ema", [("TrainConfig", "ema")]),
        ("def f(c: TrainConfig):\n c = other()\n return c.ema", []),
        ("class A:\n config: DataConfig\n def f(self): return self.config.cache", [("DataConfig", "cache")]),
    ],
)
def test_reads_are_found(code: str, expected: list[tuple[str, str]]) -> None:
    assert list(attributes(code)) == expected


def test_fields_at_every_depth_are_looked_at() -> None:
    wanted: list[Any] = ["AnchorConfig", "PredictorConfig", "FinetuneConfig", "DistillConfig", "EvaluateConfig"]
    assert set(wanted) <= SECTIONS.keys()
