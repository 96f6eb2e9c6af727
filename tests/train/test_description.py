"""What checkpoints say of themselves: older words are understood, newer and odd ones are one line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from flyspeck.errors import UserError
from flyspeck.train.build import build_detector, describe_model, load_detector
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig

ABOUT: dict[str, Any] = {"classes": ("a",), "mean": [0.5], "std": [0.25]}
SMALL: dict[str, Any] = {"name": "retinanet:resnet18", "width": 0.25, "channels": 16, "head": {"depth": 1}}
ASSIGNER_0_1 = {
    "name": "nwd", "foreground": None, "background": None, "constant": 5.0, "ratios": None, "distance": "kl", "k": 3,
    "decay": 0.9,
}  # fmt: skip


def written(path: Path, change: Any) -> Path:
    model = ModelConfig(**SMALL)
    description = copy.deepcopy(describe_model(model, **ABOUT))
    change(description)
    save_weights(path, build_detector(model, **ABOUT).state_dict(), description)
    return path


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d["model"].update(attention=3), "cannot build the model it describes: unknown key 'attention'"),
        (lambda d: d["model"]["head"].update(gates=2), "unknown key 'head.gates'"),
        (lambda d: d["model"].update(name="retinet:resnet99"), "no 'retinet' in 'retinet:resnet99'"),
        (lambda d: d["model"].update(norm="rms"), "norm: Input should be 'none', 'bn' or 'gn'"),
        (
            lambda d: d["model"].update(assigner={"name": "dot"}),
            "assigner: Input should have one of these as its name: 'max_iou'",
        ),
        (lambda d: d.update(model=[1]), "does not say what its model is"),
        (lambda d: d.update(dynamic={"factor": 1}), "cannot build the dynamic it describes: unknown key 'factor'"),
        (lambda d: d.pop("model"), "does not say what its model is"),
        (lambda d: d.pop("classes"), "does not say what its classes is"),
        (lambda d: d.update(mean=3), "does not say what its mean is"),
        (lambda d: d.update(training_size=[64]), "its training_size is"),
        (lambda d: d.update(training_size=[64, -1]), "its training_size is"),
        (lambda d: d.update(training_size=[True, 64]), "its training_size is"),
        (lambda d: d.update(format=99), "a description of format 99, this version"),
        (lambda d: d.update(format="x"), "a description of format x"),
    ],
)
def test_what_this_version_cannot_build_is_one_line(tmp_path: Path, change: Any, expected: str) -> None:
    path = written(tmp_path / "x.safetensors", change)
    with pytest.raises(UserError) as caught:
        load_detector(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert expected in text
    assert "\n" not in text
    assert "update flyspeck" in text or "flyspeck wrote" in text


def test_words_of_version_0_1_are_understood(tmp_path: Path) -> None:
    def old(description: dict) -> None:
        description["model"]["head"] = {"depth": 1}
        description["model"].pop("backbone")
        description["model"]["assigner"] = ASSIGNER_0_1

    assert load_detector(written(tmp_path / "x.safetensors", old)).classes == ("a",)
