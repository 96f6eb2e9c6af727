"""Plugins: functions that register parts from outside the package (`flyspeck.register`), found, loaded and noted.

A plugin is `MODULE[:FUNCTION]`; the function, `register` where none is named, takes no arguments and calls `register_backbone`,
`register_reader` and the like. Importing a module registers nothing. A plugin is found in two ways and no other:

* as an installed entry point of the group `flyspeck.plugins`, loaded when a name is not known or when a recipe or run names it;
* by `--plugin MODULE` on the command line, or `load_plugin` from Python.

Recipes, runs, weights and exported files only *name* the plugins they need (`plugins: [my_parts==1.2]`): no module is ever
imported because a file names it. The tables that are filled stand above this module: it knows them by their names alone.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from flyspeck.errors import UserError, nearest

GROUP = "flyspeck.plugins"
"""The group of entry points that names installed plugins."""

IN_LAB = "it is in the package flyspeck-lab (folder lab/ of the repository)"
COMPARATORS = (
    "free_anchor",
    "grid_rcnn",
    "libra_rcnn",
    "pelee",
    "peleenet",
    "pyramidbox",
    "retinaface",
    "rfb_net",
    "rfcn",
    "rfcn_fpn",
    "s3fd",
    "ssd_fpn",
)
"""Parts of that package; the first three were flyspeck's in version 0.1."""

log = logging.getLogger("flyspeck")
T = TypeVar("T")

# Kind -> the table that lists its parts by name. Imported on the first registration of the kind.
_HOMES = {
    "backbone": "flyspeck.models.zoo:BACKBONES",
    "neck": "flyspeck.models.zoo:NECKS",
    "detector": "flyspeck.models.zoo:DETECTORS",
    "reader": "flyspeck.data.readers:READERS",
    "writer of annotations": "flyspeck.data.writers:WRITERS",
    "writer of detections": "flyspeck.infer.outputs:WRITERS",
    "protocol": "flyspeck.evaluate.catalogue:PROTOCOLS",
    "transform": "flyspeck.data.transforms:TRANSFORMS",
}
_NAME = re.compile(r"[A-Za-z0-9][\w.+/-]*")


@dataclass(frozen=True)
class Plugin:
    """A plugin that has registered something."""

    name: str
    """`MODULE`, or `MODULE:FUNCTION` where the function is not `register`."""
    version: str

    @property
    def note(self) -> str:
        """How files name it: `my_parts==1.2`."""
        return f"{self.name}=={self.version}"


class UnknownPart(UserError):
    """A name that no part has; an installed plugin may bring it (`with_installed`)."""

    def __init__(
        self,
        what: str,
        *,
        where: object = "",
        name: str,
        known: Iterable[str],
        asked: Sequence[str] = (),
        failed: Iterable[UserError] = (),
    ) -> None:
        self.name, self.known = name, sorted(known)
        hint = f"{nearest(name, self.known)} (a part of a plugin needs the plugin: --plugin MODULE)"
        hint = f"{IN_LAB}: install that" if name in COMPARATORS else hint
        if asked:
            hint += (
                f"; the installed {', '.join(asked)} has none" if len(asked) == 1 else f"; none in {', '.join(asked)}"
            )
        left_out = [f"; an installed plugin was left out: {error}" for error in failed]
        super().__init__(what, where=where, fix=hint + "".join(left_out))


_OF_FILES = ("reader", "writer of annotations")
_owners: dict[tuple[str, str], str] = {}  # (kind, name of the part) -> name of the plugin that registered it
_loaded: dict[str, Plugin] = {}
_failed: dict[str, UserError] = {}  # installed plugins that could not be loaded, so that they are tried once
_warned: set[str] = set()
_loading: str | None = None


def add_part(kind: str, name: str, entry: Any) -> None:
    """Puts a part into the table of its kind; what `flyspeck.register` is made of. Raises UserError for a name that is taken."""
    owner = _loading or _calling_module()
    if not _NAME.fullmatch(name):
        raise UserError(f"'{name}' is no name for a {kind}", where=f"plugin {owner}", fix="letters, digits, _ . + / -")
    table = _table(kind)
    if name in table:
        taken = _owners.get((kind, name))
        by = "flyspeck itself" if taken is None else f"the plugin {taken}"
        raise UserError(
            f"the {kind} '{name}' is taken by {by}", where=f"plugin {owner}", fix="register it under another name"
        )
    table[name] = entry
    _owners[kind, name] = owner


