"""Four and eight bands of 12 bits in 16, the objects in the last one only: trained, measured, exported, drawn and explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import flyspeck
from flyspeck.data.image_files import read_true
from flyspeck.explain.run import ExplainOptions, Images, explain_models
from flyspeck.explain.subjects import load_subjects
from flyspeck.models.build import build_backbone
from flyspeck.models.weights import save_weights
from flyspeck.train.build import load_described
from many_bands import write_banded_set

pytest.importorskip("tifffile")


def recipe(folder: Path, **data: Any) -> dict[str, Any]:
    return {
        "data": {"train": str(folder / "train.json"), "val": str(folder / "val.json"), **data},
        "augment": {"photometric": 0.5, "vertical_flip": 0.5},
        "model": {
            "name": "fcos:bh_resnet14", "width": 0.25, "channels": 16, "norm": "bn", "levels": "2-5", "min_score": 0.05,
        },
        "train": {"epochs": 12, "batch_size": 4, "optimizer": "adamw", "lr": 0.005, "workers": 0, "warmup_steps": 10},
    }  # fmt: skip


def write_sets(folder: Path, bands: int) -> None:
    write_banded_set(folder, "train", 48, bands=bands, seed=1)
    write_banded_set(folder, "val", 12, bands=bands, seed=2)


def boxes_of(folder: Path) -> list[list[float]]:
    rows = json.loads((folder / "detections.json").read_text())
    return sorted([row["image_id"], *row["bbox"], row["score"]] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("bands", [4, 8])
def test_many_bands_from_training_to_export(tmp_path: Path, bands: int) -> None:
    write_sets(tmp_path, bands)
    run = flyspeck.train(recipe(tmp_path), out=tmp_path / "run")
    assert run.metrics["ap50_all"] > 0.5
    cut = flyspeck.train(recipe(tmp_path, channels=3), out=tmp_path / "cut")  # the first three: decoys only
    assert cut.metrics["ap50_all"] < 0.2
    reading = load_described(run)[1]["reading"]
    assert (reading["channels"], reading["value_range"], reading["of"]) == (bands, [[0, 4095]], "uint16")

    flyspeck.predict(tmp_path / "val.json", model=run, out=tmp_path / "eager")
    eager = boxes_of(tmp_path / "eager")
    assert len(eager) > 12
    engines = ["onnx"] if pytest.importorskip("onnxruntime") else []
    engines += ["xml"] if pytest.importorskip("openvino") else []
    for ending in engines:
        file = tmp_path / f"m.{ending}"
        flyspeck.export(run, out=file)
        flyspeck.predict(tmp_path / "val.json", model=file, out=tmp_path / ending, draw=0)
        assert_allclose(boxes_of(tmp_path / ending), eager, atol=0.05)

    assert read_true(tmp_path / "eager" / "drawn" / "val1.png").shape[2] == 3
    flyspeck.report([run], out=tmp_path / "report.html")
    table = flyspeck.read_annotations(tmp_path / "val.json")
    subjects = load_subjects([run.folder])
    assert explain_models(
        subjects, Images(table, ()), tmp_path / "explained", ExplainOptions(images=2, sample=2)
    ).is_file()


def test_few_steps_on_every_number_of_bands(tmp_path: Path) -> None:
    """Training, pretrained weights, evaluation and prediction on the same values, in a few seconds."""
    pretrained = tmp_path / "backbone.safetensors"
    torch.manual_seed(0)
    save_weights(build_backbone("bh_resnet14", width=0.25), pretrained)
    for bands in (2, 5):
        folder = tmp_path / str(bands)
        write_banded_set(folder, "train", 4, bands=bands)
        write_banded_set(folder, "val", 2, bands=bands, seed=1)
        wanted = recipe(folder)
        wanted["train"]["epochs"], wanted["model"]["weights"] = 1, str(pretrained)
        run = flyspeck.train(wanted, out=folder / "run")
        inside = {row[0]: row[1:] for row in boxes_of(run.folder)}
        predictor = flyspeck.load_predictor(run, tile="off", score_threshold=0.05)
        found = predictor.predict(folder / "val1.tif")[0]
        assert np.isfinite(found.boxes).all()
        assert (1 in inside) == bool(len(found))
        with pytest.raises(flyspeck.UserError, match=f"an image of 3 bands for a detector of {bands}"):
            predictor.predict(np.zeros((48, 64, 3), np.uint16))
