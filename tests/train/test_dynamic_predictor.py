"""Labels, predictor and trade-off of a whole run, by the command line and from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.infer.load import load_model, load_predictor
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.dynamic.predictor import Decision, FactorPredictor
from flyspeck.models.dynamic.router import FactorRouter
from flyspeck.train.build import load_described
from flyspeck.train.checkpoint import load_weights, save_weights
from flyspeck.train.config import PredictorConfig, Recipe
from flyspeck.train.dynamic_fit import PooledMaps, train_predictor
from flyspeck.train.dynamic_labels import FactorLosses, LossKind, read_losses, select, summary
from same_detections import assert_same_detections
from tiny_sets import train_dynamic

RecipeMaker = Callable[..., Recipe]


@pytest.fixture(scope="module")
def run(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two factors and a predictor, as its recipe says."""
    folder = tmp_path_factory.mktemp("dpnet") / "run"
    assert "ap50_tiny@dpnet" in train_dynamic(tiny_set, folder)
    return folder


def test_a_recipe_leaves_detector_and_predictor_in_one_checkpoint(run: Path) -> None:
    detector, description = load_described(run / "dpnet")
    assert isinstance(detector.router, FactorRouter)
    assert description["choices"][0] == [0.0, 0.0, 1.0]
    assert load_described(run)[0].router is None  # the detector's own run is as it was
    alone, _ = load_weights(run / "best.safetensors")
    both, _ = load_weights(run / "dpnet" / "best.safetensors")
    assert all(torch.equal(both[name], value) for name, value in alone.items())
    assert {p.name for p in (run / "dpnet").iterdir()} >= {
        *("best.safetensors", "recipe.yaml", "detections.json", "evaluation.json"),
        *("detections-df0.5.json", "detections-df0.25.json", "factor-probabilities-val.json"),
    }


def test_predict_takes_the_factors_that_the_run_took(run: Path, tiny_set: Path) -> None:
    """Whole images through the folded model: as many by factor as the stored probabilities say, and the same scores."""
    told = json.loads((run / "dpnet" / "factor-probabilities-val.json").read_text())
    ids, factors, probabilities = told["image_ids"], told["factors"], np.array(told["probabilities"])
    val = read_annotations(tiny_set / "val.json")
    predictor = load_predictor(run / "dpnet", tile=(128, 192), overlap=0, score_threshold=0.01)
    found = predictor.predict([np.asarray(Image.open(val.path(i))) for i in range(len(val))])
    chosen = Decision().choose(probabilities)
    assert isinstance(predictor.model, TorchModel)
    assert list(predictor.model.taken.values()) == np.bincount(chosen, minlength=2).tolist()
    for row, image_id in enumerate(ids):
        own = json.loads((run / "dpnet" / f"detections-df{factors[chosen[row]]:g}.json").read_text())
        scores = sorted((d["score"] for d in own if d["image_id"] == image_id), reverse=True)[:5]
        assert_allclose(found[row].scores[:5], scores, atol=2e-3)


def test_each_tile_has_its_own_factor(run: Path) -> None:
    """An image of two halves that the router is made to tell apart: noise and nothing."""
    model, _ = load_model(run / "dpnet")
    router = model.detector.router
    router.probabilities = lambda shared, images: np.array(
        [[0.9, 0.9] if float(p.float().std()) < 1 else [0.9, 0.1] for p in images.pixels]
    )
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 1)).astype(np.uint8)
    rule = load_described(run)[0].head.suppression
    rule = load_described(run)[0].head.suppression
    windows = [noise, np.full_like(noise, 90), noise]
    together = model(windows)
    assert model.taken == {0.5: 2, 0.25: 1}
    for window, found in zip(windows, together, strict=True):
        assert_same_detections(model([window]), [found], box_px=1e-2, score=1e-5, rule=rule, least=0)


def test_a_choice_is_refused_where_there_is_none(run: Path) -> None:
    with pytest.raises(UserError, match="no factor predictor"):
        load_model(run, choice={"quality": 0.5})
    with pytest.raises(UserError, match=r"below the least possible, [0-9.e-]+ GFLOPs"):
        load_model(run / "dpnet", choice={"budget": "0.0000001"})
    model, _ = load_model(run, choice={"factor": 0.25})
    assert model.taken == {}