def guarded(kind: str, name: str, call: Callable[..., T], *, gives: str = "") -> Callable[..., T]:
    """`call`, a plugin's function behind the part `name`, with the same signature: what goes wrong in it is one line.

    `gives` names the class of what it must return, as `module:Class`, imported when it has been called. UserErrors and
    OSErrors (which name their file) pass as they are.
    """

    def guard(*arguments: Any, **options: Any) -> T:
        where = f"plugin {owner(kind, name)}"
        try:
            found = call(*arguments, **options)
        except (UserError, OSError):
            raise
        except Exception as error:
            on = f" on {arguments[-1 if kind.startswith('writer') else 0]}" if kind in _OF_FILES else ""
            raise UserError(f"the {kind} '{name}' failed{on} ({_words(error)})", where=where, fix=_MEND) from error
        module, _, wanted = gives.partition(":")
        if gives and not isinstance(found, getattr(importlib.import_module(module), wanted)):
            what = f"the {kind} '{name}' returns {type(found).__name__} where {wanted} is due"
            raise UserError(what, where=where, fix="mend the plugin: see `flyspeck.register`")
        return found

    # Not `wraps`: of a class it would copy the methods too.
    return functools.update_wrapper(guard, call, updated=())


def has_part(kind: str, name: str) -> bool:
    """Whether the table of a kind has `name`, flyspeck's own or a loaded plugin's."""
    return name in _table(kind)


def _table(kind: str) -> dict[str, Any]:
    module, attribute = _HOMES[kind].split(":")
    return getattr(importlib.import_module(module), attribute)


def _calling_module() -> str:
    """The first module up the stack that is none of ours: whose program registers without being loaded as a plugin."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "flyspeck.register"):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "__main__"))


# --- loading ---------------------------------------------------------------------------------------------------------


def installed() -> dict[str, EntryPoint]:
    """The installed plugins by name; nothing is imported."""
    return {_plain(point.value): point for point in entry_points(group=GROUP)}


def waiting() -> list[str]:
    """The installed plugins that are not loaded: their parts are in no list yet."""
    return sorted(name for name in installed() if name not in _loaded)


def load_plugin(target: str) -> Plugin:
    """Imports a plugin and calls its function, once.

    Args:
        target: `MODULE[:FUNCTION]`; `register` where no function is named.

    Returns:
        Its name and version.

    Raises:
        UserError: For a module that is not there or fails on import, a function that is not there or fails (what it has
            registered by then is taken back), and for a name that is taken.
    """
    global _loading
    name = _plain(target)
    if name in _loaded:
        return _loaded[name]
    if name in _owners.values():  # the program has called it by itself
        return _note(name)
    function = _function(name)
    before, outer = set(_owners), _loading
    _loading = name
    try:
        function()
    except BaseException as error:
        for kind, part in set(_owners) - before:
            del _owners[kind, part]
            _table(kind).pop(part, None)
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        raise UserError(f"registering failed ({_words(error)})", where=f"plugin {name}", fix=_MEND) from error
    finally:
        _loading = outer
    return _note(name)


def load_installed() -> bool:
    """Loads every installed plugin that is not loaded yet; whether there was one. A broken one is left out (`with_installed`)."""
    fresh = False
    for name in installed():
        if name in _loaded or name in _failed:
            continue
        try:
            load_plugin(name)
            fresh = True
        except UserError as error:
            _failed[name] = error
    return fresh


def with_installed(find: Callable[[], T]) -> T:
    """`find()`; where it raises `UnknownPart`, once more with every installed plugin loaded.

    The error of the second time also says which installed plugins have no such part either, and which could not be loaded.
    """
    try:
        return find()
    except UnknownPart as unknown:
        error = unknown
    if load_installed():
        try:
            return find()
        except UnknownPart as unknown:
            error = unknown
    asked = sorted(name for name in installed() if name in _loaded)
    raise UnknownPart(
        error.what, where=error.where, name=error.name, known=error.known, asked=asked, failed=_failed.values()
    )


def load_needed(notes: object, *, where: object) -> None:
    """Loads those of `notes` (`my_parts==1.2`, or `my_parts`; None: none) that are installed, as the file `where` needs them.

    A plugin of another version than noted is one warning. Raises UserError for one that is neither installed nor loaded, and
    for notes that are no list of names.
    """
    if not isinstance(notes, list | tuple | None) or not all(isinstance(note, str) for note in notes or ()):
        raise UserError("its plugins are no list of names", where=where, fix="write plugins: [my_parts]")
    for note in notes or ():
        wanted, _, version = note.partition("==")
        name = _plain(wanted.strip())
        if name not in _loaded and name not in _owners.values() and name not in installed():
            others = sorted({*_loaded, *installed()})
            known = f" (there are: {', '.join(others)})" if others else ""
            which = f"'{name}', version {version.strip()}," if version else f"'{name}',"
            raise UserError(
                f"it needs the plugin {which} which is neither installed nor given{known}",
                where=where,
                fix=f"pip install it, or give it with --plugin {name}, if you trust it",
            )
        found = load_plugin(name)
        if version and found.version != version.strip() and note not in _warned:
            _warned.add(note)
            log.warning("%s: made with %s, now it runs with %s: results may differ", where, note, found.note)


def owner(kind: str, name: str) -> str | None:
    """The plugin that registered a part; None for flyspeck's own, and for a name nobody has."""
    return _owners.get((kind, name))


