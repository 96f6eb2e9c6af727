"""Packages of modules that can be called: `flyspeck.train(...)`, though `flyspeck.train` holds modules as well.

A function of that name beside the package would be replaced by the package as soon as anything imports one of its modules.
So the package itself is made callable, by the means that Python has for it: another class for the module object.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that passes a call on to one function of its own, which is imported then."""

    calls: str
    """`MODULE:FUNCTION`."""

    @property
    def function(self) -> Callable[..., Any]:
        """The function."""
        module, _, name = self.calls.partition(":")
        return getattr(import_module(module), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's own result."""
        return self.function(*args, **kwargs)

    @property
    def __doc__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The function's, under its signature: `help(flyspeck.train)` says what a call takes. The package's own ends it."""
        function = self.function
        called = f"{self.__name__}{inspect.signature(function)}"
        return f"{called}\n\n{inspect.getdoc(function)}\n\nThe package: {self.__dict__.get('__doc__')}"

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the function, for `help` and editors."""
        return inspect.signature(self.function)


def make_callable(package: str, calls: str) -> None:
    """Lets the package be called as the function `calls` (`MODULE:FUNCTION`); for its `__init__.py`."""
    module = sys.modules[package]
    module.__class__ = CallablePackage
    module.calls = calls  # pyright: ignore[reportAttributeAccessIssue]
