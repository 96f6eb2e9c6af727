"""A run to a card and a weights file that others can use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.testing import assert_close

from flyspeck.cli.main import main
from flyspeck.publish.card import Parity, by_class, published
from flyspeck.train.build import load_described, load_detector
from flyspeck.train.config import parse_recipe
from flyspeck.train.run import train


@pytest.fixture
def run(squares: Path, base: dict[str, Any]) -> Path:
    """A run folder of one epoch."""
    paths = {name: str(squares / "data" / "squares" / f"{name}.json") for name in ("train", "val")}
    content = base | {"name": "squares", "data": base["data"] | paths, "train": base["train"] | {"epochs": 1}}
    train(parse_recipe(content), squares / "run")
    return squares / "run"


OPTIONS = ["--trained-on", "squares of our own (CC0)", "--licence", "Apache-2.0"]


def test_a_card_and_weights_that_predict_takes_by_path(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flyspeck.publish.card.TOLERANCE", 1.0)  # one epoch on eight images: scores are nearly equal
    notes = tmp_path / "notes.md"
    notes.write_text("Finds squares, nothing else.")
    out = tmp_path / "card"
    assert main(["card", str(run), "--out", str(out), "--notes", str(notes), "--baselines", *OPTIONS]) == 0
    text = (out / "README.md").read_text()
    for words in (
        "squares of our own",
        "Apache-2.0",
        "| tiny1 |",
        "best F1 on these images",
        "| objects | doubles, % of those found | count error (bias), boxes an image |",
        "**sha256**",
        "flyspeck: AP at IoU",
        "Finds squares",
        "epoch 1 of 1",
        "| all background | 0.00 | 0.00 |",
    ):
        assert words in text, words
    assert str(tmp_path) not in text
    assert yaml.safe_load(text.split("```yaml")[1].split("```")[0])["model"]["name"] == "retinanet:mobilenet_v2"
    content = (out / "model.safetensors").read_bytes()
    assert str(tmp_path).encode() not in content
    assert len(content) < 0.6 * (run / "best.safetensors").stat().st_size
    whole, half = load_detector(run), load_detector(out / "model.safetensors")
    for ours, theirs in zip(half.state_dict().values(), whole.state_dict().values(), strict=True):
        assert ours.dtype == theirs.dtype
        assert_close(ours, theirs, rtol=1e-3, atol=1e-7)  # half precision has 11 bits
    image = next((tmp_path / "data/squares").glob("val*.png"))
    assert main(["predict", str(image), "--model", str(out / "model.safetensors"), "--out", str(tmp_path / "p")]) == 0
    assert isinstance(json.loads((tmp_path / "p" / "detections.json").read_text()), list)


def test_an_unfinished_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "detections.json").unlink()
    assert main(["card", str(run), "--out", str(run / "card"), *OPTIONS]) == 2
    assert "not finished" in capsys.readouterr().err


def test_paths_leave_the_description(run: Path) -> None:
    _, description = load_described(run)
    description["model"]["weights"] = "/home/somebody/weights/net.pth"
    assert published(description)["model"]["weights"] == "net.pth"
    assert published(description)["classes"] == description["classes"]


def test_rounding_that_costs_points_is_refused() -> None:
    assert Parity("ap50_all", 100, 0.500, 0.4985).holds
    assert not Parity("ap50_all", 100, 0.500, 0.497).holds
    assert not Parity("ap50_all", 100, 0.500, float("inf")).holds  # 1e5 has no half
    assert torch.tensor(1e5).half().isinf()


def test_classes_are_named_by_their_ids(tmp_path: Path) -> None:
    rows = [
        {"metric": "AP_per_class", "category_id": 7, "iou": 0.5, "area": "all", "value": 0.25, "n_gt": 4},
        {"metric": "AP_per_class", "category_id": 3, "iou": 0.5, "area": "all", "value": -1.0, "n_gt": 0},
        {"metric": "AP_per_class", "category_id": 7, "iou": 0.75, "area": "all", "value": 0.1, "n_gt": 4},
        {"metric": "AP", "iou": 0.5, "area": "all", "value": 0.2},
    ]
    (tmp_path / "evaluation.json").write_text(json.dumps({"rows": rows}))
    assert by_class(tmp_path, {3: "boat", 7: "person"}) == ["AP50 by class, all sizes, %: person 25.0 (4 objects).", ""]
    assert by_class(tmp_path, {7: "person"}) == []  # one class: the table says it all