def behind(error: BaseException) -> str | None:
    """The plugin in whose code an exception was raised, or in what that called; None where no plugin had a hand in it."""
    names = {name.partition(":")[0].partition(".")[0]: name for name in (*_loaded, *_owners.values())}
    found, step = None, error.__traceback__
    while step is not None:
        module = str(step.tb_frame.f_globals.get("__name__", ""))
        found = next((name for top, name in names.items() if f"{module}.".startswith(f"{top}.")), found)
        step = step.tb_next
    return found


def owned(kind: str) -> list[str]:
    """Names of the parts of a kind that plugins have registered, in the order of their registration."""
    return [name for of, name in _owners if of == kind]


def notes_of(parts: Iterable[tuple[str, str | None]]) -> list[str]:
    """The plugins behind some parts `(kind, name)`, as files name them; flyspeck's own parts and None need none."""
    names = {_owners[kind, name] for kind, name in parts if name is not None and (kind, name) in _owners}
    return sorted(_note(name).note for name in names)


def merged_notes(given: Iterable[str], found: Iterable[str]) -> list[str]:
    """Both lists, a plugin once, with the version it has now where it is loaded."""
    names = {_plain(note.partition("==")[0].strip()): note for note in (*given, *found)}
    return sorted(_note(name).note if name in _loaded else note for name, note in names.items())


_MEND = "mend the plugin; --debug shows where"


def _plain(target: str) -> str:
    """`my_parts:register` and `my_parts` are one plugin."""
    module, _, attribute = target.replace(" ", "").partition(":")
    return module if attribute in ("", "register") else f"{module}:{attribute}"


def _function(name: str) -> Callable[[], object]:
    module_name, _, attribute = name.partition(":")
    where = f"plugin {name}"
    if not all(part.isidentifier() for part in module_name.split(".")):
        fix = "give the module's name, as in --plugin my_parts"
        raise UserError(f"'{module_name}' is no module's name", where=where, fix=fix)
    try:
        module = importlib.import_module(module_name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            fix = "pip install it, or run in the folder that holds it"
            raise UserError(f"there is no module '{error.name}'", where=where, fix=fix) from None
        raise UserError(f"importing it failed ({_words(error)})", where=where, fix=_MEND) from error
    function: Any = module
    for part in (attribute or "register").split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise UserError(
            f"it has no function '{attribute or 'register'}'", where=where, fix="define one that calls register_*"
        )
    return function


def _note(name: str) -> Plugin:
    if name not in _loaded:
        _loaded[name] = Plugin(name, _version(name))
    return _loaded[name]


def _version(name: str) -> str:
    """The version of its distribution, its `__version__`, or a hash of its source."""
    point = installed().get(name)
    if point is not None and point.dist is not None:
        return point.dist.version
    module = sys.modules.get(name.partition(":")[0])
    for holder in (module, sys.modules.get(name.partition(".")[0])):
        if isinstance(getattr(holder, "__version__", None), str):
            return holder.__version__  # type: ignore[union-attr]
    return f"0+{_source_hash(module)}"


def _source_hash(module: ModuleType | None) -> str:
    digest = hashlib.sha256()
    file = getattr(module, "__file__", None)
    if file is not None:
        files = sorted(Path(file).parent.rglob("*.py")) if Path(file).name == "__init__.py" else [Path(file)]
        for source in files:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