def test_predict_on_the_command_line(run: Path, tiny_set: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["predict", str(tiny_set / "images"), "--model", str(run / "dpnet"), "--out", str(tmp_path / "p")]
    assert main([*command, "--quality", "1", "--draw", "0"]) == 0
    assert "images or tiles by factor: 0.5: 18 (100 %), 0.25: 0 (0 %)" in capsys.readouterr().out
    assert main([*command, "--budget", "0.0000001"]) == 2
    assert "below the least possible" in capsys.readouterr().err


def test_labels_are_kept_shown_and_refused_when_older(run: Path, tmp_path: Path, capsys: Any) -> None:
    kept = run / "factor-losses-train.json"
    assert kept.is_file()
    before = kept.read_bytes()
    assert main(["dpnet", "labels", str(run)]) == 0
    out = capsys.readouterr().out
    assert "12 images, guidance loss, T = 1.1" in out
    assert kept.read_bytes() == before  # read, not computed again
    assert main(["dpnet", "labels", str(run), "--slack", "1"]) == 0
    assert "at most 1 more in the sum" in capsys.readouterr().out
    assert main(["dpnet", "labels", str(run), "--part", "val", "--no-guidance", "--json"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert len(images) == 6
    assert set(images[0]) == {"image_id", "objects", "losses", "good_enough", "cheapest"}

    state, description = load_weights(run / "best.safetensors")
    name = next(n for n, v in state.items() if v.is_floating_point())
    older = tmp_path / "older"
    older.mkdir()
    for file in ("recipe.yaml", "factor-losses-train.json"):
        (older / file).write_bytes((run / file).read_bytes())
    save_weights(older / "best.safetensors", {**state, name: state[name] + 1}, description)
    for command in (["dpnet", "labels", str(older)], ["dpnet", "fit", str(older)]):
        assert main(command) == 2
        assert "made with other weights than the detector has now" in capsys.readouterr().err
    assert not (older / "dpnet").exists()


@pytest.mark.parametrize("command", [["labels"], ["fit"]])
def test_runs_without_factors_are_refused(
    tmp_path: Path, make_recipe: RecipeMaker, command: list[str], capsys: Any
) -> None:
    from flyspeck.train.config import dump_recipe

    (tmp_path / "recipe.yaml").write_text(dump_recipe(make_recipe()))
    assert main(["dpnet", *command, str(tmp_path)]) == 2
    assert "a run without dynamic pooling" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").unlink()
    assert main(["dpnet", *command, str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def losses_of(values: list[list[float]], *, objects: int = 1) -> FactorLosses:
    ids = tuple(range(1, len(values) + 1))
    return FactorLosses(ids, (0.5, 0.33, 0.25), np.array(values), LossKind(), "abc", np.full(len(values), objects))


def test_wanted_factors_by_hand(tmp_path: Path) -> None:
    """Ties of Eq. 10 go to the cheapest; with argmax (the least loss) to the largest."""
    found = losses_of([[1, 1.05, 1.2], [1.2, 1, 1.09], [0, 0, 0], [1, 2, 3]])
    assert_array_equal(found.wanted(), [1, 2, 2, 0])
    assert_array_equal(found.wanted(rule="argmax"), [0, 1, 0, 0])
    assert_array_equal(found.wanted(1.0), [0, 1, 2, 0])
    assert_array_equal(found.wanted(slack=0.2), [2, 2, 2, 0])  # by the sum over one object each
    found.write(tmp_path / "l.json")
    again = read_losses(tmp_path / "l.json", detector="abc")
    assert_allclose(again.losses, found.losses)
    assert select(again, [4, 1]).image_ids == (4, 1)
    with pytest.raises(UserError, match="no labels of 1 image, such as 9"):
        select(again, [9])
    with pytest.raises(UserError, match="other weights"):
        read_losses(tmp_path / "l.json", detector="abd")
    with pytest.raises(UserError, match="no labels here"):
        read_losses(tmp_path / "none.json")
    (tmp_path / "l.json").write_text("{}")
    with pytest.raises(UserError, match="not a file of labels"):
        read_losses(tmp_path / "l.json")
    assert "at most 0.2 more in the sum over objects" in summary(found, slack=0.2)[0]
    text = "\n".join(summary(found))
    assert "4 images, guidance loss" in text
    assert "1 images: 0.5, 0.33 good enough" in text


def test_the_predictor_learns_what_the_map_shows() -> None:
    """Maps of two kinds, told apart by their mean: after training each gets its own factor."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(4, 8, 10, generator=generator).add(i % 2).half() for i in range(32)]
    labels = np.array([[1, 0], [0, 1]] * 16, bool)
    data = PooledMaps(maps, torch.zeros(32, 4), tuple(range(32)))
    torch.manual_seed(0)
    predictor = FactorPredictor(4, 2, widths=(8, 8))
    history = train_predictor(predictor, data, labels, PredictorConfig(epochs=30, batch_size=16, lr=0.01))
    assert history[-1]["factor"] < 0.5 * history[0]["factor"]
    with torch.no_grad():
        logits = torch.cat([predictor.from_pooled(m[None].float())[0] for m in maps])
    assert ((logits.argmax(1) == torch.arange(32) % 2).float().mean()) > 0.9


def test_a_lone_small_image_takes_no_part_in_training_the_predictor() -> None:
    """Norms of a batch need two images or two cells: an image alone in its size, whose last map is one cell, has neither."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(8, 8), (8, 8), (4, 3), (4, 5)]  # two blocks halve twice: 2x2, 2x2, 1x1 and 1x2 cells
    maps = [torch.randn(4, *size, generator=generator).half() for size in sizes]
    labels = np.array([[1, 0], [0, 1]] * 2, bool)
    predictor = FactorPredictor(4, 2, widths=(8, 8))
    data = PooledMaps(maps, torch.zeros(4, 4), tuple(range(4)))
    history = train_predictor(predictor, data, labels, PredictorConfig(epochs=1, batch_size=2))
    assert np.isfinite(history[-1]["factor"])
    alone = PooledMaps(maps[2:3], torch.zeros(1, 4), (0,))
    with pytest.raises(UserError, match="no two of a size"):
        train_predictor(predictor, alone, labels[:1], PredictorConfig(epochs=1, batch_size=2))
