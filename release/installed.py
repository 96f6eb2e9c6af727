"""The packages that flyspeck brings at run time, as they are installed here: what is asked of their metadata and their files."""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
NOT_AT_RUN_TIME = ("dev", "docs")
"""Extras that nobody needs who only uses flyspeck."""


def plain(name: str) -> str:
    """A package's name as indexes spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Project:
    """flyspeck itself, by its project file: what is installed of it may be older."""

    name: str
    version: str
    licence: str
    requires: dict[str, tuple[str, ...]]
    """By extra, "" for always."""

    @property
    def extras(self) -> list[str]:
        """Those that bring something at run time."""
        return [extra for extra in self.requires if extra and extra not in NOT_AT_RUN_TIME]


def project(file: Path = ROOT / "pyproject.toml") -> Project:
    """The project in a file."""
    content = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    more = {extra: tuple(needed) for extra, needed in content["optional-dependencies"].items()}
    return Project(
        content["name"], content["version"], content["license"], {"": tuple(content["dependencies"]), **more}
    )


def needed_by(texts: Iterable[str], extras: Iterable[str] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The packages that requirements name on this system, with the extras that are asked of them."""
    chosen = [{"extra": extra} for extra in ("", *extras)]
    for text in texts:
        needed = Requirement(text)
        if needed.marker is None or any(needed.marker.evaluate(one) for one in chosen):
            yield needed.name, tuple(sorted(needed.extras))


def closure(extras: Iterable[str]) -> dict[str, Distribution]:
    """The installed packages that flyspeck with `extras` needs, and those that they need, by plain name.

    What is needed and not installed (an extra that was left out, another system's) is left out.
    """
    own, found, seen = project(), dict[str, Distribution](), set[tuple[str, tuple[str, ...]]]()
    waiting = [one for extra in ("", *extras) for one in needed_by(own.requires[extra])]
    while waiting:
        wanted = waiting.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        with contextlib.suppress(PackageNotFoundError):
            package = found[plain(wanted[0])] = distribution(wanted[0])
            waiting += needed_by(package.requires or [], wanted[1])
    return dict(sorted(found.items()))


def licence_of(package: Distribution) -> str:
    """What its metadata says: an SPDX expression where there is one, else its words."""
    about = package.metadata
    expression = about.get("License-Expression")
    if expression:
        return expression
    listed = [text.split(" :: ")[-1] for text in about.get_all("Classifier") or [] if text.startswith("License ::")]
    text = (about.get("License") or "").strip().splitlines()
    said = listed or ([text[0][:80]] if text else [])
    return "; ".join(said) if said else "UNKNOWN"


def files_of(package: Distribution) -> Iterator[Path]:
    """Its files that are there."""
    for file in package.files or []:
        path = Path(str(package.locate_file(file)))
        if path.is_file():
            yield path


_LICENCE_FILE = re.compile(r"(?i)licen[cs]e|copying|notice|third.?party|patent")


def licence_texts(package: Distribution) -> dict[str, str]:
    """The texts of its licence files, by name."""
    found = {}
    for path in files_of(package):
        own = ".dist-info" in str(path) or path.parent.name.lower() in ("licenses", "licences")
        named = _LICENCE_FILE.search(path.name) and (own or path.suffix in ("", ".txt", ".md", ".rst"))
        if named and path.suffix not in (".py", ".pyc", ".so") and path.stat().st_size < 4_000_000:
            found[path.name] = path.read_text(encoding="utf-8", errors="replace")
    return found


def shared_libraries(package: Distribution) -> list[str]:
    """The names of the libraries that its wheel bundles, without version and hash: `x264` of `libx264-d6533a8d.so.165`."""
    names = set()
    for path in files_of(package):
        bundled = path.name.startswith("lib") or ".libs" in str(path.parent) or ".dylibs" in str(path.parent)
        if bundled and re.search(r"\.(so|dylib|dll)(\.|$)", path.name):
            bare = re.sub(r"\.(so|dylib|dll).*$", "", path.name)
            names.add(re.sub(r"([-.][0-9a-f]{8}.*|-r\d.*|\.\d[\d.]*)$", "", bare).removeprefix("lib"))
    return sorted(names)
