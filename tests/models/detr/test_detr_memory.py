"""What queries take is said before a training: counted from shapes, with the number that fits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from flyspeck.errors import UserError
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.detr.head import DetrHead
from flyspeck.models.detr.memory import kept_bytes, largest, meta_twin
from flyspeck.train import run
from flyspeck.train.config import parse_recipe
from flyspeck.types import Targets
from needs import TRANSFORMERS
from tiny_sets import write_tiny_set

SIZE = (256, 320)


def head(kind: str = "dfine", **options: int) -> DetrHead:
    torch.manual_seed(0)
    found = build(f"{kind}:resnet18", width=0.125, channels=32, levels="2-5", **{"layers": 2, **options})
    assert isinstance(found, Detector)
    assert isinstance(found.head, DetrHead)
    return found.head


def test_bytes_that_a_gradient_keeps_by_hand() -> None:
    """A linear layer keeps its input, 3 x 4 floats, and its weight, 5 x 4; a sigmoid its output, 3 x 5."""
    layer = torch.nn.Linear(4, 5, bias=False)
    x = torch.zeros(3, 4)
    assert kept_bytes(lambda: layer(x).sigmoid().sum()) == 4 * (3 * 4 + 3 * 5)
    x.requires_grad_()
    assert kept_bytes(lambda: layer(x).sigmoid().sum()) == 4 * (3 * 4 + 5 * 4 + 3 * 5)
    assert all(p.device.type == "meta" for p in meta_twin(layer).parameters())
    assert layer.weight.device.type == "cpu"


@pytest.mark.parametrize(("bound", "most"), [(1, 10), (700, 1000), (12_345, 100_000)])
def test_the_largest_that_fits(bound: int, most: int) -> None:
    found = largest(lambda count: count <= bound, most)
    assert bound - max(1, most // 500) <= found <= bound


@TRANSFORMERS
@pytest.mark.parametrize("kind", ["dfine", "rtdetrv2"])
def test_the_count_bounds_what_the_processor_keeps(kind: str) -> None:
    one = head(kind, queries=200, noise_queries=20)
    maps = [torch.randn(1, 32, 256 // int(s), 320 // int(s), requires_grad=True) for s in one.strides]
    boxes = torch.rand(20, 2) * 200
    truth = Targets(
        torch.cat([boxes, boxes + 5], 1), torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.bool)
    )
    kept = kept_bytes(lambda: one.losses(maps, [truth], SIZE, [SIZE]))
    counted = one.training_bytes(SIZE, 200)
    assert 0.6 * kept < counted < 2.5 * kept


@TRANSFORMERS
def test_more_queries_than_fit_are_refused_with_the_number_that_fits() -> None:
    one = head(queries=1500)
    free = 4 * one.training_bytes(SIZE, 1000)
    with pytest.raises(
        UserError, match=r"model.head.queries: 1500 queries take about [\d.]+ GB for a batch of 4"
    ) as caught:
        one.check_training(images=4, size=SIZE, free=free)
    fits = int(re.findall(r"(\d+) fit;", str(caught.value))[0])
    assert 990 <= fits <= 1001
    head(queries=fits).check_training(images=4, size=SIZE, free=free)


@TRANSFORMERS
def test_queries_beyond_the_cells_cost_nothing() -> None:
    cells = sum((256 // s) * (320 // s) for s in (4, 8, 16, 32))
    head(queries=10**6).check_training(images=1, size=SIZE, free=head().training_bytes(SIZE, cells))


@TRANSFORMERS
def test_a_training_says_it_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_set(tmp_path)
    recipe = parse_recipe(
        {
            "data": {"train": str(folder / "train.json"), "val": str(folder / "val.json")},
            "model": {"name": "dfine:resnet18", "width": 0.125, "channels": 16, "head": {"layers": 1}},
            "train": {"epochs": 1, "batch_size": 4, "workers": 0},
        }
    )
    monkeypatch.setattr(run, "free_memory", lambda device: 1000)
    with pytest.raises(
        UserError, match=r"queries take about .* for a batch of 4 images of 64x96 px, and 0.0 GB are free"
    ):
        run.train(recipe, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.safetensors"))
