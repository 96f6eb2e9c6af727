from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

import flyspeck
from flyspeck.devices import check_device, torch_device
from flyspeck.errors import UserError
from flyspeck.plan.auto import auto
from flyspeck.plan.init import init
from flyspeck.train.build import build_detector, describe_model
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def has(*, cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


def test_auto_takes_the_best_that_is_there(machine) -> None:
    for has, expected in (
        ({}, "cpu"),
        ({"mps": True}, "mps"),
        ({"cuda": 1}, "cuda"),
        ({"cuda": 2, "mps": True}, "cuda"),
    ):
        machine(**has)
        assert torch_device("auto") == torch.device(expected)


def test_what_is_named_and_there_is_taken(machine) -> None:
    machine(cuda=2, mps=True)
    for name in ("cpu", "cuda", "cuda:1", "mps"):
        assert torch_device(name) == torch.device(name)


@pytest.mark.parametrize(
    ("name", "cuda", "message"),
    [
        ("cuda", 0, "no CUDA device"),
        ("cuda:1", 0, "no CUDA device"),
        ("cuda:2", 2, "2 CUDA devices were found, no 'cuda:2'"),
        ("mps", 1, "no MPS device"),
        ("gpu", 1, "unknown device 'gpu'.*auto, cpu, cuda"),
        ("meta", 1, "unknown device 'meta'.*auto, cpu, cuda"),  # one of torch's, on which nothing is computed
        ("xpu:0", 1, "unknown device 'xpu:0'.*auto, cpu, cuda"),
    ],
)
def test_what_is_not_there_is_said(machine, name: str, cuda: int, message: str) -> None:
    machine(cuda=cuda)
    with pytest.raises(UserError, match=message) as caught:
        torch_device(name, where="train.device")
    assert caught.value.where == "train.device"


def test_no_function_takes_the_processor_of_itself() -> None:
    """`device` is `auto` where nothing is said, in Python as on the command line; what the caller must know has no default."""
    root = Path(flyspeck.__file__).parent
    folders = (root, root.parents[1] / "lab" / "src")
    fixed, auto = [], []
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                known = node.args
                positional = known.posonlyargs + known.args
                defaults = [None] * (len(positional) - len(known.defaults)) + known.defaults + known.kw_defaults
                for argument, default in zip(positional + known.kwonlyargs, defaults, strict=True):
                    if argument.arg == "device" and isinstance(default, ast.Constant) and default.value is not None:
                        (auto if default.value == "auto" else fixed).append(node.name)
    # Images made for a test of a network, and what processes tell each other: on the processor, like torch's own tensors. The
    # rest says what the processor has or does, where nothing else is named.
    made, told, about = (
        ["probe_images"],
        ["share_failure", "together"],
        ["faster_precision", "free_memory", "quicker_threads"],
    )
    assert sorted(fixed) == sorted(made + told + about)
    assert {"load_predictor", "predict", "load_model", "open_exported", "pretrain", "fit_predictor"} <= {*auto}


def test_a_predictor_goes_to_the_best_device_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = ModelConfig(name="retinanet:resnet18", width=0.25, channels=16, head={"depth": 1})
    about: dict[str, Any] = {"classes": ("a",), "mean": [0.5], "std": [0.25], "training_size": [64, 64]}
    weights = tmp_path / "w.safetensors"
    save_weights(weights, build_detector(model, classes=("a",), mean=[0.5], std=[0.25]).state_dict(), {
        **describe_model(model, classes=("a",), mean=[0.5], std=[0.25]), **about
    })  # fmt: skip
    asked = []

    def best(name: str) -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    monkeypatch.setattr("flyspeck.devices.torch_device", best)
    flyspeck.load_predictor(weights)
    assert asked[0] == "auto"
    asked.clear()
    flyspeck.load_predictor(weights, device="cpu")
    assert set(asked) == {"cpu"}


def test_a_wrong_device_is_said_before_any_work(machine, tmp_path: Path) -> None:
    machine()
    for name in ("tpu", "meta", "cuda", "cuda:x", ""):
        with pytest.raises(UserError, match=r"--device: (unknown device|no CUDA device)"):
            check_device(name)
        with pytest.raises(UserError, match="--device: "):
            init(tmp_path / "absent.json", device=name, out=tmp_path / "recipe.yaml")
        with pytest.raises(UserError, match="--device: "):
            auto(tmp_path / "absent.json", device=name, minutes=5, out=tmp_path / "auto")
    for name in ("auto", "cpu"):
        check_device(name)
    assert not list(tmp_path.iterdir())
