"""`flyspeck tune alpha`: options, and one real search."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from flyspeck.cli.main import main


@pytest.fixture
def recipe(tmp_path):
    """Four images of 96x64 with bright squares, and the smallest detector."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(4):
        pixels = rng.integers(90, 120, (64, 96, 3)).astype(np.uint8)
        x, y = (int(v) for v in rng.integers(5, 50, 2))
        pixels[y : y + 8, x : x + 8] = 250
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": 96, "height": 64})
        box = {"id": i + 1, "image_id": i + 1, "category_id": 1, "bbox": [x, y, 8, 8], "area": 64, "iscrowd": 0}
        annotations.append(box)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: tiny\n"
        "data: {train: set.json, val: set.json}\n"
        "model: {name: 'fcos:resnet18', width: 0.125, channels: 16, head: {depth: 1}}\n"
        "train: {epochs: 1, batch_size: 2, workers: 0, optimizer: adamw, lr: 0.002, warmup_steps: 0}\n"
    )
    return path


def test_a_search_trains_plots_and_resumes(recipe, tmp_path, capsys):
    out = tmp_path / "search"
    command = ["tune", "alpha", str(recipe), "--grid", "0,0.5", "--out", str(out), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["means"]) == {"0.0", "0.5", "statistic"}
    assert found["best"] in (0.0, 0.5)
    assert len(found["trials"]) == 3
    assert json.loads((out / "alpha.json").read_text()) == found
    assert (out / "alpha.png").stat().st_size > 1000
    factors = (out / "alpha-statistic-seed-0" / "recipe.yaml").read_text()
    assert "statistic" not in factors.split("fusion:")[1].split("head:")[0]
    before = (out / "alpha-0-seed-0" / "trial.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "alpha-0-seed-0" / "trial.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "0,x"], "no list of numbers"),
        (["--grid", "-1,1"], "not at least 0 and below 100"),
        (["--set", "model.fusion=one"], "sets model.fusion"),
        (["--set", "model.name=fcos:resnet18:sspnet"], "no top-down fusion factors"),
    ],
)
def test_wrong_options_end_in_one_line(recipe, capsys, options, message):
    assert main(["tune", "alpha", str(recipe), *options]) == 2
    assert message in capsys.readouterr().err
