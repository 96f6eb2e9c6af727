"""What a part from outside the package promises, held against what it does: real maps against their `FeatureSpec`s.

flyspeck's own parts are held to theirs by its tests. A plugin's part runs once, on an image of a few cells, whenever it is
built: a wrong stride would otherwise show as boxes beside their objects, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flyspeck.errors import UserError
from flyspeck.models.bands import input_bands
from flyspeck.plugins import owner
from flyspeck.types import FeatureSpec

_CELLS = 2  # of the coarsest map: with two, half and twice its stride give other sizes


def check_backbone(backbone: nn.Module, name: str) -> None:
    """Raises UserError where the maps of the plugin's backbone `name` are not what its `features` say.

    Nothing is asked of flyspeck's own. The backbone runs in evaluation mode, without gradients, and is left as it was.
    """
    if owner("backbone", name) is None:
        return
    mark(backbone, "backbone", name)
    what = f"the backbone '{name}'"
    features = _features(backbone, what, name, "backbone")
    side = _side(features)
    found = _run(backbone, torch.zeros(1, input_bands(backbone), side, side, **_kind(backbone)), what, name, "backbone")
    _compare(found, features, side, what, name, "backbone")


def check_neck(neck: nn.Module, inputs: Sequence[FeatureSpec], name: str, *, channels: int, num_extra: int) -> None:
    """Raises UserError where the maps of the plugin's neck `name` are not what its `features` say, or too few or too many.

    `inputs` are the backbone's; a pyramid of them has `num_extra` more levels, each of `channels`.
    """
    if owner("neck", name) is None:
        return
    mark(neck, "neck", name)
    what, wanted = f"the neck '{name}'", len(inputs) + num_extra
    features = _features(neck, what, name, "neck")
    if len(features) != wanted or any(f.channels != channels for f in features):
        said = ", ".join(f"{f.channels} at stride {f.stride:g}" for f in features)
        raise _fault(f"{what} must have {wanted} maps of {channels} channels, its features are {said}", name, "neck")
    side = _side([*inputs, *features])
    maps = [torch.zeros(1, f.channels, *[math.ceil(side / f.stride)] * 2, **_kind(neck)) for f in inputs]
    _compare(_run(neck, maps, what, name, "neck"), features, side, what, name, "neck")


def mark(part: nn.Module, kind: str, name: str) -> None:
    """Notes whose part it is, if a plugin's: `Blaming` names it."""
    if owner(kind, name) is not None:
        part.plugin_part = (kind, name)  # type: ignore[assignment]


class Blaming:
    """A context in which a part computes: what goes wrong in a plugin's is one line that names it.

    Errors of flyspeck's own parts pass as they are, and so do UserErrors, errors of files, and a device that has no memory left.
    """

    def __init__(self, part: nn.Module, doing: str) -> None:
        self._part, self._doing = part.__dict__.get("plugin_part"), doing

    def __enter__(self) -> Blaming:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        passes = (UserError, OSError, MemoryError, torch.OutOfMemoryError)
        if self._part is None or not isinstance(error, Exception) or isinstance(error, passes):
            return
        text = " ".join(str(error).split())[:200]
        if isinstance(error, ValueError) and text.startswith("Expected more than 1 value per channel"):
            return  # a batch norm, which training explains
        raise self.fault(f"failed in {self._doing} ({type(error).__name__}: {text})") from error

    def fault(self, what: str) -> UserError:
        """The error that says `what` of the part."""
        kind, name = self._part or ("part", "")
        fix = "mend the plugin; --debug shows where"
        return UserError(f"the {kind} '{name}' {what}", where=f"plugin {owner(kind, name)}", fix=fix)

    def due(self, found: object, fits: bool, what: str) -> None:
        """Raises UserError where the plugin's part gave another thing than `what`; flyspeck's own are not looked at."""
        if self._part is not None and not fits:
            raise self.fault(f"returns {type(found).__name__} from {self._doing} where {what} is due")


def _fault(text: str, name: str, kind: str) -> UserError:
    return UserError(text, where=f"plugin {owner(kind, name)}", fix="mend the plugin: see `FeatureSpec`")


def _features(part: nn.Module, what: str, name: str, kind: str) -> list[FeatureSpec]:
    features: Any = getattr(part, "features", None)
    usable = isinstance(features, Sequence) and len(features) and all(isinstance(f, FeatureSpec) for f in features)
    if not usable or [f.stride for f in features] != sorted(f.stride for f in features):
        raise _fault(f"{what} has no `features`: FeatureSpecs of its maps, finest first", name, kind)
    return list(features)


def _side(features: Sequence[FeatureSpec]) -> int:
    return max(64, _CELLS * math.ceil(max(f.stride for f in features)))


def _kind(part: nn.Module) -> dict[str, Any]:
    """Where it computes: an example must live there too (a model that is only counted has no values at all)."""
    first = next(part.parameters(), None)
    return {} if first is None else {"device": first.device, "dtype": first.dtype}


def _run(part: nn.Module, example: Any, what: str, name: str, kind: str) -> list[Tensor]:
    modes = {module: module.training for module in part.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found: Any = part.eval()(example)
    except UserError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"{what} fails on a small image ({type(error).__name__}: {text})",
            where=f"plugin {owner(kind, name)}",
            fix="mend the plugin; --debug shows where",
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(found, list | tuple) or not all(isinstance(m, Tensor) and m.ndim == 4 for m in found):
        raise _fault(f"{what} returns no list of maps (B, C, H, W)", name, kind)
    return list(found)


def _compare(
    found: Sequence[Tensor], features: Sequence[FeatureSpec], side: int, what: str, name: str, kind: str
) -> None:
    if len(found) != len(features):
        raise _fault(f"{what} returns {len(found)} maps where its features are {len(features)}", name, kind)
    for number, (m, spec) in enumerate(zip(found, features, strict=True)):
        channels, height, width = m.shape[1:]
        fits = abs(height - side / spec.stride) < 1 and abs(width - side / spec.stride) < 1  # however sides are rounded
        if channels != spec.channels or not fits:
            said = f"{spec.channels} channels at stride {spec.stride:g}"
            got = f"{channels} channels at {height}x{width} from {side}x{side} pixels"
            raise _fault(f"{what}: map {number} is said to have {said}, and has {got}", name, kind)
