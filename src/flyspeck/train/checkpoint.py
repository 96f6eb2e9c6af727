"""What a run leaves on disk, and reading it back without executing anything.

* `best.safetensors`, `last.safetensors`: weights for inference, with the model's description in the file's metadata.
* `state.pt`: everything that resuming needs, read with `weights_only=True`.

Files are written under a temporary name and renamed, so that a full disk or a kill never costs the one before.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from flyspeck.errors import UserError

KEY = "flyspeck"


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary path beside `path`, flushes the file to disk and renames it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"could not be written ({reason})", where=path, fix="the file before it is untouched"
        ) from error
    except (RuntimeError, SafetensorError) as error:  # torch and safetensors wrap a full disk in their own errors
        raise UserError(f"could not be written ({error})", where=path, fix="the file before it is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Plain values as JSON, whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(json.dumps(content), encoding="utf-8")

    replace_file(path, write)


def save_weights(path: Path, state: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    """Weights as safetensors; `description` (JSON) says how to build the model that they fit."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    metadata = {KEY: json.dumps(description)}
    replace_file(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and description of a file that `save_weights` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise UserError("no such checkpoint", where=path) from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"not a whole safetensors file ({error})", where=path, fix="copy it again or train again"
        ) from None
    if KEY not in metadata:
        raise UserError("a safetensors file of another program: it does not say which model it holds", where=path)
    return state, json.loads(metadata[KEY])


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values for resuming."""
    replace_file(path, lambda temporary: torch.save(state, temporary))


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote; refuses anything that would execute code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError("nothing to resume", where=path, fix="leave out --resume to start the run") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"not a whole training state ({reason})", where=path, fix="start without --resume") from None


def weights_file(path: Path | str) -> Path:
    """The weights to use of a run folder (the best, else the last), or the file itself."""
    path = Path(path)
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        raise UserError("holds no weights", where=path, fix="give a run folder that has trained at least one epoch")
    if not path.exists():
        raise UserError("no such run or checkpoint", where=path)
    return path
