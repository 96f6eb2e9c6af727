"""Plugins fill tables that the whole process shares: every test here gets them back as they were."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flyspeck import plugins


def forget(folder: Path) -> None:
    """As a new process: nothing is registered, and no module of `folder` is imported."""
    for kind, name in list(plugins._owners):
        plugins._table(kind).pop(name, None)
    for known in (plugins._owners, plugins._loaded, plugins._failed, plugins._warned):
        known.clear()
    # The modules that the test wrote, and no library that it was the first to import: half of one would be there twice.
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Calling it forgets all plugins; what was loaded before the test is there again after it."""
    held = (plugins._owners, plugins._loaded, plugins._failed, plugins._warned)
    before = [container.copy() for container in held]
    tables = {kind: dict(plugins._table(kind)) for kind in plugins._HOMES}
    path = list(sys.path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield lambda: forget(tmp_path)
    forget(tmp_path)
    for container, content in zip(held, before, strict=True):
        container.update(content)  # type: ignore[arg-type]
    for kind, content in tables.items():
        table = plugins._table(kind)
        table.clear()
        table.update(content)
    sys.path[:] = path


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes modules into a folder outside the package, and stands in it: `outside(my_parts="...")`."""
    folder = tmp_path / "outside"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def write(**sources: str) -> Path:
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        return folder

    return write


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a distribution with modules and an entry point, as pip would lay it: `install("my-parts", "1.2", my_parts="...")`."""

    def put(name: str, version: str, *, point: str | None = None, **sources: str) -> Path:
        site = tmp_path / f"site-{name}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        target = point or f"{next(iter(sources))}:register"
        (info / "entry_points.txt").write_text(f"[flyspeck.plugins]\n{name} = {target}\n")
        for module, source in sources.items():
            (site / f"{module}.py").write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        return site

    return put
