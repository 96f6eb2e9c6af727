"""Small changes to a module that its tests should notice: each turns one comparison, sign, number, condition or statement.

A mutant replaces one piece of the source's text, so lines keep their numbers. Texts, annotations and what stands in a `raise`
(what is said, not what is done) are left alone.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_COUNTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One change."""

    line: int
    """Of the changed piece, from 1."""
    begin: int
    """Bytes of the source before the piece."""
    end: int
    """Bytes of the source up to its end."""
    old: str
    new: str
    inside: bool
    """Whether it stands in a function, so that a test reaches it by a call and not by an import."""

    def applied(self, source: str) -> str:
        """The changed source, of as many lines."""
        content, lost = source.encode(), "\n" * (self.old.count("\n") - self.new.count("\n"))
        new = f"{self.new[:-1]}{lost})" if self.new.endswith(")") else self.new + lost
        return (content[: self.begin] + new.encode() + content[self.end :]).decode()

    def text(self) -> str:
        """On one line: what becomes what."""
        old, new = (" ".join(part.split()) for part in (self.old, self.new))
        return f"{old[:90]} → {new[:90]}"


class _Finder:
    """Walks over a module."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.starts = [0]
        for line in source.encode().splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Mutant] = []

    def spot(self, node: ast.expr | ast.stmt, text: str, inside: bool) -> None:
        """A mutant that puts `text` in the place of `node`."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[node.end_lineno - 1] + node.end_col_offset
        old = self.source.encode()[begin:end].decode()
        self.found.append(Mutant(node.lineno, begin, end, old, text, inside))

    def walk(self, node: ast.AST, inside: bool) -> None:
        """`node` and what is below it."""
        for replaced, text in changes(node):
            self.spot(replaced, text, inside)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        defaults = [*node.args.defaults, *node.args.kw_defaults] if function else []
        for child in _below(node):
            self.walk(child, inside or (function and child not in defaults))


def _below(node: ast.AST) -> Iterator[ast.AST]:
    """The children of a node in which something is done."""
    if isinstance(node, ast.Raise | ast.JoinedStr):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment", "bases"):
            continue
        children = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, ast.keyword) and child.arg in ("where", "fix"):
                continue
            if isinstance(child, ast.arguments):
                yield from [one for one in (*child.defaults, *child.kw_defaults) if one is not None]
            elif isinstance(child, ast.AST):
                yield child


def changes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """What a node may become, as text in its place, or in the place of a part of it."""
    match node:
        case ast.Compare():
            yield from _of_comparison(node)
        case ast.BoolOp():
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield node, f"({ast.unparse(ast.BoolOp(other, node.values))})"
        case ast.UnaryOp(op=ast.Not()):
            yield node, f"({ast.unparse(node.operand)})"
        case ast.UnaryOp(op=ast.USub()) if not isinstance(node.operand, ast.Constant):
            yield node, f"({ast.unparse(node.operand)})"
        case ast.BinOp() if type(node.op) in _COUNTED and not _is_text(node.left) and not _is_text(node.right):
            other = _COUNTED[type(node.op)]()
            yield node, f"({ast.unparse(ast.BinOp(node.left, other, node.right))})"
        case ast.Constant(value=bool()):
            yield node, str(not node.value)
        case ast.Constant(value=int() | float()):
            yield node, f"({node.value!r} + 1)"
        case ast.If() | ast.IfExp() if not isinstance(node.test, ast.UnaryOp):
            yield node.test, f"(not ({ast.unparse(node.test)}))"
        case ast.Call(func=ast.Name(id=name)) if name in _CALLED:
            yield node.func, _CALLED[name]
        case ast.Raise() | ast.AugAssign():
            yield node, "pass"
        case ast.Expr(value=ast.Call() | ast.Yield()):
            yield node, "pass"
        case ast.Continue():
            yield node, "break"
        case ast.Break():
            yield node, "continue"
        case ast.Return(value=ast.expr()) if not isinstance(node.value, ast.Constant):
            yield node, "return None"


def _of_comparison(node: ast.Compare) -> Iterator[tuple[ast.expr, str]]:
    for place, operator in enumerate(node.ops):
        operators = [*node.ops[:place], _COMPARED[type(operator)](), *node.ops[place + 1 :]]
        yield node, f"({ast.unparse(ast.Compare(node.left, operators, node.comparators))})"


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def mutants(source: str, wanted: Callable[[Mutant], bool] = lambda _: True) -> list[Mutant]:
    """The mutants of a module, those of them that are `wanted`, that are valid Python, in the order of their lines."""
    finder = _Finder(source)
    finder.walk(ast.parse(source), False)
    # To compile is what takes long.
    kept = [one for one in finder.found if wanted(one) and _compiles(one.applied(source))]
    return sorted(kept, key=lambda one: (one.begin, one.end, one.new))


def _compiles(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True
