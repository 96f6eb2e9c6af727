"""Nothing in a file of weights, states or arrays is run: a pickle that would make a file makes none, wherever it is read."""

from __future__ import annotations

import ast
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from canaries import obedient, pickled_call

import flyspeck
from flyspeck.data.classification import load_arrays, read_labelled_images
from flyspeck.data.images import read_image, read_size
from flyspeck.data.inspect import summarize_classification
from flyspeck.errors import UserError
from flyspeck.infer.load import load_model
from flyspeck.infer.source import open_source
from flyspeck.models.weights import read_weights
from flyspeck.train.build import load_detector
from flyspeck.train.checkpoint import load_state, load_weights
from flyspeck.train.distill.cache import CachedSource
from watched_effects import effects


def plain(canary: Path) -> bytes:
    return pickled_call(canary)


def newest(canary: Path) -> bytes:
    return pickled_call(canary, pickle.HIGHEST_PROTOCOL)


def torch_zip(canary: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": obedient(canary)}, stream)
    return stream.getvalue()


def torch_legacy(canary: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": obedient(canary)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def objects(canary: Path) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([obedient(canary)], dtype=object), allow_pickle=True)
    return stream.getvalue()


def packed_objects(canary: Path) -> bytes:
    stream = io.BytesIO()
    array = np.array([obedient(canary)], dtype=object)
    np.savez(stream, data=array, labels=array, classes=array, offsets=array)
    return stream.getvalue()


KINDS = {make.__name__: make for make in (plain, newest, torch_zip, torch_legacy, objects, packed_objects)}


def as_classification(path: Path) -> None:
    """The file as every batch of CIFAR-10 and as packed npz."""
    folder = path.parent / "set"
    folder.mkdir()
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(path.read_bytes())
    read_labelled_images(folder, "train")


def as_cache(path: Path) -> None:
    (path.parent / "keys.npy").write_bytes(path.read_bytes())
    (path.parent / "P2.npy").write_bytes(path.read_bytes())
    CachedSource(path.parent, ["P2"])


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights .pth": ("w.pth", read_weights),
    "weights .safetensors": ("w.safetensors", read_weights),
    "weights of a run": ("best.safetensors", load_weights),
    "a run folder": ("best.safetensors", lambda path: load_detector(path.parent)),
    "a training state": ("state.pt", load_state),
    "a mapped state": ("state.pt", lambda path: load_state(path, mapped=True)),
    "an exported file": ("m.onnx", load_model),
    "OpenVINO": ("m.xml", load_model),
    "LiteRT": ("m.tflite", load_model),
    "an image": ("a.npy", read_image),
    "its size": ("a.npy", read_size),
    "an image for predict": ("a.npy", open_source),
    "packed images": ("train.npz", lambda path: read_labelled_images(path.parent, "train")),
    "facts of packed images": ("train.npz", summarize_classification),
    "a pickled batch": ("data_batch_1", load_arrays),
    "a pickled set": ("data_batch_1", as_classification),
    "a teacher's outputs": ("P2.npy", as_cache),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_is_never_obeyed(reader: str, kind: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(KINDS[kind](canary))
    with effects(tmp_path) as seen, pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert not canary.exists()
    assert not [line for line in seen.found if "pickle" in line or "Popen" in line]
    assert "\n" not in str(caught.value)


def test_the_canary_sings_where_it_is_obeyed(tmp_path: Path) -> None:
    """What the test above rests on: obeyed, each of these files makes the file, and the audit hears the name."""
    for number, make in enumerate((plain, newest)):
        with effects(tmp_path) as seen:
            pickle.loads(make(tmp_path / str(number)))
        assert (tmp_path / str(number)).exists()
        assert any("pickle.find_class" in line for line in seen.found)
    (tmp_path / "z.pt").write_bytes(torch_zip(tmp_path / "zip"))
    torch.load(tmp_path / "z.pt", weights_only=False)
    assert (tmp_path / "zip").exists()


FORBIDDEN = {
    ("pickle", "load"),
    ("pickle", "loads"),
    ("marshal", "load"),
    ("marshal", "loads"),
    ("shelve", "open"),
    ("joblib", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("os", "system"),
    ("os", "popen"),
    ("jit", "load"),
    ("shutil", "unpack_archive"),
}


def faults(path: Path) -> list[str]:
    """Calls in a file of ours that obey, or may obey, what they read."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        said = {word.arg: ast.unparse(word.value) for word in node.keywords}
        called = node.func
        owner = ast.unparse(called.value).split(".")[-1] if isinstance(called, ast.Attribute) else ""
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        bad = (
            (owner, name) in FORBIDDEN or (not owner and name in ("eval", "exec")) or name in ("extractall", "extract")
        )
        bad |= (owner, name) == ("torch", "load") and said.get("weights_only") != "True"
        bad |= (owner, name) in (("np", "load"), ("numpy", "load")) and said.get("allow_pickle") != "False"
        bad |= (owner, name) == ("yaml", "load") and said.get("Loader") != "yaml.BaseLoader"
        bad |= (owner, name) == ("Image", "open") and "formats" not in said
        bad |= said.get("shell") == "True"
        if bad:
            found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_no_call_obeys_what_it_reads(tmp_path: Path) -> None:
    source = Path(flyspeck.__file__).parent
    lab = source.parents[1] / "lab" / "src"
    found = [line for folder in (source, lab) for path in sorted(folder.rglob("*.py")) for line in faults(path)]
    assert not found
    bad = "torch.load(p)\nnp.load(p)\nnp.load(p, allow_pickle=True)\npickle.loads(b)\nyaml.load(t, Loader=yaml.Loader)\neval(t)\n"
    (tmp_path / "bad.py").write_text(bad + "archive.extractall()\nsubprocess.run(c, shell=True)\nImage.open(p)\n")
    assert len(faults(tmp_path / "bad.py")) == 9
