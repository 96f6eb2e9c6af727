"""What `model.start` may name: a run folder or a weights file, a trained detector that ships, torchvision's, or a snapshot.

A bare word is a trained detector: of an installed package, or of the folder `models/` of a clone. A package offers its own by
the entry-point group `flyspeck.weights`, each as `NAME = "PACKAGE:FOLDER"`: the folder within the package that holds
`model.safetensors` and its card. Nothing of such a package is imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from flyspeck.errors import UserError, nearest
from flyspeck.models.start import snapshot, torchvision_names
from flyspeck.train.checkpoint import weights_file

GROUP = "flyspeck.weights"
"""The group of entry points by which an installed package offers trained detectors."""
WEIGHTS, CARD = "model.safetensors", "README.md"
_LICENCE = re.compile(r"^\* \*\*Weights' licence\*\*: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Start:
    """Weights that a recipe starts from."""

    name: str
    """As the recipe has it."""
    file: Path
    licence: str = ""
    """As its card or package says."""

    @property
    def is_torchvision(self) -> bool:
        """Whether the file is one of torchvision's own."""
        return torchvision_names.is_torchvision(self.name)

    @property
    def is_foreign(self) -> bool:
        """Whether another program wrote the file, which says nothing of a run."""
        return self.is_torchvision or snapshot.is_snapshot(self.name)


def find_start(name: str | Path) -> Start:
    """The weights that `model.start` means.

    Raises:
        UserError: If there are none: with the nearest known name, or with the file to bring and where to put it.
    """
    name = str(name)
    if torchvision_names.is_torchvision(name):
        return Start(name, torchvision_names.find_file(name), torchvision_names.LICENCE)
    if snapshot.is_snapshot(name):
        return Start(name, snapshot.weights_of(name), snapshot.LICENCE)
    if Path(name).exists():
        return Start(name, weights_file(name), licence_of_card(weights_file(name).parent))
    if "/" in name or "." in name:
        weights_file(name)  # which says that it is not there
    return _named(name)


def shipped() -> dict[str, Path]:
    """Trained detectors by name, each with its folder: those of a clone, and those of installed packages. Nothing is imported."""
    clone = Path(__file__).resolve().parents[3] / "models"
    found = {file.parent.name: file.parent for file in sorted(clone.glob(f"*/{WEIGHTS}"))}
    for point in entry_points(group=GROUP):
        found[point.name] = _folder(point)
    return found


def licence_of_card(folder: Path) -> str:
    """The licence that the card in `folder` gives for its weights; empty without one."""
    card = folder / CARD
    if not card.is_file():
        return ""
    said = _LICENCE.search(card.read_text(encoding="utf-8", errors="replace"))
    return said[1].strip() if said else ""


def _named(name: str) -> Start:
    known = shipped()
    if name not in known:
        where = "" if known else "; the trained detectors are in the repository's folder models/, not in the wheel"
        raise UserError(
            f"no trained detector '{name}' and no such run or weights file",
            where="model.start",
            fix=f"{nearest(name, known)}{where}" if known else f"give a run folder or a weights file{where}",
        )
    folder = known[name]
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"the installed package names it, but has no {WEIGHTS} for it",
            where=folder,
            fix="install that package again",
        )
    return Start(name, folder / WEIGHTS, licence_of_card(folder) or _package_licence(name))


def _folder(point: EntryPoint) -> Path:
    """Where the weights of an entry point lie. The package is found, not imported: nothing of it runs."""
    package, _, inner = point.value.partition(":")
    if "." in package:  # finding what is within another package would import that one
        raise UserError(
            f"the weights '{point.name}' are in '{package}', which is no package of its own",
            where=f"entry point {GROUP}",
            fix='name them as "PACKAGE:FOLDER"',
        )
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) / inner if places else Path(package) / inner


def _package_licence(name: str) -> str:
    for point in entry_points(group=GROUP, name=name):
        about = point.dist.metadata if point.dist is not None else None
        for key in ("License-Expression", "License"):
            if about is not None and key in about:
                return str(about[key])
    return ""
