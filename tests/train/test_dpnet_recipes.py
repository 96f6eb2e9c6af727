"""The recipes of DPNet's paper: both pyramids, stage 2 dynamic, the stride replaced as printed, and what each factor costs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from flyspeck.models.dynamic.cost import profile_factors
from flyspeck.models.dynamic.pooling import Stride
from flyspeck.train.build import build_detector
from flyspeck.train.config import load_recipe
from flyspeck.train.dynamic import make_dynamic

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "papers" / "000"
SIZES = {"tinycoco": ((796, 1124), 80, (8, 16, 32, 64, 128)), "tinyperson": ((1024, 1280), 1, (4, 8, 16, 32, 64))}
"""(height, width) that the paper's GFLOPs are of, classes, and strides: P3-P7 and P2-P6."""


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_stride_is_replaced_as_printed(path: Path) -> None:
    dynamic = load_recipe(path).dynamic
    assert dynamic is not None
    assert (dynamic.stride, dynamic.stage, dynamic.factors) == ("replaced", "stage2", [0.5, 0.33, 0.25])


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("stride", "words"), [("replaced", r"P\d-P\d: {}"), ("kept", r"dynamic.stride kept {}")])
def test_what_its_head_says_of_the_cost_is_counted(name: str, stride: Stride, words: str) -> None:
    path = RECIPES / f"{name}_dpnet.yaml"
    (height, width), classes, strides = SIZES[name]
    recipe = load_recipe(path, [f"dynamic.stride={stride}", "dynamic.norms=shared"])
    with torch.device("meta"):
        detector = build_detector(
            recipe.model.model_copy(update={"weights": None}),
            classes=[f"class{i}" for i in range(classes)],
            mean=[0.5] * 3,
            std=[0.25] * 3,
            load=False,
        )
        make_dynamic(detector, recipe.dynamic)
    assert tuple(spec.stride for spec in detector.features) == strides
    costs = " / ".join(f"{cost.gflops:.2f}" for cost in profile_factors(detector, (height, width)).values())
    head = path.read_text(encoding="utf-8")
    assert re.search(words.format(re.escape(costs)), head)
    assert f"{height}x{width}" in head
