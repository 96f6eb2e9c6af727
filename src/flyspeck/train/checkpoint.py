"""What a run leaves on disk, and reading it back without executing anything.

* `best.safetensors`, `last.safetensors`: weights for inference, with the model's description in the file's metadata.
* `state.pt`: everything that resuming needs, read with `weights_only=True`.

Files are written whole or not at all (`flyspeck.files`), so that a full disk or a kill never costs the one before.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from flyspeck.errors import UserError
from flyspeck.files import UNREADABLE, renamed_keys, replace_file
from flyspeck.models.weights import refuse_shard

KEY = "flyspeck"
_WRAPPED = (RuntimeError, SafetensorError)  # torch and safetensors wrap a full disk in their own errors


def save_weights(path: Path, state: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    """Weights as safetensors; `description` (JSON) says how to build the model that they fit."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    metadata = {KEY: json.dumps(description)}
    replace_file(path, lambda temporary: save_file(tensors, temporary, metadata), errors=_WRAPPED)


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and description of a file that `save_weights` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise UserError("no such checkpoint", where=path) from None
    except (SafetensorError, OSError) as error:
        if path.suffix != ".safetensors":
            what = "a recipe, not a model" if path.suffix in (".yaml", ".yml") else "no weights that flyspeck reads"
            fix = (
                "give a run folder, its .safetensors, or an exported file (.onnx, .xml, .tflite; of other programs too)"
            )
            raise UserError(what, where=path, fix=fix) from None
        raise UserError(
            f"not a whole safetensors file ({error})", where=path, fix="copy it again or train again"
        ) from None
    if KEY not in metadata:
        raise UserError("a safetensors file of another program: it does not say which model it holds", where=path)
    try:
        description = json.loads(metadata[KEY])
    except (ValueError, RecursionError):
        description = None
    if not isinstance(description, dict):
        raise UserError("its description cannot be read", where=path, fix="copy it again or train again")
    return state, _with_new_words(renamed_keys(description))


def add_to_description(path: Path, **entries: Any) -> None:
    """Entries more in the description of a weights file, whose tensors stay as they are."""
    state, description = load_weights(path)
    save_weights(path, state, {**description, **entries})


def _with_new_words(description: dict[str, Any]) -> dict[str, Any]:
    """A description with what older formats called otherwise: until 2 the fusion `gate` was `attention`."""
    if description.get("format", 1) not in (1, 2):
        return description
    recipe = description.get("recipe")
    for model in (description.get("model"), recipe.get("model") if isinstance(recipe, dict) else None):
        if isinstance(model, dict) and model.get("fusion") == "attention":
            model["fusion"] = "gate"
    return description


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values for resuming."""
    replace_file(path, lambda temporary: torch.save(state, temporary), errors=_WRAPPED)


def load_state(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """What `save_state` wrote; refuses anything that would execute code. `mapped`: its tensors are read when asked for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's, on pickles of another kind, which are refused below
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise UserError("nothing to resume", where=path, fix="leave out --resume to start the run") from None
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"not a whole training state ({reason})", where=path, fix="start without --resume") from None
    if not isinstance(state, dict):
        raise UserError("not a training state", where=path, fix="start without --resume")
    if isinstance(state.get("description"), dict):
        _with_new_words(state["description"])
    return state


_PARTS = ("description", "progress", "objective", "optimizer")
"""What the state of every run holds, each a mapping."""


def load_run_state(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """`load_state` of a run, with all that a run has. Raises UserError."""
    state = load_state(path, mapped=mapped)
    missing = [name for name in _PARTS if not isinstance(state.get(name), dict)]
    if missing:
        raise UserError(f"not a training state: it has no {missing[0]}", where=path, fix="start without --resume")
    return state


def weights_file(path: Path | str) -> Path:
    """The weights to use of a run folder (the best, else the last) or a packaged model's, or the file itself."""
    path = Path(path)
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors", "model.safetensors"):
            if (path / name).is_file():
                return path / name
        for index in path.glob("*.index.json"):
            refuse_shard(index)
        raise UserError("holds no weights", where=path, fix="give a run folder that has trained at least one epoch")
    if not path.exists():
        raise UserError("no such run or checkpoint", where=path)
    return path
