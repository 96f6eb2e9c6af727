"""What is written survives; what is not ours, or not whole, is refused with a sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flyspeck.errors import UserError
from flyspeck.train import checkpoint as c


def test_weights_round_trip_with_their_description(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor([1, 2])}
    c.save_weights(tmp_path / "w.safetensors", state, {"classes": ["Möwe"], "mean": [0.5]})
    back, description = c.load_weights(tmp_path / "w.safetensors")
    assert description == {"classes": ["Möwe"], "mean": [0.5]}
    for name, value in state.items():
        torch.testing.assert_close(back[name], value)
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_a_full_disk_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    c.save_state(path, {"step": 1})

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("flyspeck.files.os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        c.save_state(path, {"step": 2})
    monkeypatch.undo()
    assert c.load_state(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["state.pt"]


def test_cut_off_and_foreign_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    c.save_weights(whole, {"a": torch.ones(1000)}, {})
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    for name, expected in (
        ("cut", "not a whole"),
        ("text", "not a whole"),
        ("foreign", "another program"),
        ("no", "no such"),
    ):
        with pytest.raises(UserError, match=expected) as error:
            c.load_weights(tmp_path / f"{name}.safetensors")
        assert name in str(error.value)


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("bombed",)


def test_a_state_that_would_execute_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"step": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(UserError, match="not a whole training state"):
        c.load_state(tmp_path / "bomb.pt")
    assert not (tmp_path / "bombed").exists()
    (tmp_path / "cut.pt").write_bytes((tmp_path / "bomb.pt").read_bytes()[:100])
    with pytest.raises(UserError, match="not a whole training state"):
        c.load_state(tmp_path / "cut.pt")


def test_weights_file_of_a_run(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(UserError, match=r"index.json: one shard of weights that lie in several files"):
        c.weights_file(tmp_path)
    index.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        c.weights_file(tmp_path)
    (tmp_path / "last.safetensors").touch()
    assert c.weights_file(tmp_path).name == "last.safetensors"
    (tmp_path / "best.safetensors").touch()
    assert c.weights_file(tmp_path).name == "best.safetensors"
    with pytest.raises(UserError, match="no such run"):
        c.weights_file(tmp_path / "absent")


def test_a_state_is_read_whole_unless_it_is_asked_to_be_mapped(tmp_path: Path) -> None:
    """What is held in memory does not follow what becomes of the file."""
    path, kept = tmp_path / "state.pt", torch.arange(4096.0)
    c.save_state(path, {"a": kept})
    whole = c.load_state(path)["a"]
    with path.open("r+b") as file:  # in its place
        file.write(bytes(path.stat().st_size))
    assert torch.equal(whole, kept)
    c.save_state(path, {"a": kept})
    assert torch.equal(c.load_state(path, mapped=True)["a"], kept)


@pytest.mark.parametrize(
    ("name", "said"), [("yolo.pt", "no weights that flyspeck reads"), ("my.yaml", "a recipe, not a model")]
)
def test_what_was_never_weights_of_ours_is_not_called_damaged(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 of another program")
    with pytest.raises(UserError, match=rf"{name}: {said}; give a run folder"):
        c.load_weights(tmp_path / name)
